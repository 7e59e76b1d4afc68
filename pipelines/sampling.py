"""Drawing images with a latent model: each is a function of (seed, index, its own conditions), whatever its
company.

Float results depend on the shape of the call that they come from. So every call has exactly `micro_batch`
rows, the last one repeated where there are fewer, and captions are padded to a length that depends on the
caption alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.embedders.embedding import LENGTHS, TextEmbedding, batches, by_length

if TYPE_CHECKING:
    import torch

    from diffusion.autoencoders.autoencoder import Autoencoder
    from diffusion.conditioning import Conditioning
    from diffusion.config import GuidanceConfig, SamplerConfig
    from diffusion.denoiser import AnyDenoiser
    from diffusion.latents import LatentStatistics


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
    device: torch.device


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """One image to draw."""

    index: int
    """Its noise is f(seed, index)."""
    text: TextEmbedding | None = None
    label: int | None = None


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
    import torch

    from diffusion import randomness

    solve, guided = sampler.build(), guidance.build(model.denoiser)
    images: dict[int, np.ndarray] = {}
    lengths = [0 if d.text is None else len(d.text.states) for d in drawings]
    for length, positions in by_length(lengths, max(LENGTHS[-1], *lengths, 1) if lengths else 1).items():
        for rows, count in batches(positions, micro_batch):
            chosen = [drawings[row] for row in rows]
            indices = np.array([d.index for d in chosen], dtype=np.int64)
            noise = randomness.normal(seed, indices, model.shape, "generate").to(model.device)
            condition = conditioning(
                [d.text for d in chosen],
                [d.label for d in chosen],
                classes=model.classes,
                text_width=model.text_width,
                length=length,
            ).to(model.device)
            with torch.no_grad():
                latents = solve(guided, noise, condition)
                decoded = model.autoencoder.decode(model.statistics.unwhiten(latents))
            images |= zip(rows[:count], to_pixels(decoded)[:count], strict=True)
    return [images[n] for n in range(len(drawings))]


def conditioning(
    texts: Sequence[TextEmbedding | None],
    labels: Sequence[int | None],
    *,
    classes: int,
    text_width: int | None,
    length: int,
) -> Conditioning:
    """The conditions of a batch on the CPU, captions padded to `length` tokens; None is an absent one.

    Kinds that the model does not know (`classes` 0, `text_width` None) are left out.
    """
    import torch

    from diffusion.conditioning import Conditioning

    label = None
    if classes:
        label = torch.tensor([classes if n is None else n for n in labels], dtype=torch.long)
    if text_width is None:
        return Conditioning(label=label, classes=classes)
    states = np.zeros((len(texts), length, text_width), np.float32)
    mask = np.zeros((len(texts), length), bool)
    pooled = np.zeros((len(texts), text_width), np.float32)
    for row, text in enumerate(texts):
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
    )


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """[b, 3, h, w] in about [-1, 1] to uint8 [b, h, w, 3]."""
    import torch

    levels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
