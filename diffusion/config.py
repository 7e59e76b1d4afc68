"""What a recipe can choose in the core: frozen dataclasses that load without torch and build with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import AdamW

    from diffusion.autoencoders.autoencoder import Autoencoder
    from diffusion.denoiser import AnyDenoiser
    from diffusion.guidance import ClassifierFree
    from diffusion.networks.dit import DiT
    from diffusion.networks.unet import UNet
    from diffusion.noise import LogitNormal, Uniform
    from diffusion.samplers.euler import Euler
    from diffusion.samplers.heun import Heun


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """A diffusion transformer of about 14 width^2 depth parameters, on (latent side / patch)^2 tokens."""

    kind: Literal["dit"] = "dit"
    width: int = 256
    """Channels of a token."""
    depth: int = 6
    """Blocks."""
    heads: int = 4
    """Attention heads; width / heads must be a multiple of 4, and 32 to 64 is usual."""
    patch: int = 2
    """Side of a token, in latents."""
    mlp_ratio: float = 8 / 3
    """Hidden width of the feed-forward over width; 8/3 with its three matrices costs what 4 does with two."""
    cross_every: int = 1
    """One block in so many looks at the text tokens."""

    def build(
        self,
        *,
        channels: int,
        size: int,
        classes: int = 0,
        text_width: int | None = None,
        low_channels: int = 0,
    ) -> DiT:
        """For latents of `channels` x `size` x `size`; classes 0, text_width None, low_channels 0: none."""
        from diffusion.networks.dit import DiT

        return DiT(
            channels=channels,
            size=size,
            classes=classes,
            text_width=text_width,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            patch=self.patch,
            mlp_ratio=self.mlp_ratio,
            cross_every=self.cross_every,
            low_channels=low_channels,
        )


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Convolutions at several scales: for latents or pixels of any size, as upscalers take them.

    Of a caption it sees the pooled vector alone.
    """

    kind: Literal["unet"] = "unet"
    channels: int = 48
    """Of the finest level."""
    multipliers: tuple[int, ...] = (1, 2)
    """Channels of each level over `channels`, fine to coarse; each level after the first halves the side."""
    blocks: int = 1
    """Residual blocks a level, on the way down and again on the way up."""
    stem: int = 2
    """Side of the blocks of latents that are folded into channels before the first convolution."""

    def build(
        self,
        *,
        channels: int,
        size: int,
        classes: int = 0,
        text_width: int | None = None,
        low_channels: int = 0,
    ) -> UNet:
        """For latents of `channels` x any size; classes 0, text_width None, low_channels 0: without."""
        from diffusion.networks.unet import UNet

        return UNet(
            channels=channels,
            classes=classes,
            text_width=text_width,
            low_channels=low_channels,
            widths=tuple(self.channels * m for m in self.multipliers),
            blocks=self.blocks,
            stem=self.stem,
        )


@dataclass(frozen=True, kw_only=True)
class KLAutoencoderConfig:
    """A convolutional autoencoder with a Gaussian posterior."""

    kind: Literal["kl"] = "kl"
    latent_channels: int = 8
    channels: int = 64
    """Of the finest level."""
    multipliers: tuple[int, ...] = (1, 2)
    """Channels of each level over `channels`, fine to coarse; each level after the first halves the side."""
    stem: int = 2
    """Side of the pixel blocks that are folded into channels before the first convolution."""
    blocks: int = 1
    """Residual blocks a level in the encoder; the decoder has one more."""

    @property
    def factor(self) -> int:
        """Pixels per latent, along a side."""
        return self.stem * 2 ** (len(self.multipliers) - 1)

    def build(self, *, image_channels: int = 3) -> Autoencoder:
        from diffusion.autoencoders.kl import KLAutoencoder

        return KLAutoencoder(
            image_channels=image_channels,
            latent_channels=self.latent_channels,
            channels=tuple(self.channels * m for m in self.multipliers),
            stem=self.stem,
            blocks=self.blocks,
        )


@dataclass(frozen=True, kw_only=True)
class IdentityAutoencoderConfig:
    """Pixels as latents."""

    kind: Literal["identity"] = "identity"

    @property
    def factor(self) -> int:
        return 1

    def build(self, *, image_channels: int = 3) -> Autoencoder:
        from diffusion.autoencoders.identity import IdentityAutoencoder

        return IdentityAutoencoder(image_channels=image_channels)


NetworkConfig = DiTConfig | UNetConfig
AutoencoderConfig = KLAutoencoderConfig | IdentityAutoencoderConfig


@dataclass(frozen=True, kw_only=True)
class UniformConfig:
    """Training times evenly over the path."""

    kind: Literal["uniform"] = "uniform"
    shift: float = 1.0
    """Above 1, times move towards noise; give the sampler the same."""

    def build(self) -> Uniform:
        from diffusion.noise import Uniform

        return Uniform(shift=self.shift)


@dataclass(frozen=True, kw_only=True)
class LogitNormalConfig:
    """Training times mostly in the middle of the path: logit(t) ~ N(mean, std^2)."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    """Above 1, times move towards noise; give the sampler the same."""

    def build(self) -> LogitNormal:
        from diffusion.noise import LogitNormal

        return LogitNormal(mean=self.mean, std=self.std, shift=self.shift)


@dataclass(frozen=True, kw_only=True)
class EulerConfig:
    """First order: one call of the network a step."""

    kind: Literal["euler"] = "euler"
    steps: int = 50
    shift: float = 1.0
    """Above 1, more steps lie near the noise."""

    def build(self) -> Euler:
        from diffusion.samplers.euler import Euler

        return Euler(steps=self.steps, shift=self.shift)


@dataclass(frozen=True, kw_only=True)
class HeunConfig:
    """Second order: two calls of the network a step, and far fewer steps for the same error."""

    kind: Literal["heun"] = "heun"
    steps: int = 18
    shift: float = 1.0
    """Above 1, more steps lie near the noise."""

    def build(self) -> Heun:
        from diffusion.samplers.heun import Heun

        return Heun(steps=self.steps, shift=self.shift)


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """How far the conditions are followed, at the price of variety and of a second call of the network."""

    scale: float = 2.0
    """1 is no guidance."""
    interval: tuple[float, float] = (0.0, 1.0)
    """First and last time that is guided, 0 (image) to 1 (noise)."""

    def build(self, denoiser: AnyDenoiser) -> ClassifierFree:
        from diffusion.guidance import ClassifierFree

        return ClassifierFree(denoiser, scale=self.scale, interval=self.interval)


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """AdamW with a linear warm-up, a constant learning rate, and a linear cooldown at the end."""

    lr: float = 1e-3
    """Learning rate between warm-up and cooldown."""
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float | None = 1.0
    """Largest norm of a gradient; None does not limit it."""
    warmup: int = 5_000
    """Images until the learning rate is reached."""
    cooldown: int = 0
    """Images before the end over which it falls to 0."""
    ema: float = 0.1
    """Width of the average over weights, relative to the length of the training so far."""

    def build(self, module: nn.Module) -> AdamW:
        """Fused, which `diffusion.training.fit` needs in order to skip a step on the device."""
        from torch.optim import AdamW

        trained = [p for p in module.parameters() if p.requires_grad]
        return AdamW(trained, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True)

    def learning_rate(self, images_seen: int, *, batch: int, target_images: int) -> float:
        """Of the step that begins at `images_seen`; the target matters in the cooldown alone."""
        warm = (images_seen + batch) / self.warmup if self.warmup else 1.0
        cool = (target_images - images_seen) / self.cooldown if self.cooldown else 1.0
        return self.lr * min(1.0, warm, cool)

    def before_cooldown(self, images_seen: int, *, batch: int, target_images: int) -> bool:
        """Whether a training to `target_images` is, at `images_seen`, what every longer one is there too."""
        return images_seen - batch <= target_images - self.cooldown


@dataclass(frozen=True, kw_only=True)
class LowResolutionConfig:
    """Makes a training one of an upscaler: the denoiser is told each image `factor` times smaller."""

    factor: int = 2
    """Side of the large image over that of the small one."""
    noise: float = 0.5
    """Highest level of noise mixed into the small image, below 1: training draws levels evenly up to it."""
    crop: int | None = None
    """Side of the piece of a large image that a training step sees, px; the whole image if None."""

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise ValueError(f"factor is {self.factor}; an upscaler's is 2 or more.")
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise is {self.noise}; it must be at least 0 and below 1.")
        if self.crop is not None and (self.crop < 1 or self.crop % self.factor):
            raise ValueError(f"crop is {self.crop}; it must be a multiple of the factor, {self.factor}.")


TimesConfig = LogitNormalConfig | UniformConfig
SamplerConfig = HeunConfig | EulerConfig
