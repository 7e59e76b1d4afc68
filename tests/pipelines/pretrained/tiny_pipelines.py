"""Whole pipelines of diffusers, tiny and random, with text encoders and tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.pipelines.embedders import folders
from tests.pipelines.embedders.test_several import clip_tokenizer
from tests.pipelines.pretrained import foreign
from tests.pipelines.pretrained.tiny_denoisers import CHAIN, CROSS, DIT, FLUX, PLAIN, SD3, SDXL, UNET

CLIP = {"vocab_size": 54, "max_position_embeddings": 77, "bos_token_id": 52, "eos_token_id": 53}
WIDE = 48
"""Of T5's states."""
FACTOR, SIDE = 2, 8
CLASSES = ["cat", "dog", "owl"]
EVEN = {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1}
"""What makes a DDIM of a chain the sampler that ours is."""


def _text(folder: Path, *kinds: str) -> dict[str, Any]:
    from transformers import AutoTokenizer

    parts: dict[str, Any] = {}
    for n, kind in enumerate(kinds):
        behind = f"_{n + 1}" if n else ""
        size = {"hidden_size": 16 + 8 * n, "projection_dim": 10 + 4 * n}
        changes = {"d_model": WIDE} if kind.startswith("T5") else {**CLIP, **size}
        parts[f"text_encoder{behind}"] = folders.model(
            folder / f"text{n}", kind, seed=n, scale=3.0, **changes
        )
        if kind.startswith("T5"):
            folders.tokenizer(folder / f"words{n}")
            parts[f"tokenizer{behind}"] = AutoTokenizer.from_pretrained(folder / f"words{n}")
        else:
            parts[f"tokenizer{behind}"] = clip_tokenizer(folder / f"words{n}")
    return parts


def _denoiser(name: str, **settings: Any) -> Any:
    import diffusers

    torch.manual_seed(1)
    made = getattr(diffusers, name)(**settings).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def pipeline(shape: str, folder: Path) -> Any:
    """As diffusers makes it, saved as `folder`/sd."""
    import diffusers

    of: Any = diffusers
    chain = of.DDIMScheduler(**CHAIN, **EVEN)
    parts: dict[str, Any] = {"scheduler": chain}
    if shape != "plain":
        parts["vae"] = foreign.model("AutoencoderKL", scaling_factor=0.5, shift_factor=0.1)
    scratch = folder / "scratch"
    match shape:
        case "sd1":
            parts |= _text(scratch, "CLIPTextModel")
            parts["unet"] = _denoiser("UNet2DConditionModel", **UNET | CROSS | {"cross_attention_dim": 16})
            absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            made = of.StableDiffusionPipeline(**parts, **absent)
        case "sdxl":
            parts |= _text(scratch, "CLIPTextModel", "CLIPTextModelWithProjection")
            told = {"cross_attention_dim": 40, "projection_class_embeddings_input_dim": 6 * 4 + 14}
            parts["unet"] = _denoiser("UNet2DConditionModel", **UNET | CROSS | SDXL | told)
            made = of.StableDiffusionXLPipeline(**parts, add_watermarker=False)
        case "sd3":
            parts |= _text(scratch, *["CLIPTextModelWithProjection"] * 2, "T5EncoderModel")
            told = {"joint_attention_dim": WIDE, "pooled_projection_dim": 24}
            parts["transformer"] = _denoiser("SD3Transformer2DModel", **SD3 | told)
            parts["scheduler"] = of.FlowMatchEulerDiscreteScheduler(shift=3.0)
            made = of.StableDiffusion3Pipeline(**parts)
        case "flux":
            parts |= _text(scratch, "CLIPTextModel", "T5EncoderModel")
            told = {"joint_attention_dim": WIDE, "pooled_projection_dim": 16, "guidance_embeds": True}
            parts["transformer"] = _denoiser("FluxTransformer2DModel", **FLUX | told)
            parts["vae"] = foreign.model(
                "AutoencoderKL", scaling_factor=0.5, shift_factor=0.1, sample_size=16
            )
            parts["scheduler"] = of.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
            made = of.FluxPipeline(**parts)
        case "dit":
            parts["transformer"] = _denoiser("DiTTransformer2DModel", **DIT)
            made = of.DiTPipeline(**parts, id2label=dict(enumerate(CLASSES)))
        case _:
            parts["unet"] = _denoiser("UNet2DModel", **UNET | PLAIN | {"in_channels": 3, "out_channels": 3})
            made = of.DDIMPipeline(**parts)
    made.save_pretrained(folder / "sd")
    if shape == "dit":  # in the index of those that are published, and none that is saved
        index = folder / "sd" / "model_index.json"
        labels = {str(n): name for n, name in enumerate(CLASSES)}
        index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": labels}))
    made.set_progress_bar_config(disable=True)
    return made


def drawn(made: Any, shape: str, noise: torch.Tensor, steps: int, scale: float, **given: Any) -> np.ndarray:
    """What the pipeline itself draws from this noise, 0 to 1."""
    said: dict[str, Any] = {"latents": noise, "num_inference_steps": steps, "guidance_scale": scale, **given}
    if shape in ("sd3", "flux"):
        # Evenly spaced, as FLUX's pipeline has them by itself.
        said["sigmas"] = np.linspace(1, 1 / steps, steps).tolist()
    if shape == "flux":
        b, c, h, w = noise.shape
        said |= {"latents": made._pack_latents(noise, b, c, h, w), "height": h * FACTOR, "width": w * FACTOR}
    return np.asarray(made(**said, output_type="np").images)
