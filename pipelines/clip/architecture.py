"""A whole model of open_clip in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.clip import folder
from pipelines.clip.trainable import BIAS, MAX_SCALE, Images
from pipelines.shards import canonical

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipelines.clip.config import OpenClip

_TOKENIZER = ("tokenizer*.json", "vocab*", "merges.txt", "special_tokens_map.json", "*.model")


class Halves(nn.Module):
    """The model as one call, which is what DDP can see."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        model: Any = self.model
        one, other = model.encode_image(images), model.encode_text(texts)
        scale = model.logit_scale.exp().clamp(max=MAX_SCALE)
        return F.normalize(one, dim=-1), F.normalize(other, dim=-1), scale, model.logit_bias


class WholeModel:
    """A `Trainable`."""

    def __init__(self, config: OpenClip, device: torch.device, *, loss: str, temperature: float) -> None:
        library = folder.open_clip()
        self._path = config.path
        self._settings: dict[str, Any]
        if config.path:
            with folder.standard(config.path) as name:
                self._settings = folder.settings_of(name)["model_cfg"]
            model, preprocess = folder.load(config.path)
            self._tokenizer = folder.load_tokenizer(config.path)
        else:
            self._settings, model, preprocess, self._tokenizer = _from_scratch(library, config)
            with torch.no_grad():
                model.logit_scale.copy_(torch.tensor(1 / temperature).log())
        if "multimodal_cfg" in self._settings:
            raise ValueError("train_clip trains no captioning model: take an architecture without a decoder.")
        if loss == "sigmoid" and model.logit_bias is None:
            model.logit_bias = nn.Parameter(torch.tensor(BIAS))
        if loss != "sigmoid" and model.logit_bias is not None:
            model.logit_bias.requires_grad_(False)
        for half in {"none": (), "image": ("visual",), "text": ("text",)}[config.frozen]:
            getattr(model, half).requires_grad_(False)
        self._preprocess = preprocess
        self._single, self._batch = folder.batched(preprocess)
        self.module = Halves(model.train()).to(device)

    def images(self, decode: Callable[[int], Image], count: int, *, flips: bool) -> Images:
        """Decoded when they are asked for."""

        def take(positions: np.ndarray, rows: np.ndarray, mirrored: np.ndarray) -> Tensor:
            found = self._batch(torch.stack([self._single(decode(row)) for row in rows.tolist()]))
            flipped = torch.from_numpy(mirrored)[:, None, None, None]
            return torch.where(flipped, found.flip(-1), found)

        return take

    def texts(self, texts: Sequence[str]) -> Tensor:
        return self._tokenizer(list(texts))

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        assert isinstance(module, Halves)
        return dict(module.model.state_dict())

    def files(self) -> dict[str, bytes]:
        model: Any = self.module.model
        config = dict(self._settings)
        if model.logit_bias is not None:
            config.setdefault("init_logit_bias", BIAS)
        stated = model.visual.preprocess_cfg
        stated = stated if isinstance(stated, dict) else asdict(stated)
        preprocess = {name: stated[name] for name in ("mean", "std", "interpolation", "resize_mode")}
        made = {folder.CONFIG: canonical({"model_cfg": config, "preprocess_cfg": preprocess})}
        if self._path:
            place = folder.local_folder(self._path)
            found = [file for pattern in _TOKENIZER for file in sorted(place.glob(pattern))]
            name = str(self._settings.get("text_cfg", {}).get("hf_model_name") or "")
            tower = folder.text_tower(place, name)
            found += [tower / "config.json"] if tower is not None else []
            made |= {str(file.relative_to(place)): file.read_bytes() for file in found}
        return made


def _from_scratch(library: Any, config: OpenClip) -> tuple[dict[str, Any], Any, Any, Any]:
    settings = config.settings()
    if settings is None:
        settings = library.get_model_config(config.architecture)
        if settings is None:
            known = ", ".join(library.list_models()[:6])
            raise ValueError(f"open_clip knows no {config.architecture!r}; it knows {known} and others.")
    if settings["text_cfg"].get("hf_model_name"):
        raise ValueError(
            f"{config.architecture} has a text tower of the transformers library: give a `path` to a folder "
            "that has its config and its tokenizer."
        )
    from open_clip.transform import PreprocessCfg, image_transform_v2

    # With a text half of its own: what is trained and what is read back are one layout.
    settings = {**settings, "custom_text": True}
    arguments = {key: value for key, value in settings.items() if key != "custom_text"}
    if "multimodal_cfg" in settings:
        raise ValueError("train_clip trains no captioning model: take an architecture without a decoder.")
    if "timm_model_name" in arguments["vision_cfg"]:
        arguments["vision_cfg"] = {**arguments["vision_cfg"], "timm_model_pretrained": False}
    model = library.CustomTextCLIP(**arguments)
    size = getattr(model.visual, "image_size", 224)
    stated = PreprocessCfg(size=size)
    model.visual.preprocess_cfg = asdict(stated)
    tokenizer = library.SimpleTokenizer(context_length=settings["text_cfg"].get("context_length", 77))
    return settings, model, image_transform_v2(stated, is_train=False), tokenizer
