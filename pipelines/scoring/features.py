"""What an evaluator reads of images: feature extractors by kind, and a cache of what they gave.

Another extractor is another config class here with the same members, joined to `FeaturesConfig`. Metrics
carry its `label`, so that figures of different extractors are never compared by accident.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cluster.storage import cache_folder
from pipelines import weights

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Extractor = Callable[[Sequence["Image"]], "np.ndarray"]
"""RGB images to fp32 features [n, d]."""


@dataclass(frozen=True, kw_only=True)
class EfficientNetFeatures:
    """1280 pooled features of EfficientNet-Lite0 (ImageNet-1k), from its package."""

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"

    @property
    def label(self) -> str:
        return "EffLite0"

    def identity(self) -> str:
        """Digest of the weights; known without them."""
        return weights.digest("efficientnet-lite0")

    def build(self) -> Extractor:
        import torch

        from diffusion.metrics.features import EfficientNetLite0
        from pipelines.embedders.efficientnet import network_input

        network = EfficientNetLite0(weights.load("efficientnet-lite0"))

        def extract(images: Sequence[Image]) -> np.ndarray:
            with torch.inference_mode():
                return network.features(torch.cat([network_input(image) for image in images])).numpy()

        return extract


FeaturesConfig = EfficientNetFeatures


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Features by what was seen: extractor, the images' digests and their grouping. Loss is no harm."""

    extractor: str
    """Its identity."""

    def get(self, digests: Sequence[str], make: Callable[[], np.ndarray]) -> np.ndarray:
        """Features of one call of the extractor, made if they are not known yet."""
        import numpy as np

        name = hashlib.sha256("\n".join([self.extractor, *digests]).encode()).hexdigest()
        path = cache_folder() / "features" / name[:2] / f"{name}.npy"
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # not there, or torn: made anew
            features = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{uuid.uuid4().hex}")
        with open(temporary, "wb") as file:
            np.save(file, features, allow_pickle=False)
        temporary.replace(path)
        return features
