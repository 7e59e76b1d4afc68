"""How strange an image is to a model: scores calibrated on normal images, and where it is strange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines import models

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion.anomaly import Calibration, MeanDeviation
    from pipelines.models import SnapshotFolder
    from pipelines.scoring.features import FeaturesConfig

HOTTEST = 6.0
"""Deviations above normal at which a heat map is at its reddest."""
RED = (235, 52, 40)


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What is measured of an image."""

    levels: tuple[float, ...]
    """Noise over signal, in whitened latents, at which an image is denoised."""
    likelihood_steps: int
    """Of the solver; 0 leaves likelihoods out."""
    seed: int
    micro_batch: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Strangeness:
    """Of one image."""

    scores: Mapping[str, float]
    percentiles: Mapping[str, float]
    """Share of normal images that score less, in percent."""
    heat: np.ndarray
    """Deviations of the denoising error from normal, [h, w] of the latents; their mean is its score."""


class Detector:
    """Scores images by a model that was trained on normal ones. `ValueError` for an upscaler or autoencoder.

    Images are looked at without caption or class: what they ought to be is not known.
    """

    def __init__(
        self, folder: SnapshotFolder, looks: Looks, *, features: FeaturesConfig | None = None
    ) -> None:
        self.model, self.looks = models.Generator(folder).model, looks
        self._extractor = features.build() if features is not None else None
        self._bank: Tensor | None = None
        self._calibrations: dict[str, Calibration] = {}

    def calibrate(
        self, normal: Sequence[tuple[int, np.ndarray]], bank: Sequence[tuple[int, np.ndarray]] = ()
    ) -> None:
        """What is normal: (position, uint8 image) of held-out normal images; `bank` are training images, to
        whose nearest in features the distance is taken.

        Raises:
            ValueError: fewer than two normal images, or of several sizes.
        """
        import torch

        from diffusion.anomaly import GaussianFit, MeanDeviation

        if bank and self._extractor is not None:
            seen = [self._features(part)[:count] for part, count in self._filled(bank)]
            self._bank = torch.cat(seen)
        values, _ = self._measure(normal)
        kinds: dict[str, type[Calibration]] = {"score_norm": GaussianFit}
        self._calibrations = {name: kinds.get(name, MeanDeviation).fit(v) for name, v in values.items()}

    def judge(self, images: Sequence[tuple[int, np.ndarray]]) -> list[Strangeness]:
        """(position, image) each; a judgement depends on the image, its position and the calibration."""
        values, maps = self._measure(images)
        scores = {name: self._calibrations[name].score(v) for name, v in values.items()}
        ranks = {name: self._calibrations[name].percentile(s) for name, s in scores.items()}
        denoising: MeanDeviation = self._calibrations["denoising"]  # pyright: ignore[reportAssignmentType]
        heat = denoising.heat(maps).numpy()
        return [
            Strangeness(
                scores={name: float(of[n]) for name, of in scores.items()},
                percentiles={name: float(of[n]) for name, of in ranks.items()},
                heat=heat[n],
            )
            for n in range(len(images))
        ]

    def _measure(self, images: Sequence[tuple[int, np.ndarray]]) -> tuple[dict[str, Tensor], Tensor]:
        """Name -> numbers [n, k] of each score, and the maps [n, k, h, w] of denoising errors."""
        import torch

        if len({image.shape for _, image in images}) > 1:
            raise ValueError("images of several sizes cannot be compared: set ingest's `resize`.")
        found: list[dict[str, Tensor]] = []
        for part, count in self._filled(images):
            found.append({name: value[:count].cpu() for name, value in self._look(part).items()})
        joined = {name: torch.cat([one[name] for one in found]) for name in found[0]}
        maps = joined.pop("maps")
        return joined, maps

    def _look(self, images: Sequence[tuple[int, np.ndarray]]) -> dict[str, Tensor]:
        import torch

        from diffusion.anomaly import denoising_errors, score_norms
        from diffusion.likelihood import Rademacher, log_likelihood
        from diffusion.metrics.neighbours import nearest
        from diffusion.randomness import Draws
        from pipelines import sampling

        model, looks = self.model, self.looks
        pixels = torch.from_numpy(np.stack([image for _, image in images])).permute(0, 3, 1, 2)
        positions = np.array([position for position, _ in images], dtype=np.int64)
        with torch.no_grad():
            encoded = model.autoencoder.encode(sampling.normalised(pixels).to(model.device))
            latents = model.statistics.whiten(encoded.mean)
        nothing = sampling.conditioning(
            [None] * len(images),
            [None] * len(images),
            classes=model.classes,
            text_width=model.text_width,
            pooled_width=model.pooled_width,
            nothing=model.nothing,
            length=1,
        ).to(model.device)
        shape = tuple(latents.shape[1:])
        draws = Draws(looks.seed, positions, shape, model.device, "detect")
        maps = denoising_errors(model.denoiser, latents, looks.levels, nothing, draws)
        found = {
            "maps": maps,
            "denoising": maps.mean((2, 3)),
            "score_norm": score_norms(model.denoiser, latents, looks.levels, nothing),
        }
        if looks.likelihood_steps:
            probes = Rademacher(looks.seed, positions, shape, device=model.device)
            likely = log_likelihood(model.denoiser, latents, nothing, probes, steps=looks.likelihood_steps)
            found["likelihood"] = -likely[:, None]
        if self._bank is not None:
            distance = nearest(self._features(images), self._bank).distance
            found["neighbours"] = distance[:, None]
        return found

    def _features(self, images: Sequence[tuple[int, np.ndarray]]) -> Tensor:
        import torch
        from PIL import Image

        assert self._extractor is not None
        return torch.from_numpy(self._extractor([Image.fromarray(image) for _, image in images]))

    def _filled(
        self, images: Sequence[tuple[int, np.ndarray]]
    ) -> list[tuple[Sequence[tuple[int, np.ndarray]], int]]:
        """Batches of exactly `micro_batch`, the last image repeated, and how many of each are real."""
        size = self.looks.micro_batch
        parts = [images[n : n + size] for n in range(0, len(images), size)]
        return [([*part, *[part[-1]] * (size - len(part))], len(part)) for part in parts]


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image in grey, and red over it where it is strange: uint8 [h, w, 3]."""
    from PIL import Image

    height, width = image.shape[:2]
    share = np.clip(heat / HOTTEST, 0, 1).astype(np.float32)
    weight = np.asarray(Image.fromarray(share).resize((width, height), Image.Resampling.BILINEAR))[..., None]
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)[..., None] * np.ones(3)
    return np.round(grey * (1 - 0.8 * weight) + np.array(RED) * 0.8 * weight).clip(0, 255).astype(np.uint8)
