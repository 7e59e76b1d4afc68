"""Image to image: noise hides what is to change, and a sampler draws it anew."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.editing.ladder import squeezed
from diffusion.samplers.sampler import Draws, Sampler


@dataclass(frozen=True, kw_only=True)
class SDEdit:
    """From an image, noised to a place on the sampler's ladder, down to clean (Meng et al., 2022, "SDEdit",
    Algorithm 1).

    Raises:
        ValueError: `strength` is not between 0 and 1.
    """

    sampler: Sampler
    """All of its steps lie below the start: a weak edit costs what a strong one does, and has finer steps."""
    strength: float
    """Share of the ladder that is walked: 0 gives the image back, 1 is the sampler without an image. The
    authors find 0.3 to 0.6 both faithful and realistic."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"a strength of {self.strength} is not between 0 and 1.")

    @torch.no_grad()
    def __call__(
        self,
        denoiser: AnyDenoiser,
        noise: Float[Tensor, "b c h w"],
        latents: Float[Tensor, "b c h w"],
        conditioning: Conditioning,
        draws: Draws | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Latents, whitened as those given; `noise` is standard normal."""
        if self.strength == 0:
            return latents.clone()
        if self.strength == 1:  # a path may end with some signal left
            return self.sampler(denoiser, noise, conditioning, draws)
        times = squeezed(self.sampler.spacing(denoiser.schedule, self.sampler.steps), self.strength)
        x = denoiser.schedule.perturb(latents, noise, times[0])
        return self.sampler.solve(denoiser, x, times, conditioning, draws)
