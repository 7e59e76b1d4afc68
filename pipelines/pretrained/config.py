"""How a recipe names a pretrained denoiser, and how much of it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Trains small matrices beside the weights, which stay as they are (Hu et al., 2022, "LoRA").

    A layer W becomes W + (alpha / rank) B A, with A and B of the rank."""

    rank: int = 16
    alpha: float | None = None
    """As `rank` if None."""
    targets: tuple[str, ...] = ()
    """Ends of the names of the layers that get some; empty: the projections of every attention."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}; it must be at least 1.")
        if self.alpha is not None and self.alpha <= 0:
            raise ValueError(f"lora.alpha is {self.alpha}; it must be above 0.")


@dataclass(frozen=True, kw_only=True)
class DiffusersConfig:
    """A UNet, DiT, SD3 or FLUX in diffusers' format, whose weights a training begins with."""

    kind: Literal["diffusers"] = "diffusers"
    path: str
    """Folder or URL of a whole pipeline, or of its `unet` or `transformer`; or a model of the hub at a
    commit, `org/name@<40 hex digits>`. Its contents, not its place, decide the result."""
    lora: LoRAConfig | None = None
    """Trains adapters alone; all weights if None."""
    guidance: float = 3.5
    """What a FLUX that was distilled from a guided one is told, in training and after it."""


def check_pretrained(stage: Any) -> None:
    """`ValueError` for fields of a train stage that a pretrained denoiser does not go with."""
    if stage.denoiser is None:
        return
    if stage.initial is not None:
        raise ValueError("Both `denoiser` and `initial` say what training begins with: leave one out.")
    if stage.low_resolution is not None or stage.objective != "flow":
        raise ValueError(
            "A pretrained `denoiser` is no upscaler: leave `low_resolution` and `objective` out."
        )
    if stage.tokens < 1 or stage.alignment is not None:
        raise ValueError("`tokens` and `alignment` are of a new `network`: leave them or `denoiser` out.")
