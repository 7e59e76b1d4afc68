"""The average of weights over training, which samples better than the last weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn


def exponent(width: float) -> float:
    """gamma of the profile whose standard deviation is `width` of the training's length so far.

    Solves width = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2) (Karras et al., 2024, Equation 3).

    Raises:
        ValueError: `width` is not in (0, 0.28], the widths that the profile can have.
    """
    if not 0 < width <= 0.28:
        raise ValueError(f"ema {width} is not in (0, 0.28]: 0.05 to 0.15 of the training's length is usual.")
    # As a cubic: gamma^3 + 7 gamma^2 + (16 - width^-2) gamma + (12 - width^-2) = 0.
    return float(np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real.max())


class EMA:
    """Power-function average in fp32 (Karras et al., 2024, Section 3.1).

    The average at images_seen = t weighs the parameters at tau by tau^gamma (Equation 1). Its window grows
    with the training, so initial weights fade without a warm-up; and it depends on nothing but t, so a
    continued training has the average of an unbroken one.

    Args:
        module: whose floating-point parameters are averaged; its buffers are not.
        width: standard deviation of the window relative to the training's length so far.
    """

    def __init__(self, module: nn.Module, *, width: float) -> None:
        self.exponent = exponent(width)
        self.averages = {name: p.detach().float().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, *, images_seen: int, batch: int) -> None:
        """After the step of `batch` images that brought the training to `images_seen`."""
        # Equation 2, with an image as the unit of time.
        beta = (1 - batch / images_seen) ** (self.exponent + 1)
        averages = list(self.averages.values())
        parameters = [p.detach().float() for p in module.parameters()]
        torch._foreach_lerp_(averages, parameters, 1 - beta)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """The averages become the parameters of `module`, in its own dtype."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.averages[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages themselves, by parameter name."""
        return dict(self.averages)

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """ValueError if the names are others than this module's."""
        if tensors.keys() != self.averages.keys():
            different = ", ".join(sorted(tensors.keys() ^ self.averages.keys())[:3])
            raise ValueError(f"these averages are of another network: {different} is only on one side.")
        for name, average in self.averages.items():
            average.copy_(tensors[name])
