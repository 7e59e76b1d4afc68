"""Denoisers of diffusers small enough to train in seconds, with weights that say something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffusion.conditioning import Conditioning
from pipelines.pretrained.denoiser import DiffusersNetwork

WIDTH, POOLED, TOKENS = 8, 8, 5
UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
CROSS: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
}
PLAIN: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
}
SDXL: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + POOLED,
}
DIT: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "norm_num_groups": 4,
    "activation_fn": "gelu-approximate",
}
SD3: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "caption_projection_dim": 16,
    "pooled_projection_dim": POOLED,
    "pos_embed_max_size": 8,
}
FLUX: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": POOLED,
    "axes_dims_rope": (4, 4, 8),
}
CHAIN: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "sd1": ("UNet2DConditionModel", UNET | CROSS, "DDIMScheduler", CHAIN),
    "sd2": (
        "UNet2DConditionModel",
        UNET | CROSS,
        "DDIMScheduler",
        CHAIN | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    ),
    "sdxl": ("UNet2DConditionModel", UNET | CROSS | SDXL, "EulerDiscreteScheduler", CHAIN),
    "plain": ("UNet2DModel", UNET | PLAIN, "DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    "clean": ("UNet2DModel", UNET | PLAIN, "DDPMScheduler", {"prediction_type": "sample"}),
    "dit": ("DiTTransformer2DModel", DIT, "DDIMScheduler", {}),
    "sd3": ("SD3Transformer2DModel", SD3, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flux": ("FluxTransformer2DModel", FLUX, "FlowMatchEulerDiscreteScheduler", {"shift": 1.0}),
    "flux-dev": (
        "FluxTransformer2DModel",
        FLUX | {"guidance_embeds": True},
        "FlowMatchEulerDiscreteScheduler",
        {"shift": 1.0},
    ),
}
"""Class of the model and its settings, class of the scheduler and its settings."""


def model(shape: str, seed: int = 0) -> Any:
    import diffusers

    torch.manual_seed(seed)
    name, settings, _, _ = SHAPES[shape]
    made = getattr(diffusers, name)(**settings).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def scheduler(shape: str, **settings: Any) -> Any:
    import diffusers

    _, _, name, given = SHAPES[shape]
    return getattr(diffusers, name)(**given | settings)


def network(shape: str, made: Any, **fields: Any) -> DiffusersNetwork:
    """As it is read from the folders that diffusers writes."""
    tokens = {} if made.__class__.__name__ in ("UNet2DModel", "DiTTransformer2DModel") else {"tokens": TOKENS}
    return DiffusersNetwork(
        settings={"_class_name": type(made).__name__, **made.config},
        scheduler={"_class_name": SHAPES[shape][2], **scheduler(shape).config},
        **tokens | fields,
    )


def save(shape: str, folder: Path, seed: int = 0, **options: Any) -> Path:
    """Model and scheduler as in the folder of a pipeline."""
    made = model(shape, seed)
    part = "unet" if shape in ("sd1", "sd2", "sdxl", "plain", "clean") else "transformer"
    made.save_pretrained(folder / part, **options)
    scheduler(shape).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text("{}")
    return folder


def conditions(shape: str, rows: int) -> Conditioning:
    """Random ones, of the kinds that the shape takes."""
    chance = torch.Generator().manual_seed(7)
    if shape == "dit":
        return Conditioning(label=torch.arange(rows) * 3, classes=10)
    if shape in ("plain", "clean"):
        return Conditioning()
    return Conditioning(
        text=torch.randn(rows, TOKENS, WIDTH, generator=chance),
        mask=torch.ones(rows, TOKENS, dtype=torch.bool),
        pooled=torch.randn(rows, POOLED, generator=chance),
    )
