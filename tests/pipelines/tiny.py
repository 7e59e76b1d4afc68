"""Datasets, snapshots and a session small enough to train in seconds."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save

from cluster.gang import run_alone
from cluster.resources import Resources
from cluster.storage import Storage
from diffusion.config import (
    DiTConfig,
    HeunConfig,
    IdentityAutoencoderConfig,
    KLAutoencoderConfig,
    LowResolutionConfig,
    OptimizationConfig,
    UNetConfig,
)
from pipelines.arrays import to_npy
from pipelines.dataset import Dataset, describe, write_manifest
from pipelines.embedders.embedding import TextEmbedding, caption_digest
from pipelines.models import SnapshotFolder
from pipelines.shards import canonical, write_shard
from pipelines.stage import Row, Sample, Stage, jsonable
from pipelines.stages.train import Train

SIZE = 16
TRAIN, HELD_OUT = 24, 6
TEXT_WIDTH = 8
CLASSES = ["circle", "square", "cross"]
AUTOENCODER = KLAutoencoderConfig(latent_channels=2, channels=8, multipliers=(1,), stem=4, blocks=1)
NETWORK = DiTConfig(width=16, depth=2, heads=2, patch=2)
OPTIMIZATION = OptimizationConfig(lr=3e-3, warmup=16, cooldown=0)
Members = Callable[[str, int], Mapping[str, bytes]]


def dataset(
    folder: Path,
    members: Members,
    *,
    shared: Members = lambda key, n: {},
    meta: Callable[[int], Mapping[str, Any]] = lambda n: {},
    **manifest: Any,
) -> Dataset:
    """Two training shards and one for validation; `members(key, number)` makes each sample's."""
    storage = Storage.at(folder)
    shards = []
    numbers = {
        "00000": range(TRAIN // 2),
        "00001": range(TRAIN // 2, TRAIN),
        "00002": range(TRAIN, TRAIN + HELD_OUT),
    }
    for name, of in numbers.items():
        pairs = [
            (
                Row(key=f"k{n:03d}"),
                Sample(
                    key=f"k{n:03d}",
                    members=members(f"k{n:03d}", n),
                    shared=shared(f"k{n:03d}", n),
                    meta=meta(n),
                ),
            )
            for n in of
        ]
        shards.append(write_shard(storage, name, pairs, split="validation" if name == "00002" else "train"))
    write_manifest(storage, describe(shards, stage="test", **manifest))
    return Dataset.open(storage)


def picture(n: int) -> np.ndarray:
    """A bright square whose place and colour depend on `n`."""
    image = np.full((SIZE, SIZE, 3), 30, np.uint8)
    image[n % 8 : n % 8 + 7, (n * 3) % 9 : (n * 3) % 9 + 7] = [40 * (n % 6), 255 - 30 * (n % 7), 120]
    return image


def images(folder: Path, *, classes: Sequence[str] = CLASSES) -> Dataset:
    def members(key: str, n: int) -> dict[str, bytes]:
        buffer = io.BytesIO()
        Image.fromarray(picture(n)).save(buffer, "PNG")
        made = {"png": buffer.getvalue(), "json": canonical({"text": f"thing {n % 5}"})}
        return {**made, "cls": str(n % len(classes)).encode()} if classes else made

    return dataset(folder, members, classes=list(classes))


def embedding(text: str) -> TextEmbedding:
    """What stands for a text encoder: random, but the same for the same text."""
    chance = np.random.default_rng(int(hashlib.sha256(text.encode()).hexdigest()[:12], 16))
    states = chance.normal(size=(2 + len(text.split()), TEXT_WIDTH)).astype(np.float16)
    return TextEmbedding(states, states.mean(0))


class Embedder:
    identity, width, pooled_width = "tiny", TEXT_WIDTH, TEXT_WIDTH

    def encode(self, texts: Sequence[str]) -> list[TextEmbedding]:
        return [embedding(text) for text in texts]


def wordings(n: int) -> list[dict[str, Any]]:
    return [
        {"text": f"a drawing of thing {n % 5}", "weight": 3.0, "source": "template"},
        {"text": f"a drawing of thing {n % 5} in colour {n % 2}", "weight": 1.0, "source": "tags"},
    ]


def captions(folder: Path) -> Dataset:
    return dataset(folder, lambda key, n: {"captions.json": canonical(wordings(n)), "txt": b"x"})


def text(folder: Path) -> Dataset:
    def members(key: str, n: int) -> dict[str, bytes]:
        listed = [{"digest": caption_digest(w["text"]), "weight": w["weight"]} for w in wordings(n)]
        return {"text.json": canonical(listed)}

    def shared(key: str, n: int) -> dict[str, bytes]:
        files = {}
        for wording in wordings(n):
            made, digest = embedding(wording["text"]), caption_digest(wording["text"])
            files |= {f"{digest}.text.npy": to_npy(made.states), f"{digest}.pooled.npy": to_npy(made.pooled)}
        return files

    record = {"kind": "tiny", "digest": "tiny", "width": TEXT_WIDTH, "template": "a drawing of {text}"}
    return dataset(folder, members, shared=shared, statistics={"text": record})


def latents(folder: Path, autoencoder: SnapshotFolder) -> Dataset:
    """Moments whose mean is the shrunken picture, so that there is something to learn."""

    def members(key: str, n: int) -> dict[str, bytes]:
        mean = picture(n)[::4, ::4, :2].transpose(2, 0, 1).astype(np.float16) / 255
        return {"moments.npy": to_npy(np.concatenate([mean, np.full_like(mean, 0.05)]))}

    statistics = {
        "latents": {"mean": [0.3, 0.5], "std": [0.25, 0.25]},
        "shape": [2, SIZE // 4, SIZE // 4],
        "resolution": SIZE,
        "autoencoder": autoencoder.digest(),
    }
    return dataset(folder, members, statistics=statistics)


def autoencoder(folder: Path) -> SnapshotFolder:
    """Untrained, but with weights that say more than zero."""
    import torch

    torch.manual_seed(0)
    storage = Storage.at(folder)
    data = save({name: tensor.half() for name, tensor in AUTOENCODER.build().state_dict().items()})
    storage.put_if_absent("autoencoder.safetensors", data)
    record = {
        "task": "autoencoder",
        "autoencoder": jsonable(AUTOENCODER),
        "resolution": SIZE,
        "files": {"autoencoder.safetensors": hashlib.sha256(data).hexdigest()},
    }
    write_manifest(storage, {"snapshot": record}, kind="snapshot")
    return SnapshotFolder.open(storage)


def line(folder: Path) -> dict[str, Any]:
    """The inputs of a train stage, by field name."""
    snapshot = autoencoder(folder / "autoencoder")
    return {
        "autoencoder": snapshot,
        "latents": latents(folder / "latents", snapshot),
        "text": text(folder / "text"),
        "images": images(folder / "images"),
    }


def pixels_line(folder: Path) -> dict[str, Any]:
    """The inputs of an upscaler's training: pixels as latents, and the images that they are."""
    storage = Storage.at(folder / "pixels")
    storage.put_if_absent("autoencoder.safetensors", save({}))
    record = {
        "task": "autoencoder",
        "autoencoder": jsonable(IdentityAutoencoderConfig()),
        "resolution": SIZE,
        "files": {"autoencoder.safetensors": hashlib.sha256(save({})).hexdigest()},
    }
    write_manifest(storage, {"snapshot": record}, kind="snapshot")
    autoencoder = SnapshotFolder.open(storage)

    def members(key: str, n: int) -> dict[str, bytes]:
        mean = (picture(n).transpose(2, 0, 1) / 127.5 - 1).astype(np.float16)
        return {"moments.npy": to_npy(np.concatenate([mean, np.zeros_like(mean)]))}

    statistics = {
        "latents": {"mean": [-0.4, -0.2, -0.5], "std": [0.6, 0.6, 0.4]},
        "shape": [3, SIZE, SIZE],
        "resolution": SIZE,
        "autoencoder": autoencoder.digest(),
    }
    return {
        "autoencoder": autoencoder,
        "latents": dataset(folder / "pixel-latents", members, statistics=statistics),
        "originals": images(folder / "originals", classes=()),
    }


def train_upscaler(**changes: Any) -> Train:
    """A train stage of an upscaler on `pixels_line`, from 8 to 16 px."""
    fields: dict[str, Any] = {
        "text": None,
        "images": None,
        "originals": "images",
        "low_resolution": LowResolutionConfig(factor=2, noise=0.5),
        "network": UNetConfig(channels=8, multipliers=(1, 2), blocks=1, stem=2),
    }
    return train(**{**fields, **changes})


def train(**changes: Any) -> Train:
    """A train stage of a dozen steps on `line`."""
    fields: dict[str, Any] = {
        "latents": "latents",
        "autoencoder": "vae",
        "text": "embed",
        "images": "images",
        "network": NETWORK,
        "images_seen": 96,
        "batch": 8,
        "optimization": OPTIMIZATION,
        "sampler": HeunConfig(steps=2),
        "validation_samples": 4,
        "checkpoint_seconds": None,
    }
    return Train(**{**fields, **changes})


@dataclass
class TinySession:
    """A session in this process, without Ray or a runner."""

    inputs: Mapping[str, Any]
    output: Storage
    checkpoints: Storage
    scratch: Path
    resources: Resources = Resources(cpus=1)
    lease: int = 1
    events: list[dict[str, Any]] = field(default_factory=list)

    def event(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def gang(self, worker: Callable[..., dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
        return run_alone(worker, config, threads=1, on_event=self.event)

    def map(self, factory: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> Iterator[Any]:
        yield from map(factory(), items)


def session(
    folder: Path,
    inputs: Mapping[str, Any],
    *,
    output: str = "output",
    checkpoints: str = "checkpoints",
    **fields: Any,
) -> TinySession:
    return TinySession(
        inputs=inputs,
        output=Storage.at(folder / output),
        checkpoints=Storage.at(folder / checkpoints),
        scratch=folder,
        **fields,
    )


def run(stage: Stage, session: TinySession) -> SnapshotFolder:
    """Runs a stage that makes a snapshot, and finishes the folder as the runner does."""
    said = stage.run(session)
    write_manifest(session.output, {"stage": stage.name(), "snapshot": said}, kind="snapshot")
    return SnapshotFolder.open(session.output)
