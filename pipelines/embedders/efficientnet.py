"""Image vectors without a download: pooled features of EfficientNet-Lite0 from its package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipelines import weights
from pipelines.embedders.embedding import batches, device_at_hand, settings_digest

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EfficientNetImages:
    """1280 wide, Apache-2.0; knows ImageNet's classes and no words."""

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"

    def identity(self) -> str:
        return settings_digest("efficientnet_lite0", weights.digest("efficientnet-lite0"))

    def build(self, *, micro_batch: int = 16) -> EfficientNetEmbedder:
        return EfficientNetEmbedder(self, micro_batch)


class EfficientNetEmbedder:
    width = 1280

    def __init__(self, config: EfficientNetImages, micro_batch: int) -> None:
        from diffusion.metrics.features import EfficientNetLite0

        self.identity = config.identity()
        self._micro_batch = micro_batch
        self._device = device_at_hand()
        self._network = EfficientNetLite0(weights.load("efficientnet-lite0")).to(self._device)

    def encode(self, images: Sequence[Image]) -> np.ndarray:
        import numpy as np
        import torch
        import torch.nn.functional as F

        found = [np.empty((0, self.width), np.float16)]
        for run, count in batches(images, self._micro_batch):
            pixels = torch.cat([network_input(image) for image in run]).to(self._device)
            with torch.inference_mode():
                vectors = F.normalize(self._network.features(pixels), dim=-1)
            found.append(vectors[:count].half().cpu().numpy())
        return np.concatenate(found)


def network_input(image: Image) -> Tensor:
    """One RGB image as the network wants it: [1, 3, 224, 224] in [0, 1]."""
    import numpy as np
    import torch

    from diffusion.metrics.features import resize

    # One by one: images of a folder need not be of one size.
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return resize(pixels[None].float() / 255)
