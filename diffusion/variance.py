"""The variance of a step back along the chain: its two limits, and networks that say what lies between."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser, Denoiser
from diffusion.losses import Weighting
from diffusion.noise import Schedule, Time, broadcast


class Posterior(NamedTuple):
    """q(x_s | x_t, x) = N(keep x_t + take x, small), s < t; each a float, or one a row."""

    keep: Any
    take: Any
    small: Any
    """The posterior's own variance, "beta tilde": least that a step back can have."""
    large: Any
    """What it is for standard normal latents, "beta": most that it can have for whitened ones."""


def posterior(here: tuple[Any, Any], there: tuple[Any, Any]) -> Posterior:
    """From (alpha, sigma) at t and at s (Kingma et al., 2021, Equations 25 to 28, written with
    q = alpha_t sigma_s / (alpha_s sigma_t), so that they hold where t is noise alone or s is clean)."""
    (alpha, sigma), (a, b) = here, there
    q = alpha * b / (a * sigma)
    lost = (1 - q) * (1 + q)
    large = lost * sigma**2 * (a**2 + b**2) / (alpha**2 + sigma**2)
    return Posterior(keep=q * b / sigma, take=a * lost, small=b**2 * lost, large=large)


@dataclass(frozen=True, eq=False)
class LearnedVariance(Denoiser):
    """A denoiser whose network gives 2c channels: a `Denoiser`'s c, and c numbers v that say where the log
    variance of a step lies between its limits, -1 the small one and 1 the large one (Nichol and Dhariwal,
    2021, Equation 15, with (v + 1) / 2 as their code has it). Only `samplers.ddpm` and `vlb` ask for them.
    """

    def answer(
        self, x_t: Float[Tensor, "b c h w"], t: Time, conditioning: Conditioning
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Clean latents, and the share of the large variance in the logarithm, (v + 1) / 2."""
        c_skip, c_out, c_in, c_noise = self.coefficients(t, x_t)
        told = c_noise if c_noise.ndim else x_t.new_full((len(x_t),), float(c_noise))
        output = self.network(broadcast(c_in, x_t) * x_t, told, conditioning).to(x_t.dtype)
        if output.shape[1] != 2 * x_t.shape[1]:
            raise ValueError(
                f"{x_t.shape[1]} channels of latents, and {output.shape[1]} of the network's output: "
                "one with a learned variance has twice as many as its latents."
            )
        predicted, v = output.chunk(2, dim=1)
        return broadcast(c_skip, x_t) * x_t + broadcast(c_out, x_t) * predicted, (v + 1) / 2

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Time, conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        clean, _ = self.answer(x_t, t, conditioning)
        return clean


def learned(
    denoiser: AnyDenoiser, x_t: Float[Tensor, "b c h w"], t: Time, conditioning: Conditioning
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """What the denoiser answers, and the share of its learned variance, from the same call of the network.

    Behind guidance the clean latents are guided, and the variance is the better answer's own.

    Raises:
        ValueError: no `LearnedVariance` stands behind the denoiser, or it was asked in tiles.
    """
    shares: list[Tensor] = []
    clean = _keeping(denoiser, shares)(x_t, t, conditioning)
    # Guidance puts the better answer's rows first.
    share = shares[0][: len(x_t)]
    if len(shares) > 1 or share.shape != x_t.shape:
        raise ValueError("a learned variance cannot be blended from tiles: take variance 'small' or 'large'.")
    return clean, share


def _keeping(denoiser: Any, shares: list[Tensor]) -> AnyDenoiser:
    """The same denoiser, which puts the share of each of its answers into `shares`."""
    if isinstance(denoiser, LearnedVariance):
        return _Keeping(denoiser, shares)
    if dataclasses.is_dataclass(denoiser) and "denoiser" in (f.name for f in dataclasses.fields(denoiser)):
        inner: Any = denoiser
        return dataclasses.replace(inner, denoiser=_keeping(inner.denoiser, shares))
    raise ValueError(
        f"{type(denoiser).__name__} has no learned variance: take LearnedVariance, or variance 'small' "
        "or 'large'."
    )


@dataclass(frozen=True, eq=False)
class _Keeping:
    denoiser: LearnedVariance
    shares: list[Tensor]

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Time, conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        clean, share = self.denoiser.answer(x_t, t, conditioning)
        self.shares.append(share)
        return clean


def vlb(
    denoiser: LearnedVariance,
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    t: Float[Tensor, " b"],
    conditioning: Conditioning,
    *,
    chain: int = 1000,
) -> Float[Tensor, " b"]:
    """One term of the variational bound of a chain, in nats per element: KL(q(x_s | x_t, x) || p(x_s | x_t))
    of the step from t to s = t - 1 / chain, and in its first step -log p(x | x_t), a Gaussian density as
    latents have no levels (Nichol and Dhariwal, 2021, Equations 4 to 7).

    `t` holds times n / chain, n from 1 to chain; `chain` times the mean over them is the bound, but for the
    prior's term. Gradients reach the variance alone, as in their Section 3.1.
    """
    clean, share = denoiser.answer(denoiser.schedule.perturb(latents, noise, t), t, conditioning)
    return _term(denoiser.schedule, latents - clean, share, t, chain)


def hybrid(
    denoiser: LearnedVariance,
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    t: Float[Tensor, " b"],
    conditioning: Conditioning,
    weighting: Weighting,
    *,
    chain: int = 1000,
    scale: float = 0.001,
) -> Float[Tensor, " b"]:
    """`losses.denoising` + scale chain `vlb`, from one call of the network (Nichol and Dhariwal, 2021,
    Equation 16); their bits are nats / log 2."""
    clean, share = denoiser.answer(denoiser.schedule.perturb(latents, noise, t), t, conditioning)
    error = clean - latents
    simple = weighting(*denoiser.schedule(t)) * error.square().flatten(1).mean(1)
    return simple + scale * chain * _term(denoiser.schedule, error, share, t, chain)


def _term(
    schedule: Schedule,
    error: Float[Tensor, "b c h w"],
    share: Float[Tensor, "b c h w"],
    t: Float[Tensor, " b"],
    chain: int,
) -> Float[Tensor, " b"]:
    # In double precision: limits that are nearly equal are subtracted from each other.
    n = (t.double() * chain).round()
    first = n <= 1
    _, take, _, large = posterior(schedule(n / chain), schedule((n - 1) / chain))
    # The first step's own lower limit is 0: that of the second stands in for it, as in the authors' code.
    n = n.clamp(min=2)
    small = posterior(schedule(n / chain), schedule((n - 1) / chain)).small
    take, low, high = (broadcast(c.to(error.dtype), error) for c in (take, small.log(), large.log()))
    exponent = torch.lerp(low.expand_as(share), high.expand_as(share), share)
    square = (take * error.detach()).square() * torch.exp(-exponent)
    divergence = exponent - low + torch.exp(low - exponent) - 1 + square
    density = exponent + math.log(2 * math.pi) + square
    density, divergence = density.flatten(1).mean(1), divergence.flatten(1).mean(1)
    return torch.where(first, density, divergence) / 2
