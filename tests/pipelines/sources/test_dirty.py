"""1,000 dirty files: each the verdict it deserves, none lost, no metadata let through, little memory."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.children import Ended, in_children
from pipelines.dataset import Dataset
from pipelines.sources import FolderSource, untrusted
from pipelines.sources.listing import printable
from pipelines.sources.survey import listing
from pipelines.sources.untrusted import Task, made
from pipelines.stages.ingest import Ingest
from tests.pipelines.sources import dirty
from tests.pipelines.stages.making import made as run

MEMORY = 512 << 20
FILES = [
    pytest.param(dirty.sample, id="200"),
    pytest.param(dirty.corpus, id="1000", marks=pytest.mark.slow),
]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[Ended]:
    """How every child of the test ended."""
    found: list[Ended] = []

    def watched(*call: Any, **options: Any) -> Any:
        return in_children(*call, **{**options, "ended": found.append})

    monkeypatch.setattr(untrusted, "in_children", watched)
    return found


@pytest.mark.parametrize("files", FILES)
@pytest.mark.parametrize(
    "how",
    [
        {"size": 64, "resize": "crop", "resample": "area", "form": "jpg"},
        {"resize": "none"},
        {"resize": "none", "validate": "header", "threads": 2},
    ],
    ids=["resized", "kept", "kept by the header"],
)
def test_every_file_has_its_verdict(files: Any, how: dict[str, Any], ends: list[Ended]) -> None:
    inputs = [file for file in files() if file.verdict != dirty.IGNORED]
    task = Task(background="#ffffff", max_bytes=64_000_000, max_pixels=64_000_000, **how)
    if how["resize"] == "none":
        # Coding 64 million pixels anew takes what it takes.
        inputs = [file for file in inputs if "near-the-cap" not in file.name]
    results = made(task, (file.data + bytes(file.longer) for file in inputs))
    # A header alone does not tell of coded pixels that are broken, or that have a passenger among them.
    inside = [file.data for file in inputs if "damaged" in file.name or "stuffed" in file.name]
    unseen = inside if how.get("validate") == "header" else ()
    for file, result in zip(inputs, results, strict=True):
        if file.data not in unseen:
            assert result.get("reject", dirty.COMMITTED) == file.verdict, file.name
            assert dirty.CANARY not in result.get("image", b""), file.name
    assert {end.code for end in ends} <= {0, -9}, "no child died of anything but being done"
    assert 0 < max(end.peak for end in ends) < MEMORY


@pytest.mark.parametrize("files", FILES)
def test_ingest_accounts_for_every_file(
    files: Any, ends: list[Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    wanted = files()
    dirty.write(tmp_path / "in", wanted)
    stage = Ingest(source=FolderSource(path=tmp_path / "in"), size=32)
    dataset = run(stage, {}, tmp_path / "out")
    names = {entry.key: entry.name for entry in listing(stage.source).entries}
    assert len(set(names.values())) == len(names)
    verdicts = dict.fromkeys((file.name for file in wanted), dirty.IGNORED)
    counted = 0
    for shard in dataset.shards:
        index = dataset.index(shard.name)
        for key, reason in zip(index.keys, index.reasons, strict=True):
            verdicts[names[key]] = reason or dirty.COMMITTED
            counted += 1
    assert verdicts == {file.name: file.verdict for file in wanted}
    told = Counter(file.verdict for file in wanted)
    ignored, committed = told.pop(dirty.IGNORED), told.pop(dirty.COMMITTED)
    counts = dataset.manifest["counts"]
    assert counts == {
        "inputs": len(wanted) - ignored,
        "committed": committed,
        "rejected": sum(told.values()),
        "reasons": dict(told),
    }
    assert counted + ignored == len(wanted)
    assert dataset.manifest["statistics"]["ignored"] == ignored
    assert 0 < max(end.peak for end in ends) < MEMORY
    assert not _canaries(tmp_path / "out")
    assert _told_names(dataset) == {printable(f.name) for f in wanted if f.verdict == dirty.COMMITTED}


def _canaries(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and dirty.CANARY in p.read_bytes()]


def _told_names(dataset: Dataset) -> set[str]:
    return {
        json.loads(record.members["json"])["file_name"]
        for shard in dataset.shards
        for record in dataset.read(shard.name, columns=("json",))
    }
