"""What a network that sees images is to the stage that stores what it sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Extractor(Protocol):
    """Frozen, on its device."""

    def __call__(self, images: Tensor) -> Tensor:
        """Images [b, 3, h, w] in [0, 1], on the device, of any size -> features [b, c, i, j], or [b, c] of a
        network that keeps no places."""
        ...


def square(images: Tensor, size: int) -> Tensor:
    """`images` brought to `size` x `size` px: bicubic, antialiased when shrinking, in [0, 1]."""
    from diffusion.metrics.features import resize

    return resize(images, size)


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Channels less their mean, over their deviation."""
    return (images - images.new_tensor(mean)[:, None, None]) / images.new_tensor(std)[:, None, None]
