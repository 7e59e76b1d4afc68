"""Any image network of transformers' `AutoModel`, from a local folder: DINOv2, SigLIP, ViT, ConvNeXt."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipelines.embedders.embedding import device_at_hand, settings_digest
from pipelines.embedders.folder import folder_digest, local_folder
from pipelines.extractors.extractor import normalised, square

if TYPE_CHECKING:
    from torch import Tensor

_PARTS = ("*.safetensors", "*.json")
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class TransformerMaps:
    """Its last hidden states: a vector for each patch, or a feature map."""

    kind: Literal["transformers"] = "transformers"
    path: str = field(metadata={"execution": True})
    """Folder with config.json and safetensors, and preprocessor_config.json for mean and deviation
    (ImageNet's without it); its contents decide the result."""
    layer: Literal["last", "pooled"] = "last"
    """`pooled` is the network's own pooled vector, or the mean over places of one that has none."""
    size: int | None = None
    """Side that images are brought to, px; what the network was trained at if None."""

    def identity(self) -> str:
        return settings_digest("transformers maps", folder_digest(self.path, _PARTS))

    def build(self) -> TransformerExtractor:
        return TransformerExtractor(self)


class TransformerExtractor:
    def __init__(self, config: TransformerMaps) -> None:
        import torch
        from transformers import AutoModel

        folder = local_folder(config.path, ("config.json",))
        model: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        model = getattr(model, "vision_model", model)  # of one that also reads: SigLIP, CLIP
        self._model = model.eval().to(device_at_hand())
        self._pooled = config.layer == "pooled"
        settings = self._model.config
        size = config.size or getattr(settings, "image_size", None) or 224
        self._size = int(size[0] if isinstance(size, (list, tuple)) else size)
        self._patch = int(getattr(settings, "patch_size", None) or 1)
        told: dict[str, Any] = {}
        if (folder / "preprocessor_config.json").is_file():
            told = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        self._mean = tuple(told.get("image_mean") or _IMAGENET[0])
        self._std = tuple(told.get("image_std") or _IMAGENET[1])

    def __call__(self, images: Tensor) -> Tensor:
        found = self._model(pixel_values=normalised(square(images, self._size), self._mean, self._std))
        states = found.last_hidden_state
        if self._pooled:
            vector = getattr(found, "pooler_output", None)
            return (
                (states.flatten(2).mean(2) if states.ndim == 4 else states.mean(1))
                if vector is None
                else (vector.flatten(1))
            )
        if states.ndim == 4:
            return states
        side = self._size // self._patch
        # Class and register tokens stand before the patches.
        return states[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
