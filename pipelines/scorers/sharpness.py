"""How much detail an image has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pipelines.scorers.scorer import Scores, Subject, Unscored, prefixed, rounded

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_NAMES = ("sharpness", "contrast", "entropy")


@dataclass(frozen=True, kw_only=True)
class Sharpness:
    """`sharpness`, the variance of the luminance's Laplacian (Pech-Pacheco et al., 2000), `contrast`, its
    standard deviation, and `entropy`, bits a pixel of its histogram; luminance goes from 0 to 255."""

    kind: Literal["sharpness"] = "sharpness"
    size: int = 256
    """Shorter side, in px, that every image is brought to first: without, a larger one counts as less
    sharp. An image that has to be enlarged is blurred by that, and scores accordingly."""
    name: str | None = None
    """Goes before the names of its scores."""

    reads: ClassVar[tuple[str, ...]] = ("image",)
    pixels: ClassVar[bool] = True
    guarded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.size < 8:
            raise ValueError(f"sharpness: size is {self.size}; it must be at least 8 px.")

    @property
    def names(self) -> tuple[str, ...]:
        return prefixed(self.name, *_NAMES)

    def external(self) -> dict[str, str]:
        return {}

    def build(self, *, micro_batch: int = 16) -> SharpnessScorer:
        return SharpnessScorer(self)


class SharpnessScorer:
    def __init__(self, config: Sharpness) -> None:
        self._config = config

    def scores(self, subjects: Sequence[Subject]) -> list[Scores | Unscored]:
        import numpy as np

        found: list[Scores | Unscored] = []
        for subject in subjects:
            levels = luminance(subject.image, self._config.size)
            shares = np.bincount(levels.reshape(-1), minlength=256) / levels.size
            shares = shares[shares > 0]
            values = (laplacian(levels).var(), levels.std(), -(shares * np.log2(shares)).sum() + 0.0)
            found.append(dict(zip(self._config.names, (rounded(float(v)) for v in values), strict=True)))
        return found


def luminance(image: Image, size: int) -> np.ndarray:
    """uint8 [h, w] with a shorter side of `size` px (ITU-R BT.601)."""
    import numpy as np
    from PIL import Image

    factor = size / min(image.size)
    shape = (max(round(image.width * factor), size), max(round(image.height * factor), size))
    gray = image.convert("L")
    return np.asarray(gray if gray.size == shape else gray.resize(shape, Image.Resampling.BICUBIC))


def laplacian(levels: np.ndarray) -> np.ndarray:
    """float64 [h - 2, w - 2]: the sum of the four neighbours less four times the pixel, where it has four."""
    x = levels.astype("float64")
    return x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * x[1:-1, 1:-1]
