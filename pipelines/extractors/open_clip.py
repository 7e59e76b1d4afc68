"""The image half of any open_clip architecture: its tokens or feature map, before they are pooled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipelines.embedders.embedding import device_at_hand, settings_digest
from pipelines.embedders.folder import folder_digest
from pipelines.extractors.extractor import normalised, square

if TYPE_CHECKING:
    from torch import Tensor

_PARTS = ("*.safetensors", "*.json")


@dataclass(frozen=True, kw_only=True)
class OpenClipMaps:
    """What the last block of a tower gives for each patch, or the pooled vector."""

    kind: Literal["open_clip"] = "open_clip"
    path: str = field(default="", metadata={"execution": True})
    """Folder with open_clip_config.json and safetensors; its contents decide the result. Empty: the stage's
    `clip`."""
    layer: Literal["last", "pooled"] = "last"

    def identity(self) -> str:
        if not self.path:
            raise ValueError(
                "The open_clip network has no weights: name a `path`, or give the stage a `clip`."
            )
        return settings_digest("open_clip maps", folder_digest(self.path, _PARTS))

    def build(self) -> OpenClipExtractor:
        return OpenClipExtractor(self)


class OpenClipExtractor:
    def __init__(self, config: OpenClipMaps) -> None:
        from pipelines.clip import folder

        self._pooled = config.layer == "pooled"
        self._tower: Any = folder.load_half(config.path, "visual").to(device_at_hand())
        size = getattr(self._tower, "image_size", 224)
        self._size = int(size[0] if isinstance(size, (tuple, list)) else size)
        steps = getattr(folder.load_preprocess(config.path, self._size), "transforms", ())
        last: Any = steps[-1] if steps else None
        self._mean = tuple(map(float, getattr(last, "mean", (0.0,) * 3)))
        self._std = tuple(map(float, getattr(last, "std", (1.0,) * 3)))

    def __call__(self, images: Tensor) -> Tensor:
        seen = normalised(square(images, self._size), self._mean, self._std)
        if self._pooled:
            found = self._tower(seen)
            return found[0] if isinstance(found, tuple) else found
        told = self._tower.forward_intermediates(
            seen, indices=1, intermediates_only=True, normalize_intermediates=True, output_fmt="NCHW"
        )
        return told["image_intermediates"][-1]
