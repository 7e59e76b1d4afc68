"""How a recipe trains: times, optimization, and what makes it a training of an upscaler."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from diffusion.config.later import later

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

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
    """AdamW, or Muon for the matrices; a learning rate that warms up, stays or decays, and cools down."""

    lr: float = 1e-3
    """Learning rate between warm-up and cooldown."""
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    decayed: Literal["all", "matrices"] = later("all")
    """Which parameters the weight decay is for: `matrices` spares biases, gains and other vectors."""
    matrices: Literal["adamw", "muon"] = later("adamw")
    """The optimizer of the linear and convolution layers inside the blocks (`hidden_matrices`)."""
    matrix_lr: float | None = later(None)
    """Learning rate of `muon`; `lr` if None: its updates are as large as AdamW's."""
    clip: float | None = 1.0
    """Largest norm of a gradient; None does not limit it."""
    warmup: int = 5_000
    """Images until the learning rate is reached."""
    inverse_sqrt_after: int | None = later(None)
    """Images after which the learning rate falls as 1 / sqrt(images_seen); it stays if None."""
    cooldown: int = 0
    """Images before the end over which it falls to 0."""
    cooldown_shape: Literal["linear", "cosine"] = later("linear")
    """`cosine` over the whole training (`cooldown` as long as that) is the usual cosine schedule."""
    ema: float = 0.1
    """Width of the average over weights, relative to the length of the training so far."""
    ema_others: tuple[float, ...] = later(())
    """Widths of further averages, kept to make others from (`diffusion.ema.reconstruction`)."""

    def __post_init__(self) -> None:
        if self.inverse_sqrt_after is not None and self.inverse_sqrt_after < 1:
            raise ValueError(f"inverse_sqrt_after is {self.inverse_sqrt_after}; it must be at least 1 image.")

    def build(self, module: nn.Module) -> tuple[Optimizer, ...]:
        """Optimizers that share out the trained parameters. All can skip a step on the device, as
        `diffusion.training.fit` needs; AdamW because it is fused."""
        from torch.optim import AdamW

        from diffusion.optimizers import Muon, hidden_matrices

        optimizers: list[Optimizer] = []
        rest = [p for p in module.parameters() if p.requires_grad]
        if self.matrices == "muon":
            matrices = hidden_matrices(module)
            if not matrices:
                raise ValueError("`matrices: muon` finds no matrices: the network has no repeated blocks.")
            lr = self.rates(1.0)[1]
            optimizers.append(Muon(matrices, lr=lr, weight_decay=self.weight_decay))
            taken = {id(p) for p in matrices}
            rest = [p for p in rest if id(p) not in taken]
        groups: list[dict[str, Any]] = [{"params": rest}]
        if self.decayed == "matrices":
            groups = [
                {"params": [p for p in rest if p.ndim > 1]},
                {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
            ]
        adamw = AdamW(groups, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True)
        return (adamw, *optimizers)

    def rates(self, factor: float) -> tuple[float, float]:
        """Learning rates of AdamW and of Muon where the schedule stands at `factor`."""
        return self.lr * factor, (self.lr if self.matrix_lr is None else self.matrix_lr) * factor

    def factor(self, images_seen: int, *, batch: int, target_images: int) -> float:
        """The schedule, 0 to 1, in the step that begins at `images_seen`; the target matters in the cooldown
        alone.

        Before it: min((t + batch) / warmup, 1) / sqrt(max(t / inverse_sqrt_after, 1)), as in Karras et al.,
        2024 ("EDM2").
        """
        warm = (images_seen + batch) / self.warmup if self.warmup else 1.0
        cool = min(1.0, (target_images - images_seen) / self.cooldown) if self.cooldown else 1.0
        if self.cooldown_shape == "cosine":
            cool = (1 - math.cos(math.pi * cool)) / 2
        late = images_seen / self.inverse_sqrt_after if self.inverse_sqrt_after else 1.0
        return min(1.0, warm, cool) / math.sqrt(max(1.0, late))

    def learning_rate(self, images_seen: int, *, batch: int, target_images: int) -> float:
        """AdamW's, in the step that begins at `images_seen`."""
        return self.rates(self.factor(images_seen, batch=batch, target_images=target_images))[0]

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


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Draws a transformer's tokens towards a frozen network's features of the clean image, for a while (Yu et
    al., 2025, "REPA"; Singh et al., 2025, "iREPA")."""

    weight: float = 0.5
    """Of the distance, beside the denoising loss."""
    depth: int | None = None
    """Block whose tokens are aligned, counted from 0; a third of the blocks if None."""
    images_seen: int | None = None
    """At which alignment ends; with the cooldown if None, or where that begins before."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"alignment.weight is {self.weight}; it must be above 0.")
        if self.depth is not None and self.depth < 0:
            raise ValueError(f"alignment.depth is {self.depth}; it must be at least 0.")
        if self.images_seen is not None and self.images_seen < 1:
            raise ValueError(f"alignment.images_seen is {self.images_seen}; it must be at least 1.")


TimesConfig = LogitNormalConfig | UniformConfig
