"""From bytes that nobody vouches for to an upright sRGB picture; every way of failing is a reason code.

`checked` is plain Python; `pixels` is called in a disposable child only (`cluster.children`): decoders are
where hostile files strike.
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from typing import Any

from pipelines.sources.containers.facts import Header, joined
from pipelines.sources.containers.png import is_padded
from pipelines.sources.containers.profile import is_srgb
from pipelines.sources.header import parsed
from pipelines.sources.reject import REASONS, Reject

__all__ = ["REASONS", "Checked", "Picture", "Reject", "checked", "decode", "keepable", "pixels", "reduced"]

_BAND = 1 << 20
"""Pixels that are flattened at once, so that a large picture is not held several times."""


@dataclass(frozen=True)
class Checked:
    """A file of which all is known that can be without decoding it."""

    header: Header
    data: bytes
    """The file stripped of all that is not picture."""


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
    """Whether the stripped bytes show this picture in any reader."""


def checked(data: bytes, *, max_bytes: int, max_pixels: int) -> Checked:
    """Reads the container, and no pixel.

    Args:
        data: JPEG, PNG or WebP file.
        max_bytes: of the file.
        max_pixels: width times height.

    Raises:
        Reject: the file is no picture, or not one that is wanted.
    """
    if len(data) > max_bytes:
        raise Reject("too_large")
    try:
        header, pieces = parsed(data)
    except Reject:
        raise
    except Exception as error:
        raise Reject("unreadable") from error
    if header.width * header.height > max_pixels:
        raise Reject("too_many_pixels")
    if header.frames > 1:
        raise Reject("animated")
    return Checked(header, joined(data, pieces))


def keepable(header: Header) -> bool:
    """Whether stripped bytes show the picture as it is meant, if their pixels can be decoded at all."""
    meant = header.profile is None or header.channels == 1 or is_srgb(header.profile)
    return header.plain and header.orientation == 1 and meant


def pixels(file: Checked, *, background: str, scale: float = 1.0) -> Picture:
    """Decodes what `checked` gave.

    Args:
        background: CSS colour ("#rrggbb") that shows through transparency.
        scale: a JPEG may come at 1/2, 1/4 or 1/8 as long as that is no less than this; what is made smaller
            afterwards gains several times the speed. (libjpeg has the other eighths too, but slow and worse.)

    Raises:
        Reject: truncated or unreadable.
    """
    from PIL import Image

    # The cap is ours and stated; Pillow's own would only warn.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _pixels(file, background, scale)
    except (Reject, MemoryError):
        raise
    except (EOFError, OSError) as error:
        raise Reject("truncated" if _is_truncation(error) else "unreadable") from error
    except Exception as error:
        # Decoders raise all sorts of things on hostile bytes; which one makes no difference to the verdict.
        raise Reject("unreadable") from error


def decode(
    data: bytes, *, background: str, max_bytes: int, max_pixels: int, smallest: int | None = None
) -> Picture:
    """`checked` and `pixels` at once; of a JPEG both sides are at least `smallest` px, or as they are."""
    file = checked(data, max_bytes=max_bytes, max_pixels=max_pixels)
    scale = 1.0 if smallest is None else smallest / min(file.header.upright)
    return pixels(file, background=background, scale=scale)


def reduced(scale: float) -> int:
    """How many pixels of a JPEG's side become one where `scale` is enough: 1, 2, 4 or 8."""
    return next((n for n in (8, 4, 2) if scale <= 1 / n), 1)


def _pixels(file: Checked, background: str, scale: float) -> Picture:
    header = file.header
    image, strict = _load(file, scale)
    profiled = _to_srgb(image, header)
    flat = _flatten(profiled, background)
    upright = _turned(flat, header.orientation)
    same = header.plain and header.orientation == 1 and profiled is image and strict
    if same and header.kind == "png":
        same = not is_padded(file.data, header)
    return Picture(upright, *header.upright, header.kind, same)


def _load(file: Checked, scale: float) -> tuple[Any, bool]:
    """The pixels in the file's own colours, and whether the decoder had nothing to complain of.

    JPEGs by libjpeg-turbo directly where it takes them.
    """
    from PIL import Image

    header = file.header
    strict = True
    if header.kind == "jpg" and header.channels != 4:
        import simplejpeg

        times = reduced(scale)
        space = "GRAY" if header.channels == 1 else "RGB"
        # It takes the smallest of the eighths that gives these sides: with exactly these, this one.
        sides = math.ceil(header.height / times), math.ceil(header.width / times)
        try:
            array = simplejpeg.decode_jpeg(
                file.data, colorspace=space, min_height=sides[0], min_width=sides[1]
            )
        except ValueError:
            # It is stricter than Pillow, which also tells what is wrong.
            strict = False
        else:
            return Image.fromarray(array[:, :, 0] if space == "GRAY" else array), True
    image = Image.open(
        io.BytesIO(file.data), formats=({"jpg": "JPEG"}.get(header.kind, header.kind.upper()),)
    )
    if image.size != (header.width, header.height):
        raise Reject("unreadable")
    image.load()
    return image, strict


def _turned(image: Any, orientation: int) -> Any:
    from PIL import Image

    way = Image.Transpose
    ways = (way.FLIP_LEFT_RIGHT, way.ROTATE_180, way.FLIP_TOP_BOTTOM, way.TRANSPOSE, way.ROTATE_270,
            way.TRANSVERSE, way.ROTATE_90)  # fmt: skip
    return image if orientation == 1 else image.transpose(ways[orientation - 2])


def _to_srgb(image: Any, header: Header) -> Any:
    """Colours as the ICC profile means them; a profile that is sRGB, gray or broken changes nothing."""
    if not header.profile or image.mode not in ("RGB", "RGBA", "CMYK") or is_srgb(header.profile):
        return image
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(header.profile))
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        turned = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    return turned or image


def _flatten(image: Any, background: str) -> Any:
    """Mode RGB, or L where the picture is gray; what is transparent shows the background."""
    from PIL import Image, ImageColor

    if image.mode.startswith("I"):
        return _in_bands(image, "L", _from_16_bits)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        colour = (*ImageColor.getrgb(background)[:3], 255)

        def flat(band: Any) -> Any:
            picture = band.convert("RGBA")
            ground = Image.new("RGBA", picture.size, colour)
            ground.alpha_composite(picture)
            return ground.convert("RGB")

        return _in_bands(image, "RGB", flat)
    if image.mode in ("RGB", "L"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _in_bands(image: Any, mode: str, change: Any) -> Any:
    """`change` done to some rows at a time."""
    from PIL import Image

    width, height = image.size
    rows = max(1, _BAND // width)
    if rows >= height:
        return change(image)
    whole = Image.new(mode, image.size)
    for top in range(0, height, rows):
        whole.paste(change(image.crop((0, top, width, min(height, top + rows)))), (0, top))
    return whole


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
