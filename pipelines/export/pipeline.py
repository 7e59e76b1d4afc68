"""A trained pretrained denoiser with all that belongs to it, as a folder that diffusers' pipeline loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.export import diffusers
from pipelines.pretrained.denoiser import DIT, FLUX, PLAIN, SD3, UNET, DiffusersNetwork
from pipelines.pretrained.denoiser_folder import SCHEDULER, SCHEDULING, network_of
from pipelines.pretrained.folder import CONFIG, PART, PIPELINE, WHOLE
from pipelines.pretrained.lora import FILE as LORA
from pipelines.pretrained.text_encoders import called_so, read_by

if TYPE_CHECKING:
    from pipelines.models import SnapshotFolder

ENCODER_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
NONE = [None, None]
"""Of a part that a pipeline does without."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    pipeline: str
    """diffusers' class that loads it."""
    lacking: tuple[str, ...]
    """Parts that are not in it: text encoders that are not at hand, or were called otherwise than the
    pipeline does, and their tokenizers."""
    settings: Mapping[str, Any]
    """model_index.json."""


def exportable(snapshot: SnapshotFolder) -> bool:
    """Whether diffusers has a class for the denoiser in it."""
    return (snapshot.record.get("network") or {}).get("kind") == "diffusers"


def write(snapshot: SnapshotFolder, out: Path) -> Exported:
    """Writes denoiser, autoencoder, scheduler, and text encoders where they are at hand and were called as
    the pipeline calls them: every caption filled up, and of SDXL and SD3 the layer before the last.

    The scheduler's steps are evenly spaced, as those of our samplers.

    Raises:
        ValueError: `out` is in use, or diffusers has no such pipeline or autoencoder.
    """
    record = snapshot.record
    if "adopted" in snapshot.manifest:
        raise ValueError(f"{snapshot.storage.url} came as a pipeline of diffusers: use that one's folder.")
    network = network_of(record)
    name, part = _pipeline(network, record), "transformer" if network.transformer else "unet"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty; name a folder that is not there yet.")
    index: dict[str, Any] = {"_class_name": name, part: ["diffusers", network.name]}
    if network.name != PLAIN:
        settings = diffusers.write(snapshot, out / PART, scaling=_scaling(network, record))
        index[PART] = ["diffusers", settings["_class_name"]]
    scheduler = scheduling(network)
    index[SCHEDULER] = ["diffusers", scheduler["_class_name"]]
    _json(out / SCHEDULER / SCHEDULING, scheduler)
    _json(out / part / CONFIG, network.settings)
    (out / part / WHOLE).write_bytes(snapshot.read("denoiser.safetensors"))
    if LORA in record["files"]:
        (out / LORA).write_bytes(snapshot.read(LORA))
    index |= _encoders(network, snapshot.text(), out)
    index |= _more(network, record)
    _json(out / PIPELINE, index)
    lacking = tuple(k for k, v in index.items() if v == NONE and k.startswith(("text_encoder", "tokenizer")))
    return Exported(pipeline=name, lacking=lacking, settings=index)


def scheduling(network: DiffusersNetwork) -> dict[str, Any]:
    """The scheduler_config.json of the plainest sampler on the path that the network was trained on."""
    if network.flow:
        return {
            "num_train_timesteps": 1000,
            "shift": 1.0,
            **network.scheduler,
            "_class_name": "FlowMatchEulerDiscreteScheduler",
        }
    kept = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    kept += ("prediction_type", "rescale_betas_zero_snr")
    return {
        **{key: network.scheduler[key] for key in kept if key in network.scheduler},
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 1,  # of no matter here, and what pipelines ask for
        "timestep_spacing": "trailing",
    }


def _pipeline(network: DiffusersNetwork, record: Mapping[str, Any]) -> str:
    if network.name == PLAIN and record["autoencoder"]["kind"] != "identity":
        raise ValueError(
            f"diffusers has no pipeline of a {PLAIN} on latents: one on pixels, {UNET}, {DIT}, {SD3} and "
            f"{FLUX} can be exported."
        )
    return {
        UNET: "StableDiffusionXLPipeline" if network.sized else "StableDiffusionPipeline",
        PLAIN: "DDIMPipeline",
        DIT: "DiTPipeline",
        SD3: "StableDiffusion3Pipeline",
        FLUX: "FluxPipeline",
    }[network.name]


def _scaling(network: DiffusersNetwork, record: Mapping[str, Any]) -> dict[str, Any]:
    """What the autoencoder's config.json is to say of the scale of its latents."""
    mean, std = record["statistics"]["mean"], record["statistics"]["std"]
    if len({*mean}) == len({*std}) == 1:
        return {"scaling_factor": 1 / std[0], "shift_factor": mean[0] if network.flow else None}
    return {"scaling_factor": 1.0, "latents_mean": mean, "latents_std": std}


def _encoders(network: DiffusersNetwork, text: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Text encoders and tokenizers, copied from where the embed stage had them; none where it called them
    otherwise than the pipeline will."""
    from pipelines.places import at_hand

    same = called_so(network, text)
    encoders = list(text.get("encoders") or [text])
    index: dict[str, Any] = {}
    for n, behind in enumerate(read_by(network)):
        index[f"text_encoder{behind}"] = index[f"tokenizer{behind}"] = NONE
        said = encoders[n] if same else {}
        if not said.get("path"):
            continue
        folder = at_hand(said["path"])
        words = at_hand(said["tokenizer"]) if said.get("tokenizer") else folder
        if not (folder / CONFIG).is_file() or not words.is_dir():
            continue
        architecture = (json.loads((folder / CONFIG).read_text()).get("architectures") or [None])[0]
        tokens = words / "tokenizer_config.json"
        tokenizer = json.loads(tokens.read_text()).get("tokenizer_class") if tokens.is_file() else None
        if not architecture or not tokenizer:
            continue
        for source, target in ((folder, f"text_encoder{behind}"), (words, f"tokenizer{behind}")):
            (out / target).mkdir(parents=True)
            for file in sorted({file for pattern in ENCODER_FILES for file in source.glob(pattern)}):
                if file.suffix != ".safetensors" or target.startswith("text_encoder"):
                    shutil.copyfile(file, out / target / file.name)
        index[f"text_encoder{behind}"] = ["transformers", architecture]
        index[f"tokenizer{behind}"] = ["transformers", tokenizer]
    return index


def _more(network: DiffusersNetwork, record: Mapping[str, Any]) -> dict[str, Any]:
    """What else the pipelines' indices say."""
    match network.name:
        case "UNet2DConditionModel" if network.sized:
            absent = {"image_encoder": NONE, "feature_extractor": NONE}
            # As it was trained, which need not be as the one that it began with was.
            return {**absent, "force_zeros_for_empty_prompt": record.get("null") != "encoded"}
        case "UNet2DConditionModel":
            absent = {"safety_checker": NONE, "image_encoder": NONE, "feature_extractor": NONE}
            return {**absent, "requires_safety_checker": False}
        case "SD3Transformer2DModel" | "FluxTransformer2DModel":
            return {"image_encoder": NONE, "feature_extractor": NONE}
        case "DiTTransformer2DModel":
            return {"id2label": {str(n): name for n, name in enumerate(record.get("classes") or ())}}
        case _:
            return {}


def _json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
