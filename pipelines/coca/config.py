"""Which CoCa a recipe trains."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.embedders.embedding import settings_digest
from pipelines.embedders.folder import folder_digest
from pipelines.places import at_hand

_PARTS = ("*.safetensors", "*.json", "*.txt", "*.model")


@dataclass(frozen=True, kw_only=True)
class SmallCoCa:
    """From nothing, of sizes stated here and with word pieces of its own: for thousands of images."""

    kind: Literal["small"] = "small"
    image_size: int = 64
    """px of the square that the image tower is shown."""
    patch: int = 16
    """px of a patch's side."""
    width: int = 128
    """Of all towers; a head has 32."""
    image_layers: int = 3
    text_layers: int = 2
    decoder_layers: int = 2
    """Blocks that look at the image, each behind one that hears the words."""
    queries: int = 16
    """Tokens that attentional pooling makes of the image."""
    context: int = 24
    """Word pieces of a caption at most, start and end among them; longer ones are cut."""
    pieces: int = 2_000
    """Of the vocabulary, at most: byte pair encoding (Sennrich et al., 2016) of the training captions."""
    patch_dropout: float = 0.0
    """Share of patches that a training step does not see (Li et al., 2023)."""

    def __post_init__(self) -> None:
        if self.image_size % self.patch:
            raise ValueError(
                f"small: image_size {self.image_size} is no multiple of patch {self.patch}: patches tile it."
            )
        if self.width < 32 or self.width % 32:
            raise ValueError(f"small: width is {self.width}; it must be a multiple of 32.")
        if self.context < 4 or self.pieces < 300:
            raise ValueError("small: context is at least 4, pieces at least 300 (256 are single bytes).")

    @property
    def summary(self) -> str:
        return f"{self.width} wide, {self.image_size} px"

    def external(self) -> dict[str, str]:
        return {}

    def settings(self) -> dict[str, Any]:
        """`model_cfg`, but for the size of the vocabulary."""
        text = {"context_length": self.context, "width": self.width, "heads": self.width // 32}
        return {
            "embed_dim": self.width,
            "custom_text": True,
            "vision_cfg": {
                "image_size": self.image_size,
                "patch_size": self.patch,
                "layers": self.image_layers,
                "width": self.width,
                "head_width": 32,
                "attentional_pool": True,
                "attn_pooler_queries": self.queries,
                "attn_pooler_heads": self.width // 32,
                "output_tokens": True,
                "patch_dropout": self.patch_dropout,
            },
            "text_cfg": {
                **text,
                "layers": self.text_layers,
                "embed_cls": True,
                "output_tokens": True,
                "hf_tokenizer_name": "own",
            },
            "multimodal_cfg": {
                **text,
                "layers": self.decoder_layers,
                "attn_pooler_heads": self.width // 32,
            },
        }


@dataclass(frozen=True, kw_only=True)
class NamedCoCa:
    """From nothing, of a config that open_clip brings along (`coca_ViT-B-32`), or of one as JSON."""

    kind: Literal["open_clip"] = "open_clip"
    name: str = ""
    """As open_clip calls it."""
    file: str = field(default="", metadata={"execution": True})
    """A model config as JSON instead; its contents decide, not its place."""

    def __post_init__(self) -> None:
        if bool(self.name) == bool(self.file):
            raise ValueError(
                "open_clip: give the `name` of a config, such as coca_ViT-B-32, or a JSON `file`."
            )

    @property
    def summary(self) -> str:
        return self.name or Path(self.file).stem

    def external(self) -> dict[str, str]:
        return {"coca config": settings_digest(self._text())} if self.file else {}

    def settings(self) -> dict[str, Any]:
        """`model_cfg`. `ValueError` if there is none, or none of a CoCa."""
        if self.file:
            found = json.loads(self._text())
            found = found.get("model_cfg", found)
        else:
            from pipelines.clip.folder import open_clip

            found = open_clip().get_model_config(self.name)
        if not found or "multimodal_cfg" not in found:
            raise ValueError(
                f"{self.name or self.file} is no CoCa of open_clip's, whose names are like coca_ViT-B-32."
            )
        return found

    def _text(self) -> str:
        try:
            return at_hand(self.file).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"There is no config at {self.file}.") from error


@dataclass(frozen=True, kw_only=True)
class TrainedCoCa:
    """From the weights, words and preprocessing of a folder in open_clip's format, or of the stage's
    `initial`."""

    kind: Literal["folder"] = "folder"
    path: str = field(default="", metadata={"execution": True})
    """The folder; its contents decide, not its place. "": the stage's `initial`."""

    @property
    def summary(self) -> str:
        return f"from {self.path.rstrip('/').rpartition('/')[2] or 'initial'}"

    def external(self) -> dict[str, str]:
        return {"coca": folder_digest(self.path, _PARTS)} if self.path else {}


CoCaConfig = SmallCoCa | NamedCoCa | TrainedCoCa
