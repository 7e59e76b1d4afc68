"""How a recipe trains: times, optimization, and what makes it a training of an upscaler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import AdamW

    from diffusion.times import LogitNormal, Uniform


@dataclass(frozen=True, kw_only=True)
class UniformConfig:
    """Training times evenly over the path."""

    kind: Literal["uniform"] = "uniform"
    shift: float = 1.0
    """Above 1, times move towards noise; give the sampler the same."""

    def build(self) -> Uniform:
        from diffusion.times import Uniform

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
        from diffusion.times import LogitNormal

        return LogitNormal(mean=self.mean, std=self.std, shift=self.shift)


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
