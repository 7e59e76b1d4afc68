"""What the training of a CLIP asks of the model that it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor, nn

TEMPERATURE, BIAS = 0.07, -10.0
"""Beginnings of Radford et al., 2021, and Zhai et al., 2023."""
MAX_SCALE = 100.0
"""Cosines are multiplied with no more (Radford et al., 2021, section 2.5)."""

Images = Callable[["np.ndarray", "np.ndarray", "np.ndarray"], "Tensor"]
"""(positions in the training's stream, rows, whether each is mirrored) -> the network's input [b, ...]; no
chance is in it where positions are empty, as for what is held out."""


class Trainable(Protocol):
    @property
    def module(self) -> nn.Module:
        """(image input, text input) -> vectors of length 1 [b, w] of both, scale and bias of the logits."""
        ...

    def images(self, decode: Callable[[int], Image], count: int, *, flips: bool) -> Images:
        """Of rows 0 to `count`, which `decode` gives as RGB images."""
        ...

    def texts(self, texts: Sequence[str]) -> Tensor:
        """The network's input [n, ...] of each."""
        ...

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        """All of the model, under open_clip's names."""
        ...

    def files(self) -> dict[str, bytes]:
        """What lies beside the weights, so that open_clip opens the folder."""
        ...
