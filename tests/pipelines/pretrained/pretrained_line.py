"""The inputs of a training that begins with a pretrained denoiser, made in seconds."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from cluster.storage import Storage
from diffusion.config import EulerConfig, GuidanceConfig, OptimizationConfig
from pipelines.arrays import to_npy
from pipelines.embedders.embedding import TextEmbedding, caption_digest
from pipelines.models import SnapshotFolder
from pipelines.pretrained.adoption import adopted
from pipelines.pretrained.config import DiffusersConfig
from pipelines.shards import canonical
from pipelines.stages.train import Train
from tests.pipelines import tiny
from tests.pipelines.pretrained import foreign
from tests.pipelines.pretrained.tiny_denoisers import POOLED, TOKENS, WIDTH, save

SCALE, SHIFT = 0.5, 0.1
TEXTS = ("sd1", "sd2", "sdxl", "sd3", "flux", "flux-dev")
FACTOR = 2
"""Px a latent of the autoencoder: 16 px images have latents of 8."""


def embedding(text: str) -> TextEmbedding:
    """What stands for a text encoder that pads: always `TOKENS` states."""
    chance = np.random.default_rng(int(hashlib.sha256(text.encode()).hexdigest()[:12], 16))
    states = chance.normal(size=(TOKENS, WIDTH)).astype(np.float16)
    return TextEmbedding(states, chance.normal(size=POOLED).astype(np.float16))


class Embedder:
    identity, width, pooled_width = "tiny", WIDTH, POOLED

    def encode(self, texts: Any) -> list[TextEmbedding]:
        return [embedding(text) for text in texts]


def pipeline(shape: str, folder: Path, seed: int = 0) -> Path:
    """Denoiser, scheduler and autoencoder, as diffusers writes them."""
    save(shape, folder, seed)
    made = foreign.model("AutoencoderKL", scaling_factor=SCALE, shift_factor=SHIFT)
    return foreign.save(made, folder / "vae").parent


def text(folder: Path) -> Any:
    def members(key: str, n: int) -> dict[str, bytes]:
        words = f"thing {n % 5}"
        return {"text.json": canonical([{"digest": caption_digest(words), "weight": 1.0}])}

    def shared(key: str, n: int) -> dict[str, bytes]:
        words = f"thing {n % 5}"
        made, digest = embedding(words), caption_digest(words)
        return {f"{digest}.text.npy": to_npy(made.states), f"{digest}.pooled.npy": to_npy(made.pooled)}

    nothing = embedding("")
    arrays = {"text": nothing.states, "pooled": nothing.pooled}
    record = {
        "kind": "transformers",
        "padded": True,
        "digest": "tiny",
        "width": WIDTH,
        "pooled_width": POOLED,
        "longest": TOKENS,
        "empty": {name: base64.b64encode(to_npy(array)).decode() for name, array in arrays.items()},
    }
    return tiny.dataset(folder, members, shared=shared, statistics={"text": record})


def latents(folder: Path, autoencoder: SnapshotFolder) -> Any:
    def members(key: str, n: int) -> dict[str, bytes]:
        mean = tiny.picture(n)[::FACTOR, ::FACTOR].transpose(2, 0, 1).astype(np.float16) / 128
        mean = np.concatenate([mean, mean[:1]])
        return {"moments.npy": to_npy(np.concatenate([mean, np.full_like(mean, 0.05)]))}

    statistics = {
        "latents": {"mean": [9.0] * 4, "std": [9.0] * 4},
        "shape": [4, tiny.SIZE // FACTOR, tiny.SIZE // FACTOR],
        "resolution": tiny.SIZE,
        "autoencoder": autoencoder.digest(),
    }
    return tiny.dataset(folder, members, statistics=statistics)


def line(shape: str, folder: Path) -> dict[str, Any]:
    """The inputs of a train stage, by field name, with a pipeline of this shape."""
    store = Storage.at(folder / "store")
    place = str(pipeline(shape, folder / "pipeline"))
    parts = {}
    for field, part in (("autoencoder", "autoencoder"), ("denoiser", "denoiser")):
        found = adopted(place, store, part=part, fetch=lambda done, of: None)
        assert found is not None
        parts[field] = SnapshotFolder.open(found)
    made: dict[str, Any] = {**parts, "latents": latents(folder / "latents", parts["autoencoder"])}
    if shape in TEXTS:
        made["text"] = text(folder / "text")
    if shape == "dit":
        made["images"] = tiny.images(folder / "images")
    return made


def train(shape: str, **changes: Any) -> Train:
    denoiser = changes.pop("denoiser", DiffusersConfig(path="/somewhere/pipeline"))
    fields: dict[str, Any] = {
        "latents": "latents",
        "autoencoder": "vae",
        "text": "embed" if shape in TEXTS else None,
        "null": "encoded" if shape in TEXTS else "learned",
        "images": "images" if shape == "dit" else None,
        "denoiser": denoiser,
        "images_seen": 64,
        "batch": 8,
        "optimization": OptimizationConfig(lr=1e-3, warmup=8, cooldown=0),
        "sampler": EulerConfig(steps=5),
        "guidance": GuidanceConfig(scale=2.0),
        "validation_samples": 4,
        "checkpoint_seconds": None,
    }
    return Train(**{**fields, **changes})


def record(snapshot: SnapshotFolder) -> dict[str, Any]:
    return json.loads(json.dumps(snapshot.record))
