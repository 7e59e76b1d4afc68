"""What is known of a stage's output before it is there, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.costs import rates
from pipelines.costs.arithmetic import Work


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is known of an output: only what later stages need."""

    samples: int = 0
    side: int = 0
    """Of its images, px."""
    image_bytes: float = 0.0
    """Of one image."""
    captions: int = 0
    """Distinct ones."""
    text_width: int | None = None
    classes: int = 0
    coder: Any = None
    """Configuration of the autoencoder that it holds, or was encoded by."""
    latents: tuple[int, int] | None = None
    """Channels and side."""
    encoder: Work = Work()
    decoder: Work = Work()
    denoiser: Work = Work()


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one stage."""

    bytes: float | None = None
    """That its output takes in the store, with the checkpoints that are kept."""
    samples: int = 0
    """Of a dataset."""
    columns: Mapping[str, float] = field(default_factory=dict)
    """Of a dataset: bytes of each column an image, headers and padding of the tar among them; `index` is the
    table beside the tars. Together with `samples` they make `bytes`."""
    seconds: float | None = None
    gpus: float = 0.0
    """That it holds meanwhile."""
    flops: float = 0.0
    price: float = 0.0
    """That endpoints ask, in the currency of their prices."""
    measured: bool = False
    """Whether it is done, and these are the figures of its run."""

    @property
    def gpu_hours(self) -> float:
        return self.gpus * (self.seconds or 0.0) / 3600

    @property
    def for_million(self) -> float | None:
        """Seconds for a million samples of a dataset at the same rate, started once."""
        if not self.samples or self.seconds is None:
            return None
        # Of a short run nobody knows what of it was starting: half of it at most.
        starting = min(rates.START, self.seconds / 2 if self.measured else self.seconds)
        return starting + 1e6 * (self.seconds - starting) / self.samples


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of a recipe."""

    stages: Mapping[str, Cost]
    assumptions: tuple[str, ...]
    """One line each: images that are supposed, rates and who says so."""

    @property
    def total(self) -> Cost:
        """Of what is still to run."""
        left = [cost for cost in self.stages.values() if not cost.measured]
        return Cost(
            bytes=sum(cost.bytes or 0 for cost in left),
            seconds=sum(cost.seconds or 0 for cost in left),
            flops=sum(cost.flops for cost in left),
            price=sum(cost.price for cost in left),
        )

    @property
    def gpu_hours(self) -> float:
        return sum(cost.gpu_hours for cost in self.stages.values() if not cost.measured)
