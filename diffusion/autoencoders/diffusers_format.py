"""Between our autoencoders and folders of diffusers: config.json, and the names of parameters.

Parameters have diffusers' names already, so that its weights load as they are. Dictionaries alone: no file
is read or written here. What a config.json leaves out is what diffusers takes for it, and fields that it does
not know are ignored, as it does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any, TypeVar

from diffusion.config import (
    AutoencoderConfig,
    DeepCompressionAutoencoderConfig,
    DeepCompressionLevel,
    SpatialAutoencoderConfig,
    TinyAutoencoderConfig,
)
from diffusion.latents import LatentStatistics

T = TypeVar("T")

_OLD_NAME = re.compile(r"\.(query|key|value|proj_attn)\.(weight|bias)$")
_NEW_NAME = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

_ACTIVATIONS = {name: name for name in ("relu", "silu", "gelu", "mish")} | {"swish": "silu"}
_NORMS = {"rms_norm": "rms", "batch_norm": "batch"}
_BLOCKS = {"ResBlock": False, "EfficientViTBlock": True}
_DOWN = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
_UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}


def config_of(settings: Mapping[str, Any]) -> AutoencoderConfig:
    """The autoencoder that a config.json of diffusers describes.

    `ValueError` names what is not supported. The scale and shift of latents are left aside: ours are whitened
    by statistics of the data that they are made from.
    """
    name = str(settings.get("_class_name"))
    if name not in _READERS:
        raise ValueError(f"An autoencoder of class {name} is not supported; {', '.join(_READERS)} are.")
    _expect(settings, {"in_channels": 3, "out_channels": 3})
    return _READERS[name](settings)


def settings_of(config: AutoencoderConfig, *, statistics: LatentStatistics | None) -> dict[str, Any]:
    """The config.json with which diffusers builds this autoencoder.

    diffusers has one number where we have one a channel: `scaling_factor` is the inverse of the standard
    deviation of all latents about their mean, which is `shift_factor`; where a class has no shift, of their
    root mean square. A tiny autoencoder's are 1 and 0, since its latents come scaled. Without statistics the
    latents stay as they are.

    `ValueError` for an autoencoder that diffusers does not have.
    """
    match config:
        case SpatialAutoencoderConfig():
            return _from_spatial(config, statistics)
        case TinyAutoencoderConfig():
            return _from_tiny(config)
        case DeepCompressionAutoencoderConfig():
            return _from_deep_compression(config, statistics)
        case _:
            raise ValueError(
                f"diffusers has no autoencoder of kind {config.kind}: only spatial, tiny and deep_compression"
                " ones can be saved in its format."
            )


def state_from(config: AutoencoderConfig, tensors: Mapping[str, T]) -> dict[str, T]:
    """Parameters as our module names them, from diffusers' names, of today or of before 2023."""
    if not isinstance(config, SpatialAutoencoderConfig):
        return dict(tensors)
    return {modern_name(name): tensor for name, tensor in tensors.items()}


def state_to(config: AutoencoderConfig, tensors: Mapping[str, T]) -> dict[str, T]:
    """Parameters as diffusers names them today, from our module's names."""
    del config
    return dict(tensors)


def modern_name(name: str) -> str:
    """A parameter's name, where it may be one of before 2023."""
    return _OLD_NAME.sub(_renamed, name)


def _renamed(name: re.Match[str]) -> str:
    return f".{_NEW_NAME[name[1]]}.{name[2]}"


def _spatial(settings: Mapping[str, Any]) -> SpatialAutoencoderConfig:
    channels = tuple(settings.get("block_out_channels", (64,)))
    count = len(channels)
    _expect(settings, {"act_fn": "silu"}, same=_ACTIVATIONS)
    down = _each(settings, "down_block_types", ("DownEncoderBlock2D",), _DOWN, count)
    up = _each(settings, "up_block_types", ("UpDecoderBlock2D",), _UP, count)
    if down != up[::-1]:
        raise ValueError("down_block_types and up_block_types: attention in other levels is not supported.")
    return SpatialAutoencoderConfig(
        latent_channels=settings.get("latent_channels", 4),
        channels=channels,
        blocks=settings.get("layers_per_block", 1),
        groups=settings.get("norm_num_groups", 32),
        middle_attention=settings.get("mid_block_add_attention", True),
        attention=tuple(level for level, attends in enumerate(down) if attends),
        quant_conv=settings.get("use_quant_conv", True),
        post_quant_conv=settings.get("use_post_quant_conv", True),
    )


def _from_spatial(config: SpatialAutoencoderConfig, statistics: LatentStatistics | None) -> dict[str, Any]:
    attends = [level in config.attention for level in range(len(config.channels))]
    mean, std, _ = _overall(statistics)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": [_name(_DOWN, there) for there in attends],
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.blocks,
        "mid_block_add_attention": config.middle_attention,
        "norm_num_groups": config.groups,
        "out_channels": 3,
        "scaling_factor": 1 / std,
        "shift_factor": mean if statistics else None,
        "up_block_types": [_name(_UP, there) for there in reversed(attends)],
        "use_post_quant_conv": config.post_quant_conv,
        "use_quant_conv": config.quant_conv,
    }


def _tiny(settings: Mapping[str, Any]) -> TinyAutoencoderConfig:
    _expect(settings, {"upsampling_scaling_factor": 2, "upsample_fn": "nearest"})
    widths: list[int] = []
    for name in ("encoder_block_out_channels", "decoder_block_out_channels"):
        found = settings.get(name, (64, 64, 64, 64))
        if len(set(found)) != 1:
            raise ValueError(f"{name} is {list(found)}; only equal channels in all levels are supported.")
        widths.append(found[0])
    return TinyAutoencoderConfig(
        latent_channels=settings.get("latent_channels", 4),
        encoder_channels=widths[0],
        decoder_channels=widths[1],
        encoder_blocks=tuple(settings.get("num_encoder_blocks", (1, 3, 3, 3))),
        decoder_blocks=tuple(settings.get("num_decoder_blocks", (3, 3, 3, 1))),
        activation=_each(settings, "act_fn", "relu", _ACTIVATIONS, 1)[0],
    )


def _from_tiny(config: TinyAutoencoderConfig) -> dict[str, Any]:
    levels = len(config.encoder_blocks)
    return {
        "_class_name": "AutoencoderTiny",
        "act_fn": config.activation,
        "decoder_block_out_channels": [config.decoder_channels] * levels,
        "encoder_block_out_channels": [config.encoder_channels] * levels,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "num_decoder_blocks": list(config.decoder_blocks),
        "num_encoder_blocks": list(config.encoder_blocks),
        "out_channels": 3,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
        "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2,
    }


def _deep_compression(settings: Mapping[str, Any]) -> DeepCompressionAutoencoderConfig:
    # diffusers takes any other word for the other way.
    fold = settings.get("downsample_block_type", "pixel_unshuffle") == "pixel_unshuffle"
    repeat = settings.get("upsample_block_type", "pixel_shuffle") == "interpolate"
    return DeepCompressionAutoencoderConfig(
        latent_channels=settings.get("latent_channels", 32),
        encoder=_levels(settings, "encoder", (2, 2, 2, 3, 3, 3)),
        decoder=_levels(settings, "decoder", (3, 3, 3, 3, 3, 3)),
        head_width=settings.get("attention_head_dim", 32),
        down="pixel_unshuffle" if fold else "conv",
        up="interpolate" if repeat else "pixel_shuffle",
        encoder_shortcut=settings.get("encoder_out_shortcut", True),
        decoder_shortcut=settings.get("decoder_in_shortcut", True),
        last_activation=_each(settings, "decoder_conv_act_fn", "relu", _ACTIVATIONS, 1)[0],
    )


def _levels(
    settings: Mapping[str, Any], side: str, blocks: tuple[int, ...]
) -> tuple[DeepCompressionLevel, ...]:
    channels = settings.get(f"{side}_block_out_channels", (128, 256, 512, 512, 1024, 1024))
    count = len(channels)
    blocks = tuple(settings.get(f"{side}_layers_per_block", blocks))
    attention = _each(settings, f"{side}_block_types", "ResBlock", _BLOCKS, count)
    norms = _each(settings, f"{side}_norm_types", "rms_norm", _NORMS, count)
    activations = _each(settings, f"{side}_act_fns", "silu", _ACTIVATIONS, count)
    scales = settings.get(f"{side}_qkv_multiscales", ((), (), (), (5,), (5,), (5,)))
    if not count == len(blocks) == len(scales):
        raise ValueError(
            f"{side}_layers_per_block and {side}_qkv_multiscales must have {count} members each."
        )
    return tuple(
        DeepCompressionLevel(
            channels=channels[n],
            blocks=blocks[n],
            attention=attention[n],
            scales=tuple(scales[n]) if attention[n] else (),
            norm=norms[n],
            activation=activations[n],
        )
        for n in range(count)
    )


def _from_deep_compression(
    config: DeepCompressionAutoencoderConfig, statistics: LatentStatistics | None
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "_class_name": "AutoencoderDC",
        "attention_head_dim": config.head_width,
        "decoder_act_fns": [level.activation for level in config.decoder],
        "decoder_conv_act_fn": config.last_activation,
        "decoder_in_shortcut": config.decoder_shortcut,
        "decoder_norm_types": [_name(_NORMS, level.norm) for level in config.decoder],
        "downsample_block_type": config.down,
        "encoder_out_shortcut": config.encoder_shortcut,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "scaling_factor": 1 / _overall(statistics)[2],
        "upsample_block_type": config.up,
    }
    for side, levels in (("encoder", config.encoder), ("decoder", config.decoder)):
        settings |= {
            f"{side}_block_out_channels": [level.channels for level in levels],
            f"{side}_block_types": [_name(_BLOCKS, level.attention) for level in levels],
            f"{side}_layers_per_block": [level.blocks for level in levels],
            f"{side}_qkv_multiscales": [list(level.scales) for level in levels],
        }
    return settings


_READERS: dict[str, Callable[[Mapping[str, Any]], AutoencoderConfig]] = {
    "AutoencoderKL": _spatial,
    "AutoencoderTiny": _tiny,
    "AutoencoderDC": _deep_compression,
}


def _overall(statistics: LatentStatistics | None) -> tuple[float, float, float]:
    """Mean, standard deviation and root mean square of all latents."""
    if statistics is None:
        return 0.0, 1.0, 1.0
    mean = fmean(statistics.mean)
    square = fmean(m**2 + s**2 for m, s in zip(statistics.mean, statistics.std, strict=True))
    return mean, math.sqrt(square - mean**2), math.sqrt(square)


def _expect(
    settings: Mapping[str, Any], expected: Mapping[str, Any], *, same: Mapping[str, str] | None = None
) -> None:
    for name, value in expected.items():
        found = settings.get(name, value)
        if (same or {}).get(found, found) != value:
            raise ValueError(f"{name} is {found!r}; only {value!r} is supported.")


def _each(settings: Mapping[str, Any], name: str, default: Any, known: Mapping[str, Any], count: int) -> Any:
    """Our words for one of theirs a level; a single one holds for all."""
    found = settings.get(name, default)
    words = (found,) * count if isinstance(found, str) else tuple(found)
    for word in words:
        if word not in known:
            raise ValueError(f"{name} has {word!r}; only {', '.join(known)} are supported.")
    if len(words) != count:
        raise ValueError(f"{name} has {len(words)} members; there are {count} levels.")
    return tuple(known[word] for word in words)


def _name(known: Mapping[str, T], ours: T) -> str:
    return next(name for name, value in known.items() if value == ours)
