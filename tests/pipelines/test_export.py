"""Exports: read by the tools they are meant for."""

from __future__ import annotations

import functools
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.storage import Storage
from pipelines.dataset import Dataset
from pipelines.export import export
from tests.pipelines.test_view import rows, view
from tests.pipelines.tiny import CLASSES, dataset, images


def pixels(data: bytes) -> bytes:
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def originals(made: Dataset) -> Counter[bytes]:
    return Counter(pixels(r.members["image"]) for s in made.shards for r in made.read(s.name))


def test_huggingface_imagefolder_reads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    from datasets import load_dataset

    made = images(tmp_path / "d")
    assert export(made, tmp_path / "out") == 30
    loaded = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in loaded.items()} == {"train": 24, "validation": 6}
    found = Counter(row["image"].convert("RGB").tobytes() for part in loaded.values() for row in part)
    assert found == originals(made)
    assert {row["label"] for row in loaded["train"]} == set(CLASSES)
    assert all(row["text"].startswith("thing ") for row in loaded["train"])
    assert {path.name for path in (tmp_path / "out" / "train").iterdir() if path.is_dir()} == set(CLASSES)


def test_weights_of_a_view_are_stated(tmp_path: Path) -> None:
    sources = {name: images(tmp_path / "store" / name) for name in ("real", "generated")}
    made = view(tmp_path / "store" / "view", sources, rows(**sources))
    assert export(made, tmp_path / "out") == 42
    lines = (tmp_path / "out" / "train" / "metadata.csv").read_text().splitlines()
    assert lines[0] == "file_name,text,label,weight,source"
    assert Counter(line.split(",")[3:][0] for line in lines[1:]) == {"1.0": 24, "0.5": 12}
    assert export(made, tmp_path / "tars", form="webdataset") == 42
    again = Dataset.open(Storage.at(tmp_path / "tars"))
    weights = Counter(
        json.loads(r.members["json"])["weight"]
        for s in again.shards
        for r in again.read(s.name, columns=("json",))
    )
    assert weights == {1.0: 30, 0.5: 12}


@pytest.mark.slow
def test_open_clip_reads_the_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from argparse import Namespace

    data = pytest.importorskip("open_clip_train.data", reason="needs open_clip_torch's training code")
    # It was written for webdataset up to 0.2.86; later ones put an empty sample at the end of each shard.
    expander = functools.partial(data.tar_file_expander, eof_value=None)
    monkeypatch.setattr(data, "tar_file_expander", expander)
    made = images(tmp_path / "d")
    export(made, tmp_path / "out", form="webdataset")
    args = Namespace(
        train_data=str(tmp_path / "out" / "{00000..00001}.tar"),
        train_data_upsampling_factors=None,
        train_num_samples=24,
        dataset_resampled=False,
        batch_size=4,
        workers=0,
        world_size=1,
        seed=0,
    )
    loader = data.get_wds_dataset(args, np.asarray, is_train=True, tokenizer=lambda text: [text]).dataloader
    batches = list(loader)
    texts = Counter(text for _, batch in batches for text in batch)
    assert sum(texts.values()) == 24
    assert set(texts) == {f"thing {n}" for n in range(5)}
    assert batches[0][0].shape == (4, 16, 16, 3)


def test_captions_are_joined_to_real_and_generated_rows(tmp_path: Path) -> None:
    sources = {name: images(tmp_path / "store" / name) for name in ("real", "generated")}
    captions = dataset(tmp_path / "captions", lambda key, n: {"txt": f"a picture of {n}".encode()})
    made = view(tmp_path / "store" / "view", sources, rows(**sources))
    export(made, tmp_path / "out", captions=captions)
    text = (tmp_path / "out" / "validation" / "metadata.csv").read_text()
    assert "real-k029.png,a picture of 29," in text


def test_class_names_are_made_fit_for_folders(tmp_path: Path) -> None:
    made = images(tmp_path / "d", classes=["T-shirt/top", "T-shirt top", "../../up"])
    assert export(made, tmp_path / "out") == 30
    folders = {path.name for path in (tmp_path / "out" / "train").iterdir() if path.is_dir()}
    assert folders == {"T-shirt_top", "T-shirt_top_1", "up"}
    assert ",T-shirt/top" in (tmp_path / "out" / "train" / "metadata.csv").read_text()


def test_what_cannot_be_exported_says_so(tmp_path: Path) -> None:
    made = images(tmp_path / "d")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("x")
    with pytest.raises(ValueError, match="not empty"):
        export(made, tmp_path / "used")
    with pytest.raises(ValueError, match="has no images"):
        export(dataset(tmp_path / "t", lambda key, n: {"txt": b"x"}), tmp_path / "new")
    assert not (tmp_path / "new").exists()
