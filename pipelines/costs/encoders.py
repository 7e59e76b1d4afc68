"""What encoders of captions and images take, by their configurations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.costs import rates
from pipelines.places import at_hand, fetching, remote


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Of one caption, or one image."""

    flops: float
    widths: tuple[int, ...]
    """Of the token states of each encoder."""
    pooled: int
    """Of the pooled vector."""
    told: str
    """What was supposed, in a few words."""


def texts(config: Any) -> Encoding:
    """Of a caption of `rates.TOKENS` tokens, by any kind of text encoder."""
    several = getattr(config, "encoders", None)
    if several:
        each = [texts(one) for one in several]
        return Encoding(
            flops=sum(one.flops for one in each),
            widths=tuple(width for one in each for width in one.widths),
            pooled=sum(one.pooled for one in each),
            told=" and ".join(one.told for one in each),
        )
    if config.kind == "towers":  # a CLIP of MiniLM and EfficientNet-Lite0
        flops, width = rates.EMBEDDERS["minilm"]
        return Encoding(
            flops=flops, widths=(width,), pooled=config.width, told=f"{flops / 1e9:.2g} GFLOP (minilm)"
        )
    flops, width = rates.EMBEDDERS.get(config.kind, rates.EMBEDDERS["transformers"])
    path, pooled = getattr(config, "path", ""), width
    try:
        if config.kind == "open_clip" and path:
            told = json.loads((folder(path) / "open_clip_config.json").read_text(encoding="utf-8"))
            told = told.get("model_cfg", told)
            half, pooled = told["text_cfg"], int(told["embed_dim"])
            width, layers = int(half["width"]), int(half["layers"])
            # The tower takes captions padded to its whole length.
            flops = _blocks(layers, width, int(half.get("context_length", 77)))
        elif config.kind == "transformers":
            told = json.loads((folder(path) / "config.json").read_text(encoding="utf-8"))
            told = told.get("text_config", told)
            width = int(told.get("hidden_size") or told["d_model"])
            layers = int(told.get("num_hidden_layers") or told["num_layers"])
            flops, pooled = _blocks(layers, width, rates.TOKENS), width
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # not here, or not what it should be: the run will say so
    return Encoding(
        flops=flops, widths=(width,), pooled=pooled, told=f"{flops / 1e9:.2g} GFLOP ({config.kind})"
    )


def images(config: Any) -> Encoding:
    """Of an image, by any kind of image encoder."""
    if config.kind == "towers":
        return Encoding(flops=rates.FEATURES, widths=(1280,), pooled=config.width, told="efficientnet_lite0")
    if config.kind == "open_clip":
        flops, told = tower(config.path)
        width = 512
        try:
            found = json.loads((folder(config.path) / "open_clip_config.json").read_text(encoding="utf-8"))
            width = int(found.get("model_cfg", found)["embed_dim"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass
        return Encoding(flops=flops, widths=(width,), pooled=width, told=told)
    return Encoding(flops=rates.FEATURES, widths=(1280,), pooled=1280, told=config.kind)


def maps(config: Any) -> tuple[float, tuple[int, ...], str]:
    """Operations on an image, and shape of the features, of a network that `extract` runs."""
    pooled = getattr(config, "layer", "") == "pooled"
    if config.kind == "efficientnet_lite0":
        shapes = {"half": (16, 112, 112), "quarter": (24, 56, 56), "eighth": (40, 28, 28)}
        return rates.FEATURES, (1280,) if pooled else shapes.get(config.layer, (112, 14, 14)), config.kind
    width, side, flops, told = 768, 14, rates.CLIP, "as ViT-B/32 takes"
    try:
        if config.kind == "open_clip":
            flops, told = tower(config.path)
            found = json.loads((folder(config.path) / "open_clip_config.json").read_text(encoding="utf-8"))
            seen = found.get("model_cfg", found)["vision_cfg"]
            width, side = int(seen.get("width", 768)), int(seen["image_size"]) // int(seen["patch_size"])
        elif config.kind == "transformers":
            found = json.loads((folder(config.path) / "config.json").read_text(encoding="utf-8"))
            found = found.get("vision_config", found)
            width, side = int(found["hidden_size"]), int(found["image_size"]) // int(found["patch_size"])
            layers = int(found["num_hidden_layers"])
            flops, told = _blocks(layers, width, side * side + 1), f"{layers} layers of {width}"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # a network of another kind, or not here
    return flops, (width,) if pooled else (width, side, side), told


def pairs(settings: Any) -> float:
    """Operations of an open_clip model on an image with its caption, by its `model_cfg`; of a CoCa, those of
    writing the caption too."""
    text = settings["text_cfg"]
    length = int(text.get("context_length", 77))
    flops, _ = seen(settings["vision_cfg"])
    flops += _blocks(int(text.get("layers", 12)), int(text.get("width", 512)), length)
    flops += 2.0 * length * int(text.get("width", 512)) * int(text.get("vocab_size", 0))
    said = settings.get("multimodal_cfg")
    if said:
        # A block that hears the words, and one that looks at the image.
        flops += 2 * _blocks(int(said.get("layers", 12)), int(said.get("width", 512)), length)
    return flops


def seen(vision: Any) -> tuple[float, str]:
    """Operations of an open_clip model's image half, by its `vision_cfg`; as ViT-B/32 takes for one that is
    no transformer."""
    width, layers = int(vision.get("width", 768)), vision.get("layers", 12)
    tokens = (int(vision.get("image_size", 224)) // int(vision.get("patch_size", 16))) ** 2 + 1
    if not isinstance(layers, int) or "timm_model_name" in vision:
        return rates.CLIP, "as ViT-B/32 takes"
    return 24.0 * layers * width * width * tokens, f"{layers} layers of {width}, {tokens} tokens"


def tower(path: str) -> tuple[float, str]:
    """Operations of an open_clip checkpoint's half that sees, by its configuration."""
    try:
        told: Any = json.loads((folder(path) / "open_clip_config.json").read_text(encoding="utf-8"))
        return seen(told.get("model_cfg", told)["vision_cfg"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return rates.CLIP, "as ViT-B/32 takes"


def folder(path: str) -> Path:
    """`OSError` for one in a bucket, `ValueError` for one on the hub: a plan copies nothing."""
    text = path.removeprefix("local-dir:")
    if remote(text) is not None:
        raise OSError("in a bucket")
    with fetching(allowed=False):
        return at_hand(text)


def _blocks(layers: int, width: int, tokens: int) -> float:
    """Of a transformer whose hidden layers are four times as wide."""
    return layers * (24.0 * width * width * tokens + 4.0 * tokens * tokens * width)
