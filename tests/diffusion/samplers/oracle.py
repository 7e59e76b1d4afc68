"""diffusers' schedulers, run with the network, the noise and the times that ours are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from diffusion.conditioning import Conditioning

NOTHING = Conditioning()


def network(x: torch.Tensor, time: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    """Any function of latents and of time, smooth and not linear."""
    return torch.sin(2 * x) + time.reshape(-1, 1, 1, 1) * x.roll(1, dims=-1)


def noise(x: torch.Tensor, time: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    """One that predicts noise about as well as can be, so that latents stay of size 1 where it is divided by
    a small alpha."""
    time = time.reshape(-1, 1, 1, 1)
    return time.sqrt() * x + 0.2 * (1 - time) * torch.sin(2 * x)


def timeless(x: torch.Tensor, time: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    """For schedulers that round the time which a network is told."""
    return torch.sin(2 * x) + 0.3 * x.roll(1, dims=-1)


def start(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def drawn(number: int, seed: int = 1) -> torch.Tensor:
    """The n-th tensor that a generator with this seed gives, as a scheduler asks for them in order."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 4, 4, generator=generator) for _ in range(number + 1)][-1]


def theirs(
    scheduler: Any,
    x: torch.Tensor,
    predict: Callable[[torch.Tensor, torch.Tensor, Conditioning], torch.Tensor] = network,
    *,
    told: Callable[[torch.Tensor], torch.Tensor] = lambda timestep: (timestep + 1) / 1000,
    **options: Any,
) -> torch.Tensor:
    """`told` turns a timestep into what ours tell the network; n of a chain is at time (n + 1) / 1000."""
    generator = torch.Generator().manual_seed(1)
    if "generator" in options:
        options["generator"] = generator
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, timestep)
        output = predict(scaled, told(timestep).to(x.dtype).expand(len(x)), NOTHING)
        x = scheduler.step(output, timestep, x, return_dict=False, **options)[0]
    return x
