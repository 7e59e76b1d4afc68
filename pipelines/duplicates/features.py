"""What is kept of an image to find its copies by a network, and the network's features of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.duplicates.verification import thumbnail

if TYPE_CHECKING:
    import numpy as np

SIDE = 224
"""Pixels a side that the network sees."""
WIDTH = 1280
"""Of a feature vector."""
MICRO_BATCH = 16
"""Images a forward call, which the last is padded to: float results depend on it."""


@dataclass(frozen=True)
class Seen:
    """All that is needed of a picture: plain bytes, which a child that holds no torch can make and send."""

    thumbnail: bytes
    """uint8 [2, 64, 64]; see `verification.thumbnail`."""
    lightness: bytes
    """uint8 [224, 224]: mean of the largest and the smallest colour, which no shift of hue changes."""


def look_features(image: Any) -> Seen:
    """What is kept of a PIL image; 58 KiB. Needs Pillow and numpy alone."""
    import numpy as np
    from PIL import Image

    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    colours = np.asarray(small).astype(np.uint16)
    light = (colours.max(2) + colours.min(2) + 1) // 2
    return Seen(thumbnail(image), light.astype(np.uint8).tobytes())


class Features:
    """EfficientNet-Lite0 on lightness alone: features that a shift of hue leaves as they are.

    Seen in colours, 83 % of the emoji3d images that were shifted anywhere on the circle of hues are within a
    cosine of .8 of their original; seen in lightness, all are, with as many other pairs as near.
    """

    def __init__(self) -> None:
        from diffusion.metrics.features import EfficientNetLite0
        from pipelines import weights
        from pipelines.embedders.embedding import device_at_hand

        self._device = device_at_hand()
        self._network = EfficientNetLite0(weights.load("efficientnet-lite0")).to(self._device)

    def __call__(self, lightness: Sequence[bytes]) -> np.ndarray:
        """fp16 [images, 1280], each row of length 1."""
        import numpy as np
        import torch
        import torch.nn.functional as F

        from pipelines.embedders.embedding import batches

        found = [np.empty((0, WIDTH), np.float16)]
        for run, count in batches(lightness, MICRO_BATCH):
            gray = np.stack([np.frombuffer(data, np.uint8).reshape(1, SIDE, SIDE) for data in run])
            pixels = torch.from_numpy(gray).to(self._device).float().div(255).expand(-1, 3, -1, -1)
            with torch.inference_mode():
                vectors = F.normalize(self._network.features(pixels), dim=-1)
            found.append(vectors[:count].half().cpu().numpy())
        return np.concatenate(found)


def identity() -> str:
    """Digest of what decides the features."""
    from pipelines import weights
    from pipelines.embedders.embedding import settings_digest

    return settings_digest("lightness", weights.digest("efficientnet-lite0"), MICRO_BATCH)
