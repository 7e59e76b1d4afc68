"""Drawing images with a latent model: each is a function of (seed, index, its own conditions), whatever its
company.

Float results depend on the shape of the call that they come from. So every call has exactly `micro_batch`
rows, the last one repeated where there are fewer, and captions are padded to a length that depends on the
caption alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.embedders.embedding import LENGTHS, TextEmbedding, batches, by_length

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from diffusion.autoencoders.autoencoder import Autoencoder
    from diffusion.conditioning import Conditioning
    from diffusion.config import GuidanceConfig, SamplerConfig
    from diffusion.denoiser import AnyDenoiser
    from diffusion.latents import LatentStatistics
    from diffusion.samplers.sampler import Draws
    from diffusion.upscaling import Upscaling


TILE = 1024
"""Side of the images, px, that an autoencoder is given at once: what it takes is some kilobytes a pixel."""
CONVOLVED = 512
"""Side of the latents that convolutions are given at once: memory, not the network, sets the limit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentModel:
    """What it takes to draw: a denoiser, and the way from its latents to images."""

    denoiser: AnyDenoiser
    autoencoder: Autoencoder
    statistics: LatentStatistics
    shape: tuple[int, int, int]
    """Of one image's latents, [c, h, w]."""
    classes: int
    """Classes that the network knows; 0 without."""
    text_width: int | None
    """Channels of the token states that the network reads; None without."""
    pooled_width: int | None = None
    """Of the pooled vector; as the states have if None."""
    nothing: TextEmbedding | None = None
    """The empty caption, for a network that was trained to see it where there is none."""
    device: torch.device
    tile: int = CONVOLVED
    """Side of the largest latents that the network takes at once; larger ones are drawn in tiles."""
    upscaling: Upscaling | None = None
    """For an upscaler: it enlarges the image that a drawing gives it."""
    regression: bool = False
    """Whether it was trained to answer at once, and is not sampled."""

    @functools.cached_property
    def tiled(self) -> Autoencoder:
        """The autoencoder, for images of any size: above `TILE` px a side it sees them in tiles."""
        from diffusion.autoencoders.tiling import TiledAutoencoder

        return TiledAutoencoder(self.autoencoder, tile=TILE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """One image to draw."""

    index: int
    """Its noise is f(seed, index)."""
    text: TextEmbedding | None = None
    label: int | None = None
    small: np.ndarray | None = None
    """For an upscaler: the image to enlarge, uint8 [h, w, 3]."""
    level: float = 0.0
    """For an upscaler: how much noise is mixed into the image, 0 to 1: the more, the less it is trusted."""


def draw(
    model: LatentModel,
    drawings: Sequence[Drawing],
    *,
    seed: int,
    sampler: SamplerConfig,
    guidance: GuidanceConfig,
    micro_batch: int,
) -> list[np.ndarray]:
    """Each drawing as uint8 [h, w, 3], in the order given."""
    from diffusion.samplers.regression import Regression
    from diffusion.tiling import Tiled

    solve = Regression() if model.regression else sampler.build()
    guided = Tiled(guidance.build(model.denoiser), size=model.tile, overlap=model.tile // 4)
    images: dict[int, np.ndarray] = {}
    lengths = [0 if d.text is None else len(d.text.states) for d in drawings]
    for length, positions in by_length(lengths, max(LENGTHS[-1], *lengths, 1) if lengths else 1).items():
        for alike in _by_size(drawings, positions):
            for rows, count in batches(alike, micro_batch):
                chosen = [drawings[row] for row in rows]
                drawn = _draw(model, chosen, seed=seed, length=length, solve=solve, denoiser=guided)
                images |= zip(rows[:count], to_pixels(drawn)[:count], strict=True)
    return [images[n] for n in range(len(drawings))]


def _draw(
    model: LatentModel,
    drawings: Sequence[Drawing],
    *,
    seed: int,
    length: int,
    solve: Callable[[AnyDenoiser, Tensor, Conditioning, Draws], Tensor],
    denoiser: AnyDenoiser,
) -> Tensor:
    """Drawings of one size as images in about [-1, 1]."""
    import torch

    from diffusion import randomness

    indices = np.array([d.index for d in drawings], dtype=np.int64)
    condition = conditioning(
        [d.text for d in drawings],
        [d.label for d in drawings],
        classes=model.classes,
        text_width=model.text_width,
        pooled_width=model.pooled_width,
        nothing=model.nothing,
        length=length,
    ).to(model.device)
    shape, low, stream = model.shape, None, "generate"
    with torch.no_grad():
        if model.upscaling is not None:
            low = _low(model, drawings)
            shape = (low.shape[1], low.shape[2], low.shape[3])
            # Of its own for each size: noise that another model of a chain has used would be seen again.
            stream = f"upscale to {low.shape[2]}"
            level = low.new_tensor([d.level for d in drawings])
            noise = randomness.normal(seed, indices, shape, f"{stream}: low").to(model.device)
            condition = model.upscaling.tell(condition, low, noise, level)
        noise = randomness.normal(seed, indices, shape, stream).to(model.device)
        draws = randomness.Draws(seed, indices, shape, model.device, stream=f"{stream}: draw")
        latents = solve(denoiser, noise, condition, draws)
        if model.upscaling is not None and low is not None:
            latents = model.upscaling.restore(latents, low)
        return model.tiled.decode(model.statistics.unwhiten(latents))


def _low(model: LatentModel, drawings: Sequence[Drawing]) -> Tensor:
    """The drawings' small images as the upscaler sees them."""
    import torch

    from diffusion.upscaling import low_latents

    assert model.upscaling is not None
    images = [d.small for d in drawings if d.small is not None]
    if len(images) != len(drawings):
        raise ValueError("An upscaler needs an image to enlarge with each drawing.")
    small = normalised(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)).to(model.device)
    return low_latents(small, model.upscaling.factor, model.tiled, model.statistics)


def _by_size(drawings: Sequence[Drawing], positions: Sequence[int]) -> Iterable[list[int]]:
    """The positions, those with small images of one size together."""
    found: dict[tuple[int, ...], list[int]] = {}
    for position in positions:
        small = drawings[position].small
        found.setdefault(() if small is None else small.shape, []).append(position)
    return found.values()


def conditioning(
    texts: Sequence[TextEmbedding | None],
    labels: Sequence[int | None],
    *,
    classes: int,
    text_width: int | None,
    pooled_width: int | None = None,
    nothing: TextEmbedding | None = None,
    length: int,
) -> Conditioning:
    """The conditions of a batch on the CPU, captions padded to `length` tokens; None is an absent one, which
    `nothing` stands in for if it is given.

    Kinds that the model does not know (`classes` 0, `text_width` None) are left out.
    """
    import torch

    from diffusion.conditioning import Conditioning, Nothing

    label = None
    if classes:
        label = torch.tensor([classes if n is None else n for n in labels], dtype=torch.long)
    if text_width is None:
        return Conditioning(label=label, classes=classes)
    length = max(length, len(nothing.states)) if nothing is not None else length
    states = np.zeros((len(texts), length, text_width), np.float32)
    mask = np.zeros((len(texts), length), bool)
    pooled = np.zeros((len(texts), pooled_width or text_width), np.float32)
    for row, given in enumerate(texts):
        text = nothing if given is None else given
        if text is not None:
            states[row, : len(text.states)] = text.states
            mask[row, : len(text.states)] = True
            pooled[row] = text.pooled
    return Conditioning(
        text=torch.from_numpy(states),
        mask=torch.from_numpy(mask),
        pooled=torch.from_numpy(pooled),
        label=label,
        classes=classes,
        nothing=None
        if nothing is None
        else Nothing(
            text=torch.from_numpy(nothing.states).float(), pooled=torch.from_numpy(nothing.pooled).float()
        ),
    )


def tile(network: Any, size: int) -> int:
    """Of a network that was trained on latents of side `size`: a transformer's positions end there."""
    return size if transformer(network) else max(size, CONVOLVED)


def transformer(network: Any) -> bool:
    """Whether a network's config is of one that knows no other sizes than it was trained on."""
    return network.transformer if network.kind == "diffusers" else network.kind == "dit"


def enlarged(images: Sequence[np.ndarray], factor: int) -> list[np.ndarray]:
    """uint8 images of one size, enlarged by bicubic interpolation."""
    import torch

    from diffusion.upscaling import enlarge

    small = normalised(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    return list(to_pixels(enlarge(small, factor)))


def normalised(images: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1


def to_pixels(images: Tensor) -> np.ndarray:
    """[b, 3, h, w] in about [-1, 1] to uint8 [b, h, w, 3]."""
    import torch

    levels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
