"""Images for captioners that look: decoded one at a time, and one that does not decode is a reject."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from pipelines.captioners.caption import Answer, Subject

if TYPE_CHECKING:
    from PIL.Image import Image

UNREADABLE = "unreadable"
Prepared = TypeVar("Prepared")


def seen(
    subjects: Sequence[Subject],
    prepare: Callable[[Image], Prepared],
    answer: Callable[[Sequence[Prepared]], Sequence[Answer]],
) -> list[Answer]:
    """What `answer` says of the images, in their order; `prepare` makes of each what is held of it."""
    prepared = [_prepared(subject, prepare) for subject in subjects]
    answers = iter(answer([one for one in prepared if one is not None]))
    return [Answer(reject=UNREADABLE) if one is None else next(answers) for one in prepared]


def decoded(data: bytes) -> Image | None:
    """As RGB; None where the bytes are no image that can be read to its end."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            return image.convert("RGB")
    except Exception:  # decoders raise all sorts of things, and the verdict is the same
        return None


def _prepared(subject: Subject, prepare: Callable[[Image], Prepared]) -> Prepared | None:
    image = decoded(subject.image or b"")
    return None if image is None else prepare(image)
