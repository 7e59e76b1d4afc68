"""Against diffusers' own classes. In one file, because importing them takes most of the time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from diffusion.autoencoders.diffusers_format import config_of, settings_of, state_from, state_to
from diffusion.config import (
    DeepCompressionAutoencoderConfig,
    IdentityAutoencoderConfig,
    KLAutoencoderConfig,
    SpatialAutoencoderConfig,
    TinyAutoencoderConfig,
)
from diffusion.latents import LatentStatistics


def spatial(levels: int = 2, *, attention: tuple[int, ...] = (), **changed: Any) -> dict[str, Any]:
    kinds = ["Attn" if n in attention else "" for n in range(levels)]
    base = {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [8, 16, 24][:levels],
        "down_block_types": [f"{kind}DownEncoderBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)],
        "norm_num_groups": 4,
        "latent_channels": 3,
    }
    return base | changed


def tiny(**changed: Any) -> dict[str, Any]:
    base = {
        "_class_name": "AutoencoderTiny",
        "encoder_block_out_channels": [8, 8, 8],
        "decoder_block_out_channels": [6, 6, 6],
        "num_encoder_blocks": [1, 2, 3],
        "num_decoder_blocks": [3, 2, 1],
        "latent_channels": 5,
    }
    return base | changed


def deep_compression(**changed: Any) -> dict[str, Any]:
    kinds = ["ResBlock", "EfficientViTBlock", "EfficientViTBlock"]
    base = {
        "_class_name": "AutoencoderDC",
        "latent_channels": 4,
        "attention_head_dim": 4,
        "encoder_block_types": kinds,
        "decoder_block_types": kinds,
        "encoder_block_out_channels": [8, 16, 16],
        "decoder_block_out_channels": [8, 16, 16],
        "encoder_layers_per_block": [1, 1, 2],
        "decoder_layers_per_block": [2, 1, 1],
        "encoder_qkv_multiscales": [[], [5], [3, 5]],
        "decoder_qkv_multiscales": [[], [], [5]],
    }
    return base | changed


HALF = {"encoder_layers_per_block": [0, 1, 1], "decoder_layers_per_block": [0, 2, 1]}
RESAMPLED = {"downsample_block_type": "conv", "upsample_block_type": "interpolate"}

OPTIONS = [
    spatial(1),
    spatial(norm_num_groups=8, latent_channels=5, act_fn="swish", mid_block_add_attention=False),
    spatial(use_quant_conv=False, use_post_quant_conv=False),
    spatial(use_quant_conv=False),
    spatial(3, attention=(1, 2), layers_per_block=2),
    tiny(num_encoder_blocks=[0, 1, 1], num_decoder_blocks=[1, 1, 0]),
    *(tiny(act_fn=name) for name in ("silu", "gelu", "mish")),
    deep_compression(),
    deep_compression(**HALF),
    deep_compression(**HALF, **RESAMPLED),
    deep_compression(
        decoder_norm_types=["batch_norm", "batch_norm", "rms_norm"], decoder_act_fns=["relu", "silu", "silu"]
    ),
    deep_compression(encoder_out_shortcut=False, decoder_in_shortcut=False, decoder_conv_act_fn="silu"),
    deep_compression(encoder_block_types="ResBlock", decoder_block_types="ResBlock", decoder_act_fns="gelu"),
    deep_compression(encoder_block_out_channels=[4, 16, 8], decoder_block_out_channels=[4, 8, 32]),
]


def theirs(settings: Mapping[str, Any], *, device: str = "cpu") -> Any:
    """diffusers' module, every number of it drawn: no scale is 1 and no bias 0."""
    kind = getattr(diffusers, settings["_class_name"])
    with torch.device(device):
        module: nn.Module = kind.from_config({k: v for k, v in settings.items() if k != "_class_name"})
    generator = torch.Generator().manual_seed(0)
    if device != "meta":
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.2 * (tensor.abs().mean() + 0.1) * torch.rand(tensor.shape, generator=generator)
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize("settings", OPTIONS)
def test_it_is_diffusers_autoencoder_there_and_back(settings: dict[str, Any]) -> None:
    reference = theirs(settings)
    config = config_of(settings)
    autoencoder = config.build()
    autoencoder.load_state_dict(state_from(config, reference.state_dict()))
    autoencoder.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    # DC-AE takes another formula where places are fewer than the channels of a head: 4 x 4, and 4 x 6.
    for height, width in ((4, 4), (16, 24)):
        images = torch.rand(2, 3, height, width, generator=generator) * 2 - 1
        encoded, moments = reference.encode(images), autoencoder.encode(images)
        if "latent_dist" in encoded:
            close(moments.mean, encoded.latent_dist.mean)
            close(moments.std, encoded.latent_dist.std)
        else:
            close(moments.mean, encoded["latent" if "latent" in encoded else "latents"])
            assert not moments.std.any()
        # Large enough that a tiny decoder bends them.
        latents = 4 * torch.randn(moments.mean.shape, generator=generator)
        decoded = reference.decode(latents).sample
        close(autoencoder.decode(latents), decoded)
        assert moments.mean.std() > 1e-2  # something was compared
        assert decoded.std() > 1e-2

    written = settings_of(config, statistics=None)
    assert config_of(written) == config
    again = theirs(written, device="meta")
    again.load_state_dict(state_to(config, autoencoder.state_dict()), strict=True, assign=True)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    close(again.decode(latents).sample, decoded)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


KL = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.30.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
BARE = {"use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": True}
TAESD = {
    "_class_name": "AutoencoderTiny",
    "act_fn": "relu",
    "block_out_channels": [64, 64, 64, 64],
    "decoder_block_out_channels": [64, 64, 64, 64],
    "encoder_block_out_channels": [64, 64, 64, 64],
    "force_upcast": False,
    "in_channels": 3,
    "latent_channels": 4,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "num_decoder_blocks": [3, 3, 3, 1],
    "num_encoder_blocks": [1, 3, 3, 3],
    "out_channels": 3,
    "scaling_factor": 1.0,
    "upsampling_scaling_factor": 2,
}
SANA = {
    "_class_name": "AutoencoderDC",
    "attention_head_dim": 32,
    "decoder_act_fns": "silu",
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "decoder_norm_types": "rms_norm",
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "downsample_block_type": "conv",
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "in_channels": 3,
    "latent_channels": 32,
    "scaling_factor": 0.41407,
    "upsample_block_type": "interpolate",
}


def general(latents: int, channels: list[int]) -> dict[str, Any]:
    """DC-AE as it came before SANA's."""
    attention = len(channels) - 3
    kinds = ["ResBlock"] * 3 + ["EfficientViTBlock"] * attention
    return {
        "_class_name": "AutoencoderDC",
        "decoder_act_fns": ["relu"] * 3 + ["silu"] * attention,
        "decoder_block_out_channels": channels,
        "decoder_block_types": kinds,
        "decoder_layers_per_block": [0, 5, 10] + [2] * attention,
        "decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * attention,
        "decoder_qkv_multiscales": [[]] * len(channels),
        "downsample_block_type": "pixel_unshuffle",
        "encoder_block_out_channels": channels,
        "encoder_block_types": kinds,
        "encoder_layers_per_block": [0, 4, 8] + [2] * attention,
        "encoder_qkv_multiscales": [[]] * len(channels),
        "latent_channels": latents,
        "upsample_block_type": "pixel_shuffle",
    }


SIXTEEN = KL | BARE | {"latent_channels": 16, "shift_factor": 0.0609, "scaling_factor": 1.5305}
FULL = [
    pytest.param(KL, 8, 83_653_863, id="SD 1.5"),
    pytest.param(SIXTEEN, 8, 83_819_683, id="SD 3"),
    pytest.param(TAESD, 8, 2_445_063, id="TAESD"),
    pytest.param(TAESD | {"latent_channels": 16, "shift_factor": 0.0}, 8, 2_458_899, id="TAEF1"),
    pytest.param(SANA, 32, 312_250_275, id="SANA"),
    pytest.param(general(32, [128, 256, 512, 512, 1024, 1024]), 32, None, id="f32c32"),
    pytest.param(general(128, [128, 256, 512, 512, 1024, 1024, 2048]), 64, None, id="f64c128"),
    pytest.param(general(512, [128, 256, 512, 512, 1024, 1024, 2048, 2048]), 128, None, id="f128c512"),
]


@pytest.mark.parametrize(("settings", "factor", "parameters"), FULL)
def test_known_checkpoints_have_a_place_for_every_parameter(
    settings: dict[str, Any], factor: int, parameters: int | None
) -> None:
    config = config_of(settings)
    with torch.device("meta"):
        autoencoder = config.build()
    reference = theirs(settings, device="meta").state_dict()
    assert {name: t.shape for name, t in autoencoder.state_dict().items()} == {
        name: t.shape for name, t in reference.items()
    }
    assert config.factor == autoencoder.factor == factor
    assert config.latent_channels == autoencoder.latent_channels == settings["latent_channels"]
    if parameters is not None:
        assert sum(p.numel() for p in autoencoder.parameters()) == parameters


def test_defaults_are_the_most_used_shapes() -> None:
    assert config_of(KL) == SpatialAutoencoderConfig()
    assert config_of(TAESD) == TinyAutoencoderConfig()
    assert config_of(SANA) == DeepCompressionAutoencoderConfig()
    assert config_of(KL | {"sample_size": 1024, "scaling_factor": 0.13025}) == config_of(KL)  # SDXL
    assert config_of(SIXTEEN | {"shift_factor": 0.1159, "scaling_factor": 0.3611}) == config_of(
        SIXTEEN
    )  # FLUX


def test_what_a_folder_leaves_out_is_what_diffusers_takes_for_it() -> None:
    for name in ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"):
        bare = {"_class_name": name}
        with torch.device("meta"):
            mine = config_of(bare).build().state_dict()
        reference = theirs(bare, device="meta")
        assert {n: t.shape for n, t in mine.items()} == {
            n: t.shape for n, t in reference.state_dict().items()
        }
        complete = dict(reference.config) | bare
        assert config_of(complete) == config_of(bare)


def test_attention_under_its_old_names_is_read() -> None:
    settings = spatial(attention=(1,))
    reference = theirs(settings)
    old = {}
    for name, tensor in reference.state_dict().items():
        for new, former in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{former}.")
        old[name] = tensor
    assert any(".mid_block.attentions.0.query.weight" in name for name in old)
    renamed = state_from(config_of(settings), old)
    assert renamed.keys() == reference.state_dict().keys()
    assert all(torch.equal(renamed[name], tensor) for name, tensor in reference.state_dict().items())


def test_the_scale_of_latents_is_that_of_all_channels() -> None:
    """Drawn from the statistics: scaled as diffusers does it, all latents have mean 0 and deviation 1."""
    statistics = LatentStatistics(mean=(1.0, -2.0, 0.5), std=(2.0, 3.0, 0.1))
    drawn = torch.randn(20_000, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    latents = statistics.unwhiten(drawn)
    settings = settings_of(config_of(spatial()), statistics=statistics)
    scaled = (latents - settings["shift_factor"]) * settings["scaling_factor"]
    assert scaled.mean().item() == pytest.approx(0, abs=0.02)
    assert scaled.std().item() == pytest.approx(1, abs=0.02)

    deep = settings_of(config_of(deep_compression()), statistics=statistics)
    assert (latents * deep["scaling_factor"]).square().mean().item() == pytest.approx(1, abs=0.02)
    assert "shift_factor" not in deep

    small = settings_of(config_of(tiny()), statistics=statistics)
    assert (small["scaling_factor"], small["shift_factor"]) == (1, 0)
    without = settings_of(config_of(spatial()), statistics=None)
    assert (without["scaling_factor"], without["shift_factor"]) == (1, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_class_name": "VQModel"}, "class VQModel is not supported; AutoencoderKL, "),
        ({}, "class None"),
        (KL | {"in_channels": 4}, "in_channels is 4; only 3"),
        (KL | {"act_fn": "relu"}, "act_fn is 'relu'; only 'silu'"),
        (KL | {"down_block_types": ["DownEncoderBlock2D"] * 3}, "has 3 members; there are 4 levels"),
        (KL | {"up_block_types": ["UpDecoderBlock3D"] * 4}, "'UpDecoderBlock3D'; only UpDecoderBlock2D, "),
        (KL | {"up_block_types": ["AttnUpDecoderBlock2D"] * 4}, "attention in other levels"),
        (TAESD | {"upsampling_scaling_factor": 3}, "upsampling_scaling_factor is 3"),
        (TAESD | {"encoder_block_out_channels": [64, 32, 64, 64]}, "only equal channels"),
        (SANA | {"decoder_norm_types": "layer_norm"}, "'layer_norm'; only rms_norm"),
        (SANA | {"encoder_layers_per_block": [1]}, "must have 6 members"),
    ],
)
def test_what_is_not_supported_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(settings)


@pytest.mark.parametrize("config", [KLAutoencoderConfig(), IdentityAutoencoderConfig()])
def test_what_diffusers_does_not_have_is_refused(
    config: KLAutoencoderConfig | IdentityAutoencoderConfig,
) -> None:
    with pytest.raises(ValueError, match=f"of kind {config.kind}"):
        settings_of(config, statistics=None)
