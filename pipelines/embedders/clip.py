"""Text and image halves of open_clip models, from a local checkpoint."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.embedders.embedding import TextEmbedding, batches, device_at_hand, settings_digest
from pipelines.embedders.folder import folder_digest, local_folder

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_PARTS = ("*.safetensors", "*.json", "*.txt", "*.model")
_CONFIG = "open_clip_config.json"
_WEIGHTS = "open_clip_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class OpenClipTexts:
    """Captions by the text half of any open_clip architecture."""

    kind: Literal["open_clip"] = "open_clip"
    path: str = field(default="", metadata={"execution": True})
    """Folder (`local-dir:` before it may stay) with open_clip_config.json, or a model config as JSON, and one
    safetensors file; its contents, not its place, decide the result. Empty: the stage's `clip`."""

    def identity(self) -> str:
        _named(self.path)
        return settings_digest("open_clip text", folder_digest(self.path, _PARTS))

    def build(self, *, micro_batch: int = 16) -> OpenClipTextEmbedder:
        return OpenClipTextEmbedder(self, micro_batch)


@dataclass(frozen=True, kw_only=True)
class OpenClipImages:
    """Images by the image half of any open_clip architecture."""

    kind: Literal["open_clip"] = "open_clip"
    path: str = field(default="", metadata={"execution": True})
    """As for the text half."""

    def identity(self) -> str:
        _named(self.path)
        return settings_digest("open_clip image", folder_digest(self.path, _PARTS))

    def build(self, *, micro_batch: int = 16) -> OpenClipImageEmbedder:
        return OpenClipImageEmbedder(self, micro_batch)


class OpenClipTextEmbedder:
    """Token states are the text transformer's, up to the text's end; pooled is the shared space's vector."""

    def __init__(self, config: OpenClipTexts, micro_batch: int) -> None:
        self.identity = config.identity()
        self._micro_batch = micro_batch
        model, _, self._tokenizer = _load(config.path)
        # The text half as a module of its own, whose token states can be asked for.
        self._device = device_at_hand()
        self._text = model.text.to(self._device)
        self._text.output_tokens = True
        tokenizer = getattr(self._tokenizer, "tokenizer", None)
        self._pad = int(getattr(tokenizer, "pad_token_id", None) or getattr(self._text, "pad_id", 0) or 0)
        states, pooled = self._forward([""] * micro_batch)[:2]
        self.width, self.pooled_width = states.shape[-1], pooled.shape[-1]

    def encode(self, texts: Sequence[str]) -> list[TextEmbedding]:
        found = []
        for run, count in batches(list(texts), self._micro_batch):
            states, pooled, lengths = self._forward(run)
            found += [
                TextEmbedding(states[row, : lengths[row]].copy(), pooled[row].copy()) for row in range(count)
            ]
        return found

    def _forward(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, list[int]]:
        import torch
        import torch.nn.functional as F

        tokens = self._tokenizer(texts)
        # By the last token that is no padding: CLIP pads with 0, which is also the exclamation mark.
        places = torch.arange(1, tokens.shape[1] + 1)
        lengths = ((tokens != self._pad) * places).amax(1).clamp(min=1).tolist()
        with torch.inference_mode():
            pooled, states = self._text(tokens.to(self._device))
            pooled = F.normalize(pooled, dim=-1)
        return states.half().cpu().numpy(), pooled.half().cpu().numpy(), lengths


class OpenClipImageEmbedder:
    def __init__(self, config: OpenClipImages, micro_batch: int) -> None:
        self.identity = config.identity()
        self._micro_batch = micro_batch
        self._device = device_at_hand()
        model, self._preprocess, _ = _load(config.path)
        self._model = model.to(self._device)
        self.width = self.encode([_blank()]).shape[-1]

    def encode(self, images: Sequence[Image]) -> np.ndarray:
        import numpy as np
        import torch

        found = []
        for run, count in batches(list(images), self._micro_batch):
            pixels = torch.stack([self._preprocess(image) for image in run])
            with torch.inference_mode():
                vectors = self._model.encode_image(pixels.to(self._device), normalize=True)
            found.append(vectors[:count].half().cpu().numpy())
        return np.concatenate(found) if found else np.empty((0, self.width), np.float16)


def _named(path: str) -> None:
    if not path:
        raise ValueError("An open_clip encoder has no weights: name a `path`, or give the stage a `clip`.")


def _load(path: str) -> tuple[Any, Any, Any]:
    """Model, image preprocessing and tokenizer of a folder."""
    folder = local_folder(path)
    # A config may name a tokenizer on a hub: asking there would hang where none can be reached.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"open_clip does not import ({reason}): it needs a torchvision from the same place as torch."
        ) from error

    with tempfile.TemporaryDirectory(prefix="open-clip-") as standard:
        name = f"local-dir:{_standard(folder, Path(standard))}"
        model, _, preprocess = open_clip.create_model_and_transforms(name, force_custom_text=True)
        tokenizer = open_clip.get_tokenizer(name)
    return model.eval(), preprocess, tokenizer


def _standard(folder: Path, target: Path) -> Path:
    """The folder in open_clip's own layout: itself, or links in `target` to its files."""
    config = folder / _CONFIG
    if not config.is_file():
        found = [f for f in sorted(folder.glob("*.json")) if "vision_cfg" in f.read_text(encoding="utf-8")]
        if len(found) != 1:
            raise ValueError(f"{folder} needs {_CONFIG}, or one model config as JSON beside the safetensors.")
        config = found[0]
    weights = sorted(folder.glob("*.safetensors"))
    if (folder / _WEIGHTS).is_file():
        weights = [folder / _WEIGHTS]
    if len(weights) != 1:
        raise ValueError(f"{folder} has {len(weights)} safetensors files and none is called {_WEIGHTS}.")
    if config.name == _CONFIG and weights[0].name == _WEIGHTS:
        return folder

    settings = json.loads(config.read_text(encoding="utf-8"))
    settings = settings if "model_cfg" in settings else {"model_cfg": settings}
    for file in folder.iterdir():
        (target / file.name).symlink_to(file.resolve())
    (target / _CONFIG).unlink(missing_ok=True)
    (target / _CONFIG).write_text(json.dumps(settings), encoding="utf-8")
    if weights[0].name != _WEIGHTS:
        (target / _WEIGHTS).symlink_to(weights[0].resolve())
        (target / weights[0].name).unlink()
    return target


def _blank() -> Image:
    from PIL import Image

    return Image.new("RGB", (64, 64))
