"""Averages of weights over training, which sample better than the last weights; and, of a few that were
stored on the way, the average of any width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from diffusion import sharding


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
    """Power-function averages in fp32 (Karras et al., 2024, Section 3.1).

    The average at images_seen = t weighs the parameters at tau by tau^gamma (Equation 1). Its window grows
    with the training, so initial weights fade without a warm-up; and it depends on nothing but t, so a
    continued training has the average of an unbroken one.

    Parameters that FSDP2 sharded have sharded averages. Then `copy_to` a plain module gathers them, which all
    ranks must do together, as for `diffusion.sharding.gathered(ema.state_dict())`.

    Args:
        module: whose floating-point parameters are averaged; its buffers are not.
        widths: standard deviation of each average's window relative to the training's length so far. The
            first is the one to use; stored now and then, two give those of all others (`reconstruction`).
        spared: which parameters, by name, are not averaged; `copy_to` leaves them as they are.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        widths: Sequence[float] = (0.05, 0.10),
        spared: Callable[[str], bool] | None = None,
    ) -> None:
        self.widths = tuple(widths)
        self.exponents = [exponent(width) for width in self.widths]
        named = {n: p for n, p in module.named_parameters() if spared is None or not spared(n)}
        self.averages = {
            width: {name: p.detach().float().clone() for name, p in named.items()} for width in self.widths
        }

    @torch.no_grad()
    def update(self, module: nn.Module, *, images_seen: int, batch: int) -> None:
        """After the step of `batch` images that brought the training to `images_seen`."""
        averaged = self.averages[self.widths[0]]
        parameters = [
            sharding.local(p).detach().float() for name, p in module.named_parameters() if name in averaged
        ]
        for gamma, named in zip(self.exponents, self.averages.values(), strict=True):
            # Equation 2, with an image as the unit of time.
            beta = (1 - batch / images_seen) ** (gamma + 1)
            averages = [sharding.local(average) for average in named.values()]
            torch._foreach_lerp_(averages, parameters, 1 - beta)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """The averages of the first width become the parameters of `module`, in its own dtype."""
        parameters = dict(module.named_parameters())
        for name, average in self.averages[self.widths[0]].items():
            sharding.copy(parameters[name], average)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages themselves: those of the first width by parameter name, others as "width/name"."""
        first, *others = self.averages
        tensors = {f"{width}/{name}": t for width in others for name, t in self.averages[width].items()}
        return self.averages[first] | tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """ValueError if the names are others than this module's, or the widths of others."""
        mine = self.state_dict()
        if tensors.keys() != mine.keys():
            different = ", ".join(sorted(tensors.keys() ^ mine.keys())[:3])
            raise ValueError(f"these averages are of another network: {different} is only on one side.")
        for name, average in mine.items():
            sharding.copy(average, tensors[name])


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Which average: p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t], t = `images_seen`."""

    images_seen: int
    width: float


def reconstruction(stored: Sequence[Profile], target: Profile) -> tuple[list[float], float]:
    """Factors of stored averages whose sum is closest to an average that was not kept.

    Least squares between profiles (Karras et al., 2024, Section 3.2, Equation 151 and Algorithm 3): for
    s <= t, <p_s, p_t> = (gamma_s + 1) (gamma_t + 1) / (gamma_s + gamma_t + 1) (s/t)^gamma_t / t. Under the
    constraint that factors add up to 1, so that a weight which stood still is itself.

    Returns:
        The factors, and the misfit: the L2 norm of what is left of the target's profile over that of the
        profile. With the widths 0.05 and 0.10 stored at every eighth of a training it is 1 % for 0.075, 3 %
        for 0.04 and for 0.15, and 10 % for 0.03; with 32 of each, 0.1 %, 0.3 %, 0.2 % and 1 %.

    Raises:
        ValueError: nothing is stored that ends at or before the target.
    """
    known = [n for n, profile in enumerate(stored) if profile.images_seen <= target.images_seen]
    if not known:
        raise ValueError(f"no average is stored of the first {target.images_seen:,} images.")
    gamma = np.array([exponent(stored[n].width) for n in known] + [exponent(target.width)])
    # In units of the target's length.
    t = np.array([stored[n].images_seen for n in known] + [target.images_seen]) / target.images_seen
    later, earlier = np.maximum.outer(t, t), np.minimum.outer(t, t)
    gamma_of_later = np.where(np.greater_equal.outer(t, t), gamma[:, None], gamma)
    products = np.outer(gamma + 1, gamma + 1) / (np.add.outer(gamma, gamma) + 1)
    products *= (earlier / later) ** gamma_of_later / later
    norms = np.sqrt(products.diagonal())
    cosines = products / np.outer(norms, norms)

    # Factors of unit profiles, and the multiplier of the one constraint.
    count = len(known)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = cosines[:-1, :-1]
    system[:count, count] = system[count, :count] = 1 / norms[:-1]
    wanted = np.append(cosines[:-1, -1], 1 / norms[-1])
    unit = np.linalg.lstsq(system, wanted, rcond=1e-14)[0][:count]
    left = 1 - 2 * unit @ cosines[:-1, -1] + unit @ cosines[:-1, :-1] @ unit

    factors = np.zeros(len(stored))
    factors[known] = unit * norms[-1] / norms[:-1]
    return factors.tolist(), float(np.sqrt(max(0.0, left)))


def combined(averages: Iterable[Mapping[str, Tensor]], factors: Iterable[float]) -> dict[str, Tensor]:
    """Sum of `factors` times `averages` in fp32, by name; takes one of them at a time."""
    total: dict[str, Tensor] = {}
    for tensors, factor in zip(averages, factors, strict=True):
        for name, tensor in tensors.items():
            part = tensor.float() * factor
            total[name] = total[name].add_(part) if name in total else part
    return total
