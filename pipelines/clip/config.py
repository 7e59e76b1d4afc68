"""What `train_clip` can train."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipelines.embedders.folder import folder_digest

if TYPE_CHECKING:
    import torch

    from pipelines.clip.trainable import Trainable

PARTS = ("*.safetensors", "*.json", "*.txt", "*.model", "*/*/config.json")


@dataclass(frozen=True, kw_only=True)
class Towers:
    """EfficientNet-Lite0 and MiniLM as their packages bring them, frozen, and trained projections of both.

    Their features are computed once, so that a step costs two small matrix products.
    """

    kind: Literal["towers"] = "towers"
    width: int = 384
    """Of the shared space."""
    image_head: Literal["linear", "mlp"] = "linear"
    """Projection of the image features; `mlp` has one hidden layer of twice the width."""
    text_head: Literal["none", "linear", "mlp"] = "none"
    """Projection of the mean of MiniLM's states; `none` takes it as it is, and needs a `width` of 384."""
    dropout: float = 0.5
    """Share of the image features that a step does not see."""

    def __post_init__(self) -> None:
        if self.width < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"towers: width is {self.width} and dropout {self.dropout:g}; "
                "width is at least 1, dropout from 0 to below 1."
            )
        if self.text_head == "none" and self.width != 384:
            raise ValueError(f"towers: text_head none has a width of 384, and not of {self.width}.")

    @property
    def summary(self) -> str:
        return f"projections of frozen towers to {self.width}"

    def external(self) -> dict[str, str]:
        from pipelines import weights

        return {name: weights.digest(name) for name in ("efficientnet-lite0", "minilm")}

    def build(self, device: torch.device, *, loss: str, temperature: float, seed: int) -> Trainable:
        from pipelines.clip.towers import FrozenTowers

        return FrozenTowers(self, device, loss=loss, temperature=temperature, seed=seed)


@dataclass(frozen=True, kw_only=True)
class OpenClip:
    """A model of open_clip, all of it trained: from scratch, or from a checkpoint on."""

    kind: Literal["open_clip"] = "open_clip"
    architecture: str = ""
    """A name that open_clip knows (`ViT-B-32`), or a file with a model config as JSON; from scratch."""
    path: str = field(default="", metadata={"execution": True})
    """Folder of a checkpoint to start from, in place of `architecture`; its contents decide."""
    frozen: Literal["none", "image", "text"] = "none"
    """A half that is not trained (Zhai et al., 2022: a good image half is best left as it is)."""

    def __post_init__(self) -> None:
        if bool(self.architecture) == bool(self.path):
            raise ValueError(
                "open_clip: name an `architecture` to train from scratch, or a `path` to start from."
            )

    @property
    def summary(self) -> str:
        return self.architecture or "an open_clip checkpoint"

    def external(self) -> dict[str, str]:
        if self.path:
            return {"open_clip": folder_digest(self.path, PARTS)}
        found = self.settings()
        return {"architecture": _digest(found)} if self.architecture.endswith(".json") else {}

    def settings(self) -> dict[str, Any] | None:
        """The model config of a JSON file; None for a name. `ValueError` if it is none."""
        import json

        from pipelines.places import at_hand

        if not self.architecture.endswith(".json"):
            return None
        try:
            found = json.loads(at_hand(self.architecture).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.architecture} is not a file of JSON.") from error
        found = found.get("model_cfg", found) if isinstance(found, dict) else {}
        if not {"embed_dim", "vision_cfg", "text_cfg"} <= set(found):
            raise ValueError(f"{self.architecture} needs embed_dim, vision_cfg and text_cfg.")
        return found

    def build(self, device: torch.device, *, loss: str, temperature: float, seed: int) -> Trainable:
        from pipelines.clip.architecture import WholeModel

        return WholeModel(self, device, loss=loss, temperature=temperature)


ClipConfig = Towers | OpenClip


def _digest(settings: Any) -> str:
    import hashlib

    from pipelines.shards import canonical

    return hashlib.sha256(canonical(settings)).hexdigest()
