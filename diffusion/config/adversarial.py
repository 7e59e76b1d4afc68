"""The discriminator that an autoencoder may be trained against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from diffusion.autoencoders.discriminator import PatchDiscriminator


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Tells patches of images from patches of reconstructions (Isola et al., 2017; Esser et al., 2021)."""

    start: int = 0
    """Images seen from which on it learns and is learned against: where reconstructions have taken shape."""
    weight: float = 0.5
    """Of what it says; with `adaptive`, over the norm of the reconstruction losses' gradient. The larger, the
    sharper and the further from the pixels."""
    adaptive: bool = True
    """Scales its gradient to that of the reconstruction losses at the decoder's last layer (equation 7)."""
    loss: Literal["hinge", "non_saturating"] = "hinge"
    channels: int = 64
    """Of the first convolution; each further one has twice as many, at most eight times."""
    layers: int = 3
    """Convolutions that halve the side. One logit sees 34 px with 2 of them, 70 px with 3."""
    norm: Literal["group", "none"] = "group"
    """Normalisation between convolutions; over a sample, so that a batch's company changes nothing."""
    rate: float = 1.0
    """Its learning rate over the autoencoder's."""

    def __post_init__(self) -> None:
        if self.start < 0 or self.weight < 0 or self.rate <= 0:
            raise ValueError("A discriminator's start and weight must be 0 or more, and its rate above 0.")
        if self.layers < 1 or self.channels < 1:
            raise ValueError(
                f"A discriminator of {self.layers} layers and {self.channels} channels: at least 1 each."
            )

    def build(self, *, image_channels: int = 3) -> PatchDiscriminator:
        from diffusion.autoencoders.discriminator import PatchDiscriminator

        return PatchDiscriminator(
            image_channels=image_channels,
            channels=self.channels,
            layers=self.layers,
            norm=self.norm == "group",
        )
