"""How pleasing people find an image: a small head over open_clip's image vectors."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pipelines.embedders import OpenClipImages
from pipelines.places import at_hand
from pipelines.scorers.scorer import Scores, Subject, Unscored, rounded

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Aesthetic:
    """`aesthetic`, on the scale of the people whom the head learned from: LAION's predictor (Schuhmann et
    al., 2022, section 4) gives 1 to 10, from vectors of length 1 of CLIP's ViT-L/14."""

    kind: Literal["aesthetic"] = "aesthetic"
    path: str = field(metadata={"execution": True})
    """Folder of the open_clip checkpoint that the head was trained on."""
    file: str = field(metadata={"execution": True})
    """The head's safetensors: layers by number, each `weight` [out, in] and `bias`; or a `.pth`, with its
    `sha256`."""
    sha256: str | None = None
    """Of a `.pth`: the file that is meant, and no other, is read."""
    activation: Literal["none", "relu"] = "none"
    """Between the head's layers; LAION's has none."""
    name: str = "aesthetic"

    reads: ClassVar[tuple[str, ...]] = ("image",)
    pixels: ClassVar[bool] = True
    guarded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.file.endswith(".safetensors") and self.sha256 is None:
            raise ValueError(
                f"aesthetic: {self.file} is no safetensors file; give its sha256, or convert it first."
            )

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def external(self) -> dict[str, str]:
        return {"image": OpenClipImages(path=self.path).identity(), "head": self._digest()}

    def build(self, *, micro_batch: int = 16) -> AestheticScorer:
        return AestheticScorer(self, micro_batch)

    def _digest(self) -> str:
        path = at_hand(self.file)
        if not path.is_file():
            raise ValueError(f"aesthetic: there is no file {path}; put the head's weights there.")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class AestheticScorer:
    def __init__(self, config: Aesthetic, micro_batch: int) -> None:
        self._config, self._micro_batch = config, micro_batch
        self._layers = layers(_tensors(config), config.file)

    def scores(self, subjects: Sequence[Subject]) -> list[Scores | Unscored]:
        from pipelines.scorers.clip import image_vectors

        if not subjects:
            return []
        found: list[Scores | Unscored] = []
        for vector in image_vectors(self._config.path, self._micro_batch, subjects):
            try:
                found.append({self._config.name: rounded(self._score(vector))})
            except ValueError as error:
                if len(vector) != self._layers[0][0].shape[1]:
                    raise
                found.append(Unscored(str(error)))
        return found

    def _score(self, vector: np.ndarray) -> float:
        x = vector.astype("float64")
        width = self._layers[0][0].shape[1]
        if len(x) != width:
            raise ValueError(
                f"{self._config.file} takes vectors of {width} numbers and {self._config.path} gives "
                f"{len(x)}: it was trained on another open_clip model."
            )
        for n, (weight, bias) in enumerate(self._layers):
            x = (weight * x).sum(1) + bias
            if self._config.activation == "relu" and n < len(self._layers) - 1:
                x = x.clip(min=0)
        return float(x[0])


def layers(tensors: dict[str, Any], file: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights [out, in] and biases [out], float64, in the order of their numbers.

    Raises:
        ValueError: the tensors are no chain of linear layers that ends in one number.
    """
    names = sorted(
        (name.removesuffix("weight") for name in tensors if name.endswith("weight")),
        key=lambda name: [int(part) for part in re.findall(r"\d+", name)],
    )
    try:
        chain = [
            (tensors[f"{name}weight"].double().numpy(), tensors[f"{name}bias"].double().numpy())
            for name in names
        ]
    except KeyError as error:
        raise ValueError(f"{file} is no aesthetic head: it has no {error.args[0]}.") from error
    widths = [weight.shape for weight, _ in chain if weight.ndim == 2]
    fits = all(below[0] == above[1] for below, above in itertools.pairwise(widths))
    if not chain or len(widths) < len(chain) or not fits or widths[-1][0] != 1:
        raise ValueError(f"{file} is no aesthetic head: its layers do not lead from a vector to one number.")
    return chain


def _tensors(config: Aesthetic) -> dict[str, Any]:
    path = at_hand(config.file)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    from pipelines import weights

    assert config.sha256 is not None
    return weights.foreign(path, config.sha256)
