"""EfficientNet-Lite0 from its package: what is there without a download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipelines import weights
from pipelines.embedders.embedding import device_at_hand, settings_digest
from pipelines.extractors.extractor import square

if TYPE_CHECKING:
    from torch import Tensor

_DEPTHS = {"half": 0, "quarter": 1, "eighth": 2, "sixteenth": 3}


@dataclass(frozen=True, kw_only=True)
class EfficientNetMaps:
    """ImageNet's classifier, 4.7 M parameters: 16, 24, 40 or 112 channels, or 1280 of the whole image."""

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    layer: Literal["half", "quarter", "eighth", "sixteenth", "pooled"] = "sixteenth"
    """How much smaller the map is than the 224 px that the network sees."""

    def identity(self) -> str:
        return settings_digest("efficientnet_lite0", weights.digest("efficientnet-lite0"))

    def build(self) -> EfficientNetExtractor:
        return EfficientNetExtractor(self)


class EfficientNetExtractor:
    def __init__(self, config: EfficientNetMaps) -> None:
        from diffusion.metrics.features import EfficientNetLite0

        self._layer = config.layer
        self._network = EfficientNetLite0(weights.load("efficientnet-lite0")).to(device_at_hand())

    def __call__(self, images: Tensor) -> Tensor:
        from diffusion.metrics.features import SIZE

        seen = square(images, SIZE)
        if self._layer == "pooled":
            return self._network.features(seen)
        return self._network.maps(seen)[_DEPTHS[self._layer]]
