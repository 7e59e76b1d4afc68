"""What a denoiser is trained on: squared errors of its clean latents, weighted by the level of noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser, Denoiser
from diffusion.noise import Time
from diffusion.preconditioning import EDM, FlowVelocity, Preconditioning


class Weighting(ABC):
    """The weight of |x̂ - x|^2 at each level of noise."""

    @abstractmethod
    def __call__(self, alpha: Float[Tensor, "*b"], sigma: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]: ...


@dataclass(frozen=True)
class Output(Weighting):
    """The squared error of what the network itself predicts, 1 / c_out^2: each system's plain loss.

    For `Noise` it is SNR = alpha^2 / sigma^2 (Ho et al., 2020, Equation 14), for `Velocity` SNR + 1, for
    `FlowVelocity` (alpha + sigma)^2 / sigma^2 and for `EDM` (s^2 + d^2) / (s d)^2 with s = sigma / alpha.
    """

    of: Preconditioning

    def __call__(self, alpha: Float[Tensor, "*b"], sigma: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        # The time itself is only what a network is told, and no matter here.
        return self.of(alpha, sigma, sigma).c_out ** -2


@dataclass(frozen=True, kw_only=True)
class MinSNR(Weighting):
    """min(SNR, gamma), whatever the network predicts (Hang et al., 2023, Section 3.4).

    Over the plain loss of `Noise` that is min(SNR, gamma) / SNR, of `Velocity` min(SNR, gamma) / (SNR + 1).
    """

    gamma: float = 5.0

    def __call__(self, alpha: Float[Tensor, "*b"], sigma: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return (alpha / sigma).square().clamp(max=self.gamma)


def denoising(
    denoiser: AnyDenoiser,
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    t: Time,
    conditioning: Conditioning,
    weighting: Weighting,
) -> Float[Tensor, " b"]:
    """weight |x̂ - x|^2, mean over a sample's elements, for t > 0."""
    schedule = denoiser.schedule
    error = denoiser(schedule.perturb(latents, noise, t), t, conditioning) - latents
    times = t if isinstance(t, Tensor) else latents.new_full((len(latents),), t)
    return weighting(*schedule(times)) * error.square().flatten(1).mean(1)


def flow_matching(
    denoiser: AnyDenoiser,
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    t: Time,
    conditioning: Conditioning,
) -> Float[Tensor, " b"]:
    """Squared error of the velocity z - x (Lipman et al., 2023, Equation 9), for t > 0.

    Latents are whitened: predicting zero costs 2 in the mean at any time.
    """
    return denoising(denoiser, latents, noise, t, conditioning, Output(FlowVelocity()))


def plain_loss(
    denoiser: Denoiser,
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    t: Time,
    conditioning: Conditioning,
) -> Float[Tensor, " b"]:
    """Squared error of what the network itself predicts: noise, velocity or clean latents."""
    return denoising(denoiser, latents, noise, t, conditioning, Output(denoiser.preconditioning))


def edm(data_std: float = 1.0) -> Weighting:
    """(s^2 + d^2) / (s d)^2 with s = sigma / alpha: unit loss of a network that knows nothing, at all levels
    (Karras et al., 2022, Equation 8)."""
    return Output(EDM(data_std=data_std))


def regression(
    denoiser: AnyDenoiser, latents: Float[Tensor, "b c h w"], conditioning: Conditioning
) -> Float[Tensor, " b"]:
    """Mean absolute error of the answer without noise to start from (`samplers.regression`).

    Its minimum is the median of what the conditions leave open: the sharpest figures for PSNR and blurred
    pictures, the baseline that an upscaler by diffusion is held against.
    """
    nothing = torch.zeros_like(latents)
    answer = denoiser(nothing, latents.new_ones(len(latents)), conditioning)
    return (answer - latents).abs().flatten(1).mean(1)
