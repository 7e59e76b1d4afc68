"""What workers do for an evaluation of autoencoders: reconstruct images, and measure what came back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.storage import Storage
from pipelines.scoring.features import FeaturesConfig
from pipelines.scoring.measure import Place
from pipelines.scoring.upscaling import originals

if TYPE_CHECKING:
    from diffusion.autoencoders.autoencoder import Autoencoder

ORIGINALS = -1
"""Stands for the images themselves where a model's position is asked."""
MEASURES = {
    "psnr": ("PSNR, dB", "more is better", 2),
    "ssim": ("SSIM", "more is better", 4),
    "lpips": ("LPIPS-HED", "less is better", 4),
}
"""Name -> what it is, which way is better, and digits."""
AMPLIFIED = 4
"""Times that a difference is shown."""
SILENT = 0.01
"""Share of a latent channel's variance that comes from the image, below which it says nothing."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Some images of one size, through one autoencoder."""

    method: int
    """Position among the models, or `ORIGINALS`."""
    numbers: tuple[int, ...]
    """Of the images, among all that are judged by."""
    places: tuple[Place, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a worker found of a job's images."""

    job: Job
    measures: np.ndarray
    """[n, 3] in the order of `MEASURES`."""
    features: np.ndarray
    """[n, d]."""
    latents: np.ndarray
    """[n, 3, c] of each image: means over its latents of the mean, its square, and the variance."""
    images: dict[int, np.ndarray]
    """Those of the picture, by number."""


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """What `Session.map` is given; a worker opens each autoencoder once."""

    images: str
    models: tuple[str, ...]
    features: FeaturesConfig
    micro_batch: int
    shown: int

    def __call__(self) -> Callable[[Job], Answer]:
        import functools

        from diffusion.metrics.lpips import LPIPSHED
        from pipelines import weights
        from pipelines.dataset import Dataset
        from pipelines.embedders.embedding import batches, device_at_hand
        from pipelines.models import SnapshotFolder

        device = device_at_hand()
        dataset = Dataset.open(Storage.at(self.images))
        lpips = LPIPSHED(weights.load("hed"), weights.load("lpips-heads")).to(device)
        features_of = self.features.build()

        @functools.cache
        def model(number: int) -> Autoencoder:
            return SnapshotFolder.open(Storage.at(self.models[number])).autoencoder().to(device)

        def call(job: Job) -> Answer:
            from PIL import Image

            truth = originals(dataset, job.places)
            made, latents = truth, np.zeros((len(truth), 3, 0))
            measures = np.zeros((len(truth), len(MEASURES)))
            if job.method != ORIGINALS:
                made, latents = reconstructed(model(job.method), truth, micro_batch=self.micro_batch)
                measures = measure(made, truth, lpips, micro_batch=self.micro_batch)
            found = [
                features_of([Image.fromarray(image) for image in run])[:count]
                for run, count in batches(made, self.micro_batch)
            ]
            shown = {n: image for n, image in zip(job.numbers, made, strict=True) if n < self.shown}
            return Answer(
                job=job, measures=measures, features=np.concatenate(found), latents=latents, images=shown
            )

        return call


def reconstructed(
    autoencoder: Autoencoder, images: Sequence[np.ndarray], *, micro_batch: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """uint8 images of one size from their posterior's mean, and [n, 3, c] of the latents: means over space of
    the mean, its square, and the variance.

    `ValueError` where the autoencoder does not take their size.
    """
    import torch

    from pipelines.embedders.embedding import batches
    from pipelines.sampling import normalised, to_pixels

    height, width, _ = images[0].shape
    if height % autoencoder.factor or width % autoencoder.factor:
        raise ValueError(
            f"Images of {width} x {height} px do not suit an autoencoder that shrinks by "
            f"{autoencoder.factor}: set ingest's `size` (or `buckets.step`) to a multiple of that."
        )
    device = next((p.device for p in autoencoder.parameters()), torch.device("cpu"))
    made: list[np.ndarray] = []
    latents: list[np.ndarray] = []
    for run, count in batches(images, micro_batch):
        with torch.inference_mode():
            batch = normalised(torch.from_numpy(np.stack(run)).permute(0, 3, 1, 2).to(device))
            moments = autoencoder.encode(batch)
            made += list(to_pixels(autoencoder.decode(moments.mean)))[:count]
        mean, std = (t.double().flatten(2).cpu().numpy() for t in (moments.mean, moments.std))
        latents.append(np.stack([mean.mean(2), (mean**2).mean(2), (std**2).mean(2)], axis=1)[:count])
    return made, np.concatenate(latents)


def measure(
    made: Sequence[np.ndarray], truth: Sequence[np.ndarray], lpips: Any, *, micro_batch: int
) -> np.ndarray:
    """[n, 3] in the order of `MEASURES`, of uint8 images of one size as they would be saved."""
    import torch

    from diffusion.metrics.psnr import psnr
    from diffusion.metrics.ssim import ssim
    from pipelines.embedders.embedding import batches, device_at_hand
    from pipelines.sampling import normalised

    def levels(images: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device_at_hand()).float()

    found = []
    for pairs, count in batches(list(zip(made, truth, strict=True)), micro_batch):
        ours, theirs = levels([pair[0] for pair in pairs]), levels([pair[1] for pair in pairs])
        near = lpips(normalised(ours), normalised(theirs)).double()
        columns = torch.stack([psnr(ours, theirs), ssim(ours, theirs), near], dim=1)
        found.append(columns[:count].cpu().numpy())
    return np.concatenate(found)


def channels(latents: np.ndarray) -> dict[str, Any]:
    """Of [n, 3, c] as `reconstructed` gives them: each channel's standard deviation over images, places and
    draws, the share of its variance that comes from the image, and the channels that say nothing."""
    first, second, noise = latents.mean(0)
    signal = np.maximum(second - first**2, 0)
    total = signal + noise
    share = np.divide(signal, total, out=np.zeros_like(total), where=total > 0)
    return {
        "std": np.sqrt(total).tolist(),
        "signal": share.tolist(),
        "dead": np.flatnonzero(share < SILENT).tolist(),
    }


def difference(made: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How far the channels lie apart, `AMPLIFIED` times, black for equal."""
    apart = np.abs(made.astype(np.int16) - truth.astype(np.int16)) * AMPLIFIED
    return apart.clip(0, 255).astype(np.uint8)
