"""Training an autoencoder on a dataset's images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion import randomness
from diffusion.autoencoders.adversarial import Reconstruction, adversarial_losses, last_layer
from diffusion.autoencoders.kl import kl_divergence
from diffusion.metrics.ssim import WINDOW, ssim
from diffusion.training import Rival
from pipelines import pictures
from pipelines.arrays import pixels
from pipelines.dataset import Dataset
from pipelines.sampling import normalised, to_pixels
from pipelines.stage import KEEP
from pipelines.training.tasks.decoded import decoded
from pipelines.training.tasks.rows import Rows, memory_budget

if TYPE_CHECKING:
    from diffusion.autoencoders.autoencoder import Autoencoder
    from pipelines.models import SnapshotFolder
    from pipelines.stages.train_autoencoder import TrainAutoencoder

PICTURE_COLUMNS = 8
MEMORY_SHARE = 0.4


@dataclass(frozen=True, eq=False)
class ImageShare:
    images: Tensor
    """uint8 [b, 3, h, w], channels last in memory."""
    noise: Tensor
    """[b, z, i, j]."""
    judged: bool = False
    """Whether the discriminator takes part."""

    def to(self, device: torch.device) -> ImageShare:
        images, noise = (t.to(device, non_blocking=True) for t in (self.images, self.noise))
        return ImageShare(images, noise, self.judged)


class AutoencoderTask:
    """Error of pixels + perceptual distance + KL, each a mean over a sample's elements, and a discriminator
    that is deceived (Rombach et al., 2022, section 3.1; Esser et al., 2021)."""

    def __init__(
        self,
        stage: TrainAutoencoder,
        images: Dataset,
        *,
        keep: Dataset | None = None,
        initial: SnapshotFolder | None = None,
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

        # Batch normalisations, which few have, keep their statistics: a batch's differ from rank to rank.
        autoencoder = (stage.autoencoder.build() if initial is None else _started(stage, initial)).eval()
        self.untouched = encoding(autoencoder) if stage.train == "decoder" else frozenset[str]()
        """Names of the weights that are not trained."""
        for name, parameter in autoencoder.named_parameters():
            parameter.requires_grad_(name not in self.untouched)
        self.encodes_as = _encodes_as(initial) if initial is not None and self.untouched else None
        against = stage.discriminator
        discriminator = against.build() if against is not None else None
        self.rival: Rival | None = None
        if against is not None:
            self.rival = Rival(name="discriminator", start=against.start, rate=against.rate)
        self.module = Reconstruction(autoencoder, discriminator).to(device)
        self._figures: dict[str, Tensor] = {}
        height, width, _ = self.images.shape
        for across, down in sizes or [(width, height)]:
            if discriminator is not None:  # now, and not only when it starts
                discriminator.check(across, down)
            if across % autoencoder.factor or down % autoencoder.factor:
                raise ValueError(
                    f"Images of {across} x {down} px do not suit an autoencoder that shrinks by "
                    f"{autoencoder.factor}: set ingest's `size` (or `buckets.step`) to a multiple of "
                    f"{autoencoder.factor}."
                )
        self.perceptual = stage.perceptual.build().to(device) if stage.perceptual_weight else None
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
        start = int(positions[0]) // self.stage.batch * self.stage.batch
        judged = self.rival is not None and start >= self.rival.start
        return ImageShare(images, randomness.normal(self.stage.seed, positions, shape, "posterior"), judged)

    def losses(self, module: nn.Module, share: ImageShare) -> Tensor:
        images, stage = normalised(share.images), self.stage
        reconstructions, moments, judged = module(images, share.noise, judged=share.judged)
        if judged is None or stage.discriminator is None:
            losses = self._pixels(reconstructions, images)
        else:
            weighed = adversarial_losses(
                reconstructions,
                judged,
                lambda made: self._perceived(self._pixels(made, images), made, images),
                last=last_layer(self.module.autoencoder),
                kind=stage.discriminator.loss,
                weight=stage.discriminator.weight,
                adaptive=stage.discriminator.adaptive,
            )
            losses, self._figures = weighed
        if stage.kl_weight and not self.untouched:
            losses = losses + stage.kl_weight * kl_divergence(moments) / moments.mean[0].numel()
        return losses if judged is not None else self._perceived(losses, reconstructions, images)

    def _pixels(self, made: Tensor, images: Tensor) -> Tensor:
        difference = made - images
        error = difference.abs() if self.stage.pixels == "l1" else difference.square()
        return error.flatten(1).mean(1)

    def _perceived(self, losses: Tensor, made: Tensor, images: Tensor) -> Tensor:
        """`losses` with the perceptual one, if there is one."""
        if self.perceptual is None:
            return losses
        return losses + self.stage.perceptual_weight * self.perceptual(made, images)

    def figures(self) -> dict[str, Tensor]:
        return self._figures

    @torch.no_grad()
    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Of reconstructions from the posterior's mean: L1 on [-1, 1], PSNR in dB, and SSIM."""
        absolute, square, alike = 0.0, 0.0, 0.0
        for batch in self._batches():
            images, reconstructions = self._reconstruct(module, batch)
            made = reconstructions.clamp(-1, 1)
            difference = (made - images).flatten(1).double()
            absolute += difference.abs().mean(1).sum().item()
            square += difference.square().mean(1).sum().item()
            if min(images.shape[-2:]) >= WINDOW:
                alike += ssim(made + 1, images + 1, peak=2.0).sum().item()
        if not self.held_out:
            return {}
        count = len(self.held_out)
        psnr = 10 * float(np.log10(4 / max(square / count, 1e-12)))
        values = {"validation_l1": absolute / count, "validation_psnr": psnr}
        return values | ({"validation_ssim": alike / count} if alike else {})

    @torch.no_grad()
    def picture(self, module: nn.Module) -> bytes:
        """Held-out images above their reconstructions."""
        from PIL import Image

        _, reconstructions = self._reconstruct(module, self.shown)
        rows = [[Image.fromarray(image) for image in self.shown]]
        rows.append([Image.fromarray(image) for image in to_pixels(reconstructions)])
        return pictures.grid(rows, row_labels=("images", "reconstructions"))

    def facts(self) -> dict[str, Any]:
        return {"encodes_as": self.encodes_as} if self.encodes_as else {}

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


def encoding(autoencoder: Autoencoder) -> frozenset[str]:
    """Names of the weights that decoding does without."""
    latents = torch.zeros(1, autoencoder.latent_channels, 4, 4)
    names, weights = zip(*autoencoder.named_parameters(), strict=True)
    found = torch.autograd.grad(autoencoder.decode(latents).sum(), weights, allow_unused=True)
    return frozenset(name for name, gradient in zip(names, found, strict=True) if gradient is None)


def _started(stage: TrainAutoencoder, initial: SnapshotFolder) -> Autoencoder:
    """The initial autoencoder, ready to be trained on; what it is has been checked."""
    from pipelines.stages.train_autoencoder import starting

    starting(stage, initial)
    return initial.autoencoder()


def _encodes_as(initial: SnapshotFolder) -> str:
    """Digest of the autoencoder whose latents are those of one that only differs in its decoder."""
    return initial.record.get("encodes_as") or initial.digest()
