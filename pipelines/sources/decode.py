"""From bytes that nobody vouches for to an upright sRGB picture; every way of failing is a reason code.

Called in a disposable child only (`cluster.child`): decoders are where hostile files strike.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

from pipelines.sources.magic import DECODED, kind_of

REASONS = {
    "missing": "named by the metadata and not there",
    "unreadable": "cannot be read or decoded",
    "empty": "no bytes",
    "too_large": "more bytes than max_bytes",
    "not_an_image": "begins like no image",
    "unsupported": "an image, but not JPEG, PNG or WebP",
    "too_many_pixels": "its header says more than max_pixels",
    "animated": "more than one frame",
    "truncated": "ends before its picture does",
    "poison": "killed the decoder, twice",
}
"""Why an input is no sample."""


class Reject(Exception):
    """An input that is no picture; its one argument is a reason code."""


@dataclass(frozen=True)
class Picture:
    """An upright sRGB picture."""

    image: Any
    """PIL image of mode RGB or L; it may be smaller than the file's, where a small one was asked for."""
    width: int
    """px, of the file's picture once upright."""
    height: int
    kind: str
    """jpg, png or webp: what its bytes are."""
    same: bool
    """Whether the bytes, as they are, show this picture in any reader."""


def decode(
    data: bytes, *, background: str, max_bytes: int, max_pixels: int, smallest: int | None = None
) -> Picture:
    """Decodes JPEG, PNG or WebP.

    Args:
        data: the file.
        background: CSS colour ("#rrggbb") that shows through transparency.
        max_bytes: of the file.
        max_pixels: width times height, judged by the header, before anything is decoded.
        smallest: if given, a JPEG may come at 1/2, 1/4 or 1/8 scale as long as both sides stay above this;
            what is resized afterwards gains several times the speed.

    Raises:
        Reject: the file is no picture, or not one that is wanted.
    """
    from PIL import Image, ImageOps

    if not data:
        raise Reject("empty")
    if len(data) > max_bytes:
        raise Reject("too_large")
    kind = kind_of(data)
    if kind == "webp" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise Reject("truncated")
    if kind is None:
        raise Reject("not_an_image")
    if kind not in DECODED:
        raise Reject("unsupported")
    # The cap is ours and stated; Pillow's own would only warn.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
            if image.width * image.height > max_pixels:
                raise Reject("too_many_pixels")
            if kind != "jpg" and getattr(image, "is_animated", False):
                raise Reject("animated")
            turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
            pixels = _load(image, data, kind, smallest)
            profiled = _to_srgb(pixels, image.info.get("icc_profile"))
            flat = _flatten(profiled, background)
            upright = ImageOps.exif_transpose(_oriented(flat, image)) if turned else flat
    except Reject:
        raise
    except (EOFError, OSError) as error:
        raise Reject("truncated" if _is_truncation(error) else "unreadable") from error
    except Exception as error:
        # Decoders raise all sorts of things on hostile bytes; which one makes no difference to the verdict.
        raise Reject("unreadable") from error
    plain = image.mode in ("RGB", "L") and "transparency" not in image.info
    same = plain and not turned and profiled is pixels and image.format in ("JPEG", "PNG", "WEBP")
    # Orientations 5 to 8 lie on their side.
    lying = upright.size == flat.size[::-1]
    width, height = image.size[::-1] if turned and lying else image.size
    return Picture(upright, width, height, kind, same)


_ORIENTATION = 0x0112


def _load(image: Any, data: bytes, kind: str, smallest: int | None) -> Any:
    """The pixels in the file's own colours; JPEGs by libjpeg-turbo directly where it takes them."""
    from PIL import Image

    if kind == "jpg" and image.mode in ("RGB", "L"):
        import simplejpeg

        least = smallest or 0
        # A side of 0 asks for full scale.
        space = "GRAY" if image.mode == "L" else "RGB"
        try:
            array = simplejpeg.decode_jpeg(data, colorspace=space, min_height=least, min_width=least)
        except ValueError:
            # It is stricter than Pillow, which also tells what is wrong.
            pass
        else:
            return Image.fromarray(array[:, :, 0] if space == "GRAY" else array)
    image.load()
    return image


def _oriented(pixels: Any, original: Any) -> Any:
    """`pixels` with the EXIF of the file, which says how to turn it."""
    copy = pixels.copy()
    copy.getexif()[_ORIENTATION] = original.getexif()[_ORIENTATION]
    return copy


def _to_srgb(image: Any, profile: bytes | None) -> Any:
    """Colours as its ICC profile means them; a profile that is sRGB, gray or broken changes nothing."""
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = f"{ImageCms.getProfileDescription(source)}".lower()
        if "srgb" in name or "iec61966" in name:
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        turned = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    return turned or image


def _flatten(image: Any, background: str) -> Any:
    """Mode RGB, or L where the picture is gray; what is transparent shows the background."""
    from PIL import Image, ImageColor

    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (*ImageColor.getrgb(background)[:3], 255))
        ground.alpha_composite(picture)
        return ground.convert("RGB")
    if image.mode in ("RGB", "L"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _from_16_bits(image: Any) -> Any:
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _is_truncation(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, EOFError) or any(
        word in text for word in ("truncated", "unexpected end", "not enough")
    )
