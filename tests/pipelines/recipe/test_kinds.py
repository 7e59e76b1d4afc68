"""For each kind of source: the recipe that `latentmill init` writes reads what was said to be there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from webdataset.writer import ShardWriter

from pipelines import config
from pipelines.__main__ import main
from pipelines.sources.survey import listing
from tests.pipelines.recipe.test_recognition import idx
from tests.pipelines.sources.downloads import shard
from tests.pipelines.sources.hostile_tars import png


def tars(folder: Path) -> Path:
    with ShardWriter(f"file:{folder}/train-%05d.tar", maxcount=10, verbose=0) as writer:
        for n in range(20):
            said = {"caption": f"number {n}", "place": "here"}
            writer.write({"__key__": f"s{n}", "png": png(n), "cls": n % 2, "json": said})
    return folder


def parquet(folder: Path) -> Path:
    rows = {"photo": [png(n) for n in range(20)], "prompt": ["a"] * 20, "class": ["b"] * 20, "no": [1] * 20}
    pq.write_table(pa.table(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def lines(folder: Path) -> Path:
    """Files in a folder beside the table, and the columns called as nobody can guess."""
    (folder / "img").mkdir()
    for n in range(20):
        (folder / "img" / f"{n}.png").write_bytes(png(n))
    rows = [{"file_name": f"{n}.png", "sagt": "hut", "art": n % 2, "split": "train"} for n in range(20)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "rows.jsonl"


def hub(folder: Path) -> Path:
    (folder / "data").mkdir()
    rows = pa.table(
        {"image": [{"bytes": png(n), "path": None} for n in range(20)], "label": [n % 2 for n in range(20)]}
    )
    pq.write_table(rows, folder / "data" / "train-00000-of-00001.parquet")
    label = "{name: label, dtype: {class_label: {names: {'0': cat, '1': dog}}}}"
    said = f"dataset_info:\n  features:\n  - {{name: image, dtype: image}}\n  - {label}\n"
    (folder / "README.md").write_text(f"---\n{said}---\n")
    return folder


def downloaded(folder: Path) -> Path:
    shard(folder, 0, 20, png, failed=[1, 2, 3])
    return folder


def numbers(folder: Path) -> Path:
    return idx(folder, [5, 0, 4, 1, 9, 2, 1, 3, 1, 4])


def pattern(folder: Path) -> str:
    for n in range(20):
        (folder / "ab"[n % 2]).mkdir(exist_ok=True)
        (folder / "ab"[n % 2] / f"{n}.png").write_bytes(png(n))
    (folder / "a" / "other.jpg").write_bytes(b"not asked for")
    return f"{folder}/**/*.png"


@pytest.mark.parametrize(
    ("lay", "flags", "kind", "texts", "labels"),
    [
        (tars, [], "webdataset", 20, {"0", "1"}),
        (parquet, [], "table", 20, {"b"}),
        (lines, ["--text", "sagt", "--label", "art"], "table", 20, {"0", "1"}),
        (hub, [], "huggingface", 0, {"cat", "dog"}),
        (downloaded, [], "img2dataset", 20, set()),
        (numbers, [], "idx", 20, set("0123459")),
        (pattern, [], "glob", 0, {"a", "b"}),
    ],
)
def test_the_recipe_reads_what_was_said_to_be_there(
    lay: Callable[[Path], Any],
    flags: list[str],
    kind: str,
    texts: int,
    labels: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pile").mkdir()
    monkeypatch.chdir(tmp_path)
    place = str(lay(tmp_path / "pile"))
    assert main(["init", place, "--out", "recipes/found.yaml", "--seconds", "3", "--json", *flags]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["images"], said["exact"], said["texts"]) == (kind, 20, True, texts)
    assert set(said["labels"]) == labels
    stage: Any = config.load("recipes/found.yaml").stages["images"]
    entries = listing(stage.source).entries
    assert (stage.source.kind, len(entries)) == (kind, 20)
    assert sum("text" in entry.facts for entry in entries) == texts
    assert {str(entry.facts["label"]) for entry in entries if "label" in entry.facts} == labels
    rejected = sum(bool(entry.reject or entry.fault) for entry in entries)
    assert rejected == len(said["broken"])
    assert rejected <= stage.max_rejects * 20
    # and for people
    assert main(["init", place, "--out", "recipes/found.yaml", "--force", "--seconds", "1", *flags]) == 0
    shown = capsys.readouterr().out
    assert f"20 images in {place}" in shown
    assert f"source     {kind}" in shown
