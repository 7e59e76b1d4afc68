"""What is made again when something changes: exactly what depends on it, sample by sample.

The cache key of a sample is the digest of the image's bytes as ingest made them (so its source and its
transform), of the weights, and all of the stage's meaning (dtype among it), and with buckets its size.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.storage import Storage
from pipelines import config, pipeline
from pipelines.dataset import write_manifest
from pipelines.stage import jsonable
from tests.pipelines import tiny
from tests.pipelines.embedders import folders

SQUARE = WIDE = 8
COUNT = SQUARE + WIDE
RECIPE = """
name: keys
stages:
  images:
    stage: ingest
    source: {{kind: folder, path: {root}/photos}}
    size: 16
    split: {{validation: 0.1, test: 0.1}}
  captions: {{stage: caption, images: images, captioners: [{{kind: template, text: "{{text}}"}}]}}
  latents: {{stage: encode, images: images, autoencoder: {root}/vae, micro_batch: 4}}
  words:
    stage: embed
    captions: captions
    text: {{kind: transformers, path: {root}/bert}}
    micro_batch: 4
"""


def photo(root: Path, number: int, *, seed: int | None = None, words: str | None = None) -> None:
    random = np.random.default_rng(number if seed is None else seed)
    size = (32, 32) if number < SQUARE else (32, 44)
    coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(
        root / "photos" / f"{number:03d}.png"
    )
    (root / "photos" / f"{number:03d}.txt").write_text(words or f"{folders.WORDS[4 + number % 6]} {number}")


def autoencoder(root: Path, seed: int) -> None:
    import torch
    from safetensors.torch import save

    torch.manual_seed(seed)
    storage = Storage.at(root / "vae")
    data = save({name: tensor.half() for name, tensor in tiny.AUTOENCODER.build().state_dict().items()})
    storage.replace("autoencoder.safetensors", data)
    files = {"autoencoder.safetensors": hashlib.sha256(data).hexdigest()}
    record = {"task": "autoencoder", "autoencoder": jsonable(tiny.AUTOENCODER), "resolution": 16}
    (root / "vae" / "manifest.json").unlink(missing_ok=True)
    write_manifest(storage, {"snapshot": {**record, "files": files}}, kind="snapshot")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    (root / "photos").mkdir()
    for number in range(COUNT):
        photo(root, number)
    autoencoder(root, seed=0)
    folders.model(root / "bert", "BertModel")
    (root / "keys.yaml").write_text(RECIPE.format(root=root))
    assert made(root) == dict.fromkeys(("images", "captions", "latents", "words"), COUNT)
    return root


@pytest.fixture
def root(line: Path, tmp_path: Path) -> Path:
    """The finished line, somewhere else."""
    shutil.copytree(line, tmp_path, dirs_exist_ok=True)
    (tmp_path / "keys.yaml").write_text(RECIPE.format(root=tmp_path))
    return tmp_path


def made(root: Path, flags: Sequence[str] = ()) -> dict[str, int]:
    """Samples that each stage made, and did not copy; stages that did not run are not in it."""
    events: list[dict[str, Any]] = []
    recipe = config.load(str(root / "keys.yaml"), list(flags))
    pipeline.run(
        recipe, Storage.at(root / "store"), executor="inline", record=False, listeners=[events.append]
    )
    return {e["stage"]: e["committed"] - e["copied"] for e in events if e["kind"] == "rejects"}


def touch(root: Path) -> None:
    for file in (root / "photos").iterdir():
        os.utime(file, (1, 1))


def redraw(root: Path) -> None:
    photo(root, 3, seed=1000)


def add(root: Path) -> None:
    for number in range(COUNT, COUNT + 10):
        photo(root, number)


def remove(root: Path) -> None:
    for number in range(5):
        (root / "photos" / f"{number:03d}.png").unlink()
        (root / "photos" / f"{number:03d}.txt").unlink()


def reword(root: Path) -> None:
    photo(root, 3, words="the red fox")


def retrain(root: Path) -> None:
    autoencoder(root, seed=1)


def other_words(root: Path) -> None:
    folders.model(root / "bert", "BertModel", seed=1)


def nothing(root: Path) -> None:
    pass


CHANGES: dict[str, tuple[Callable[[Path], None], list[str], dict[str, int]]] = {
    "nothing": (nothing, [], {}),
    "times of files": (touch, [], {}),
    "one picture": (redraw, [], {"images": 1, "latents": 1}),
    "ten more": (add, [], {"images": 10, "captions": 10, "latents": 10, "words": 10}),
    "five fewer": (remove, [], {"images": 0, "captions": 0, "latents": 0, "words": 0}),
    # the metadata, which a caption may quote, say how large an image is; the captions stay as they are
    "resolution": (
        nothing,
        ["--images.size", "24"],
        {"images": COUNT, "captions": COUNT, "latents": COUNT},
    ),
    # of a square picture nothing is cut, and nothing is added
    "crop": (nothing, ["--images.resize", "pad"], {"images": COUNT, "latents": WIDE}),
    "weights": (retrain, [], {"latents": COUNT}),
    "dtype": (nothing, ["--latents.precision", "bfloat16"], {"latents": COUNT}),
    "mirrored": (nothing, ["--latents.flips", "true"], {"latents": COUNT}),
    "images a call": (nothing, ["--latents.micro-batch", "8"], {"latents": COUNT}),
    "one caption": (reword, [], {"images": 1, "captions": 1, "words": 1}),
    "text encoder": (other_words, [], {"words": COUNT}),
    "tokens": (nothing, ["--words.text.max-tokens", "4"], {"words": COUNT}),
    "workers": (nothing, ["--latents.resources.workers", "3"], {}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_makes_again_what_depends_on_it(root: Path, what: str) -> None:
    change, flags, expected = CHANGES[what]
    change(root)
    assert made(root, flags) == expected
    assert made(root, flags) == {}
