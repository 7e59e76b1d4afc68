"""Networks that a training may compare reconstructions with originals by.

Another one is another config class here with the same members, joined to `PerceptualConfig`. Which networks
were in a model's loss stands in its snapshot, so that none of them is asked to judge it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipelines import weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

LAYERS = 4
"""Of a network with more, as many are compared, evenly apart."""
_PARTS = ("*.safetensors", "*.json")


@dataclass(frozen=True, kw_only=True)
class HedPerceptual:
    """Edge features: the first blocks of HED's VGG16, from its package."""

    kind: Literal["hed"] = "hed"
    blocks: int = 2
    """1 to 5; each further one sees twice as far, at half the side."""

    def networks(self) -> dict[str, str]:
        """Name -> digest of the weights; known without them."""
        return {"hed": weights.digest("hed")}

    def build(self) -> nn.Module:
        """Images and references in [-1, 1] -> distances [b]; frozen."""
        from diffusion.autoencoders.perceptual import PerceptualLoss

        return PerceptualLoss(weights.load("hed"), blocks=self.blocks)


@dataclass(frozen=True, kw_only=True)
class LpipsPerceptual:
    """LPIPS-HED: all of HED's VGG16, weighed as people judged."""

    kind: Literal["lpips_hed"] = "lpips_hed"

    def networks(self) -> dict[str, str]:
        return {name: weights.digest(name) for name in ("hed", "lpips-heads")}

    def build(self) -> nn.Module:
        from diffusion.metrics.lpips import LPIPSLoss

        return LPIPSLoss(weights.load("hed"), weights.load("lpips-heads"))


@dataclass(frozen=True, kw_only=True)
class EfficientNetPerceptual:
    """Feature maps of EfficientNet-Lite0 (ImageNet-1k), from its package."""

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"

    def networks(self) -> dict[str, str]:
        return {"efficientnet-lite0": weights.digest("efficientnet-lite0")}

    def build(self) -> nn.Module:
        from diffusion.autoencoders.perceptual import FeatureDistance
        from diffusion.metrics.features import EfficientNetLite0

        network = EfficientNetLite0(weights.load("efficientnet-lite0"))
        return _with(network, FeatureDistance(lambda images: network.maps((images + 1) / 2)))


@dataclass(frozen=True, kw_only=True)
class TransformersPerceptual:
    """Hidden states of any vision model that transformers' `AutoModel` reads: DINOv2, CLIP, ConvNeXt, ..."""

    kind: Literal["transformers"] = "transformers"
    path: str = field(metadata={"execution": True})
    """Folder with config.json and safetensors; its contents, not its place, decide the result."""

    def networks(self) -> dict[str, str]:
        from pipelines.embedders.folder import folder_digest

        return {"transformers": folder_digest(self.path, _PARTS)}

    def build(self) -> nn.Module:
        import torch
        from transformers import AutoModel

        from diffusion.autoencoders.perceptual import FeatureDistance
        from pipelines.embedders.folder import local_folder

        folder = local_folder(self.path, ("config.json",))
        model = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        network: nn.Module = getattr(model, "vision_model", model).eval().requires_grad_(False)
        mean, std = _scaling(folder)
        return _with(network, FeatureDistance(_states(network, mean=mean, std=std)))


PerceptualConfig = HedPerceptual | LpipsPerceptual | EfficientNetPerceptual | TransformersPerceptual


def _with(network: nn.Module, distance: nn.Module) -> nn.Module:
    """A distance that takes its network along when it is moved."""
    distance.network = network
    return distance


def _scaling(folder: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pixels in [0, 1] that a network was trained on."""
    import json

    file = folder / "preprocessor_config.json"
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return tuple(said.get("image_mean") or (0.5, 0.5, 0.5)), tuple(said.get("image_std") or (0.5, 0.5, 0.5))


def _states(
    network: nn.Module, *, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Tensor], list[Tensor]]:
    """Images in [-1, 1] to `LAYERS` of a network's hidden states, as maps [b, c, i, j]."""
    from torch.nn import functional as F

    config: Any = network.config
    side = getattr(config, "image_size", None)
    # Only networks of tokens have positions for one size.
    size = side if isinstance(side, int) and hasattr(config, "patch_size") else None

    def states(images: Tensor) -> list[Tensor]:
        x = (images + 1) / 2
        if size is not None and tuple(x.shape[-2:]) != (size, size):
            x = F.interpolate(x, (size, size), mode="bicubic", antialias=True)
        x = (x - x.new_tensor(mean).reshape(1, -1, 1, 1)) / x.new_tensor(std).reshape(1, -1, 1, 1)
        found = network(pixel_values=x, output_hidden_states=True).hidden_states
        chosen = [found[round(n * (len(found) - 1) / LAYERS)] for n in range(1, LAYERS + 1)]
        return [one.transpose(1, 2)[..., None] if one.ndim == 3 else one for one in chosen]

    return states
