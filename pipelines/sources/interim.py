"""Stands in until bytes go to children."""

from pipelines.sources.decode import Reject, decode
from pipelines.sources.fit import encode, fit


def looked_at(task, items):
    from pipelines.duplicates import look

    for data in items:
        try:
            seen = look(
                decode(
                    data,
                    background=task.background,
                    max_bytes=task.max_bytes,
                    max_pixels=task.max_pixels,
                    smallest=64,
                ).image
            )
        except Reject as reject:
            yield {"reject": str(reject)}
        else:
            yield {"hash": seen.hash, "mirrored": seen.mirrored} if seen else {}


def made(task, items):
    smallest = None if task.resize == "none" else 2 * task.size
    for data in items:
        try:
            picture = decode(
                data,
                background=task.background,
                max_bytes=task.max_bytes,
                max_pixels=task.max_pixels,
                smallest=smallest,
            )
        except Reject as reject:
            yield {"reject": str(reject)}
            continue
        image, changed = fit(picture, size=task.size, resize=task.resize, background=task.background)
        kept = picture.same and not changed
        yield {
            "suffix": picture.kind if kept else task.form,
            "image": data if kept else encode(image, task.form),
            "width": image.width,
            "height": image.height,
            "original_width": picture.width,
            "original_height": picture.height,
        }


class Task:
    def __init__(self, **said):
        self.size, self.resize, self.form = 64, "crop", "webp"
        self.__dict__ |= said


class Header:
    pass


def header(data):
    import io
    import warnings
    from PIL import Image
    from pipelines.sources.magic import DECODED, kind_of

    kind = kind_of(data)
    if kind is None:
        raise Reject("not_an_image")
    if kind not in DECODED:
        raise Reject("unsupported")
    Image.MAX_IMAGE_PIXELS = None
    found = Header()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
            found.kind, found.width, found.height, found.orientation = (
                kind,
                image.width,
                image.height,
                image.getexif().get(0x112, 1),
            )
    except Exception as e:
        raise Reject("unreadable") from e
    return found
