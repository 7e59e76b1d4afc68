"""Training an autoencoder on a dataset's images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion import randomness
from diffusion.autoencoders.autoencoder import Autoencoder
from diffusion.autoencoders.kl import kl_divergence
from diffusion.latents import Moments
from pipelines import pictures
from pipelines.arrays import pixels
from pipelines.dataset import Dataset
from pipelines.sampling import normalised, to_pixels
from pipelines.stage import KEEP
from pipelines.training.tasks.rows import Rows, decoded, memory_budget

if TYPE_CHECKING:
    from pipelines.stages.train_autoencoder import TrainAutoencoder

PICTURE_COLUMNS = 8
MEMORY_SHARE = 0.4


class Reconstruction(nn.Module):
    """The autoencoder as one call, which is what DDP can see."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Moments]:
        """Images in [-1, 1] and standard normal noise of the latents' shape."""
        moments = self.autoencoder.encode(images)
        return self.autoencoder.decode(moments.sample(noise)), moments


@dataclass(frozen=True, eq=False)
class ImageShare:
    images: Tensor
    """uint8 [b, 3, h, w], channels last in memory."""
    noise: Tensor
    """[b, z, i, j]."""

    def to(self, device: torch.device) -> ImageShare:
        return ImageShare(self.images.to(device, non_blocking=True), self.noise.to(device, non_blocking=True))


class AutoencoderTask:
    """L1 + perceptual distance + KL, each a mean over a sample's elements (Rombach et al., 2022, section
    3.1)."""

    def __init__(
        self,
        stage: TrainAutoencoder,
        images: Dataset,
        *,
        keep: Dataset | None = None,
        device: torch.device,
        workers: int,
    ) -> None:
        self.stage = stage
        self.device = device
        datasets, required = {"images": images}, {"images": "image"}
        if keep is not None:
            datasets, required = {**datasets, KEEP: keep}, {**required, KEEP: KEEP}
        rows = Rows(datasets, split="train", required=required)
        held_out = Rows(datasets, split="validation", required=required, optional=True)
        self.length = len(rows)
        budget = memory_budget(share=MEMORY_SHARE, workers=workers)

        def image(number: int) -> np.ndarray:
            return pixels(rows.read(number, "images", "image"))

        sizes = rows.by_size("images", lambda n: image(n).shape[1::-1])
        self.groups = tuple(sizes.values())
        self.images = decoded(image, len(rows), self.groups, dtype=np.uint8, budget=budget)

        autoencoder = stage.autoencoder.build()
        self.module = Reconstruction(autoencoder).to(device)
        height, width, _ = self.images.shape
        for across, down in sizes or [(width, height)]:
            if across % autoencoder.factor or down % autoencoder.factor:
                raise ValueError(
                    f"Images of {across} x {down} px do not suit an autoencoder that shrinks by "
                    f"{autoencoder.factor}: set ingest's `size` (or `buckets.step`) to a multiple of "
                    f"{autoencoder.factor}."
                )
        self.perceptual = _perceptual(device) if stage.perceptual_weight else None
        count = min(len(held_out), stage.validation_samples)
        self.held_out = [pixels(held_out.read(n, "images", "image")) for n in range(count)]
        self.shown = self._shown()

    def share(self, positions: np.ndarray, indices: np.ndarray) -> ImageShare:
        images = torch.from_numpy(self.images[indices]).permute(0, 3, 1, 2)
        if self.stage.flips:
            flip = randomness.uniform(self.stage.seed, positions, "flip") < 0.5
            images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        coder = self.module.autoencoder
        shape = (coder.latent_channels, *(side // coder.factor for side in images.shape[-2:]))
        return ImageShare(images, randomness.normal(self.stage.seed, positions, shape, "posterior"))

    def losses(self, module: nn.Module, share: ImageShare) -> Tensor:
        images = normalised(share.images)
        reconstructions, moments = module(images, share.noise)
        losses = (reconstructions - images).abs().flatten(1).mean(1)
        if self.stage.kl_weight:
            losses = losses + self.stage.kl_weight * kl_divergence(moments) / moments.mean[0].numel()
        if self.perceptual is not None:
            losses = losses + self.stage.perceptual_weight * self.perceptual(reconstructions, images)
        return losses

    @torch.no_grad()
    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Error of reconstructions from the posterior's mean: L1 on [-1, 1], and PSNR in dB."""
        absolute, square = 0.0, 0.0
        for batch in self._batches():
            images, reconstructions = self._reconstruct(module, batch)
            difference = (reconstructions.clamp(-1, 1) - images).flatten(1).double()
            absolute += difference.abs().mean(1).sum().item()
            square += difference.square().mean(1).sum().item()
        if not self.held_out:
            return {}
        count = len(self.held_out)
        psnr = 10 * float(np.log10(4 / max(square / count, 1e-12)))
        return {"validation_l1": absolute / count, "validation_psnr": psnr}

    @torch.no_grad()
    def picture(self, module: nn.Module) -> bytes:
        """Held-out images above their reconstructions."""
        from PIL import Image

        _, reconstructions = self._reconstruct(module, self.shown)
        rows = [[Image.fromarray(image) for image in self.shown]]
        rows.append([Image.fromarray(image) for image in to_pixels(reconstructions)])
        return pictures.grid(rows, row_labels=("images", "reconstructions"))

    def facts(self) -> dict[str, Any]:
        return {}

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        assert isinstance(module, Reconstruction)
        return module.autoencoder.state_dict()

    def _batches(self) -> Iterator[list[np.ndarray]]:
        """The held-out images, those of one size together."""
        alike: dict[tuple[int, ...], list[np.ndarray]] = {}
        for image in self.held_out:
            alike.setdefault(image.shape, []).append(image)
        for images in alike.values():
            for start in range(0, len(images), self.stage.batch):
                yield images[start : start + self.stage.batch]

    def _shown(self) -> list[np.ndarray]:
        """The first held-out images of the size that most of the training's have, or else of these."""
        found = [image for image in self.held_out if image.shape == self.images.shape]
        if found:
            return found[:PICTURE_COLUMNS]
        most = max(self.groups, key=len, default=np.arange(self.length))
        return list(self.images[most[:PICTURE_COLUMNS]])

    def _reconstruct(self, module: nn.Module, images: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        assert isinstance(module, Reconstruction)
        batch = normalised(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(self.device))
        return batch, module.autoencoder.decode(module.autoencoder.encode(batch).mean)


def _perceptual(device: torch.device) -> nn.Module:
    from diffusion.autoencoders.perceptual import PerceptualLoss
    from pipelines import weights

    return PerceptualLoss(weights.load("hed")).to(device)
