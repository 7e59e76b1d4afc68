"""Exports: read by the tools they are meant for."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.storage import Storage
from pipelines.arrays import from_npy, to_npy
from pipelines.dataset import Dataset, Record
from pipelines.export import export, parquet
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
    assert export(made, tmp_path / "out").samples == {"train": 24, "validation": 6}
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
    assert export(made, tmp_path / "out").total == 42
    lines = (tmp_path / "out" / "train" / "metadata.csv").read_text().splitlines()
    assert lines[0] == "file_name,text,label,weight,source"
    assert Counter(line.split(",")[3:][0] for line in lines[1:]) == {"1.0": 24, "0.5": 12}
    assert export(made, tmp_path / "tars", form="webdataset").total == 42
    weights = Counter(json.loads(r.members["json"])["weight"] for r in tars(tmp_path / "tars", ("json",)))
    assert weights == {1.0: 30, 0.5: 12}


SHIM = """
import functools, sys, webdataset.tariterators as tars
# open_clip_train was written for webdataset up to 0.2.86; later ones put an empty sample behind each shard.
tars.tar_file_expander = functools.partial(tars.tar_file_expander, eof_value=None)
"""
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.mark.slow
def test_open_clips_own_training_command_runs_on_the_tars(tmp_path: Path) -> None:
    """`python -m open_clip_train.main` for two epochs of a tiny model on a CPU."""
    pytest.importorskip("open_clip_train.main", reason="needs open_clip_torch's training code")
    made = images(tmp_path / "d")
    captions = dataset(tmp_path / "captions", lambda key, n: {"txt": f"a picture of {n}".encode()})
    done = export(made, tmp_path / "out", form="webdataset", captions=captions)
    assert done.files["train"] == f"{tmp_path}/out/train/{{00000..00001}}.tar"
    assert done.files["validation"] == f"{tmp_path}/out/validation/00000.tar"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SHIM)
    code = (
        "import sys, runpy, open_clip.factory as f\n"
        "f.add_model_config(sys.argv.pop(1))\n"
        "runpy.run_module('open_clip_train.main', run_name='__main__', alter_sys=True)\n"
    )
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    command = [
        *(sys.executable, "-c", code, str(tmp_path / "tiny.json")),
        *("--train-data", done.files["train"], "--dataset-type", "webdataset", "--train-num-samples", "24"),
        *("--val-data", done.files["validation"], "--val-num-samples", "6"),
        *("--model", "tiny", "--batch-size", "4", "--epochs", "2", "--workers", "1", "--precision", "fp32"),
        *("--warmup", "1", "--device", "cpu", "--logs", str(tmp_path / "logs"), "--name", "run"),
    ]
    paths = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    log = (tmp_path / "logs" / "run" / "out.log").read_text()
    assert "Train Epoch: 1 [24/24 (100%)]" in log
    assert "Eval Epoch: 2" in log
    assert (tmp_path / "logs" / "run" / "checkpoints" / "epoch_2.pt").exists()


def tars(out: Path, columns: tuple[str, ...] = ("image",)) -> list[Record]:
    """Every sample of every split's tars, as `webdataset` users and we read them."""
    return [
        record
        for split in sorted(out.iterdir())
        for again in [Dataset.open(Storage.at(split))]
        for shard in again.shards
        for record in again.read(shard.name, columns=columns)
    ]


def test_columns_of_the_line_are_joined_and_rows_without_them_left_out(tmp_path: Path) -> None:
    made = images(tmp_path / "d")
    moments = dataset(tmp_path / "m", lambda key, n: {} if n == 3 else {"moments.npy": to_npy(np.full(4, n))})
    keep = dataset(tmp_path / "k", lambda key, n: {"keep": b"1"} if n % 2 else {})
    done = export(made, tmp_path / "out", form="webdataset", keep=keep, columns=[(moments, "moments.npy")])
    assert done.samples == {"train": 11, "validation": 3}
    assert done.left_out == {"not kept": 15, "without moments.npy": 1}
    found = {r.key: from_npy(r.members["moments.npy"])[0] for r in tars(tmp_path / "out", ("moments.npy",))}
    assert found == {f"k{n:03d}": n for n in range(30) if n % 2 and n != 3}
    assert sorted(p.name for p in (tmp_path / "out/train").glob("*.tar")) == ["00000.tar", "00001.tar"]


def test_tars_are_numbered_without_a_gap(tmp_path: Path) -> None:
    """A shard of which nothing is kept leaves no empty tar: some readers stop at one."""
    made = images(tmp_path / "d")
    keep = dataset(tmp_path / "k", lambda key, n: {"keep": b"1"} if n >= 12 else {})
    done = export(made, tmp_path / "out", form="webdataset", keep=keep)
    assert done.files == {
        "train": f"{tmp_path}/out/train/00000.tar",
        "validation": f"{tmp_path}/out/validation/00000.tar",
    }
    assert len(tars(tmp_path / "out")) == 18


def test_keep_and_columns_follow_a_view_to_its_sources(tmp_path: Path) -> None:
    sources = {name: images(tmp_path / "store" / name) for name in ("real", "generated")}
    keep = dataset(tmp_path / "k", lambda key, n: {"keep": b"1"} if n % 2 else {})
    made = view(tmp_path / "store" / "view", sources, rows(**sources))
    done = export(made, tmp_path / "out", form="webdataset", keep=keep)
    assert 0 < done.total < 42
    assert done.total + done.left_out["not kept"] == 42


@pytest.mark.parametrize("how", ["folder", "files"])
def test_huggingface_reads_the_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(parquet, "GROUP_ROWS", 5)
    monkeypatch.setattr(parquet, "FILE_BYTES", 1000)
    import pyarrow.parquet as pq
    from datasets import ClassLabel, load_dataset
    from datasets import Image as ImageFeature

    made = images(tmp_path / "d")
    moments = dataset(tmp_path / "m", lambda key, n: {"moments.npy": to_npy(np.full(4, n))})
    out = tmp_path / "out"
    done = export(made, out, form="parquet", columns=[(moments, "moments.npy")])
    assert done.samples == {"train": 24, "validation": 6}
    named = sorted(path.name for path in (out / "data").iterdir())
    assert len(named) > 3
    assert all(f"-of-{sum(n.startswith('train') for n in named):05d}" in n for n in named if n[0] == "t")
    assert pq.ParquetFile(out / "data" / named[0]).metadata.row_group(0).num_rows == 5
    if how == "folder":
        loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    else:
        loaded = load_dataset("parquet", data_files=done.files, cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in loaded.items()} == {"train": 24, "validation": 6}
    features = loaded["train"].features
    assert isinstance(features["image"], ImageFeature)
    assert isinstance(features["label"], ClassLabel)
    assert features["label"].names == CLASSES
    found = Counter(row["image"].convert("RGB").tobytes() for part in loaded.values() for row in part)
    assert found == originals(made)
    for row in loaded["train"]:
        n = int(row["key"][1:])
        assert (row["label"], row["text"]) == (n % 3, f"thing {n % 5}")
        assert from_npy(row["moments.npy"])[0] == n


def test_captions_are_joined_to_real_and_generated_rows(tmp_path: Path) -> None:
    sources = {name: images(tmp_path / "store" / name) for name in ("real", "generated")}
    captions = dataset(tmp_path / "captions", lambda key, n: {"txt": f"a picture of {n}".encode()})
    made = view(tmp_path / "store" / "view", sources, rows(**sources))
    export(made, tmp_path / "out", captions=captions)
    text = (tmp_path / "out" / "validation" / "metadata.csv").read_text()
    assert "real-k029.png,a picture of 29," in text


def test_class_names_are_made_fit_for_folders(tmp_path: Path) -> None:
    made = images(tmp_path / "d", classes=["T-shirt/top", "T-shirt top", "../../up"])
    assert export(made, tmp_path / "out").total == 30
    folders = {path.name for path in (tmp_path / "out" / "train").iterdir() if path.is_dir()}
    assert folders == {"T-shirt_top", "T-shirt_top_1", "up"}
    assert ",T-shirt/top" in (tmp_path / "out" / "train" / "metadata.csv").read_text()


def test_what_cannot_be_exported_says_so(tmp_path: Path) -> None:
    made = images(tmp_path / "d")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("x")
    with pytest.raises(ValueError, match="not empty"):
        export(made, tmp_path / "used")
    moments = dataset(tmp_path / "m", lambda key, n: {"moments.npy": b"x", "txt": b"x"})
    for given, match in (
        ({"columns": [(moments, "moments.npy")]}, "--form webdataset or parquet"),
        (
            {"columns": [(moments, "other")], "form": "parquet"},
            "has no column other: it has moments.npy, txt",
        ),
        ({"columns": [(moments, "txt")], "form": "parquet"}, "would be called txt"),
        ({"keep": moments}, "has no column keep"),
    ):
        with pytest.raises(ValueError, match=match):
            export(made, tmp_path / "new", **given)
    with pytest.raises(ValueError, match="has no images"):
        export(dataset(tmp_path / "t", lambda key, n: {"txt": b"x"}), tmp_path / "new")
    assert not (tmp_path / "new").exists()
