"""A source read through: in parts, by tasks, each once, to the same inputs whatever the parts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.mapping import InlineExecutor
from cluster.storage import Storage
from pipelines.sources import FolderSource, GlobSource, entries, layout
from pipelines.sources.sightings import Question, parted, whole
from pipelines.sources.survey import Survey, survey
from pipelines.stage import TooMany

PNG = b"\x89PNG\r\n\x1a\n"
QUESTION = Question(max_bytes=1000, max_pixels=1000)


def write(folder: Path, **files: str | bytes) -> None:
    for name, data in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())


def found(survey: Survey) -> list[tuple[object, ...]]:
    rows = [(e.key, e.name, e.where, e.digest, dict(e.facts), e.split, e.reject) for e in survey.entries()]
    return sorted(rows, key=str)


def many(folder: Path) -> None:
    for n in range(60):
        write(folder, **{f"{'ab'[n % 2]}__{n:03d}.png": PNG + b"%d" % n})
    write(
        folder,
        **{
            "a__000.txt": "the first",
            "b__note.md": "nothing",
            "metadata.csv": "file_name,text\nb/001.png,second\n",
        },
    )


@pytest.mark.parametrize(("chunk", "each", "walk"), [(4, 8, 10), (512, 1 << 18, 50_000), (7, 1 << 18, 5)])
def test_parts_and_ranges_change_nothing_of_what_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, each: int, walk: int
) -> None:
    many(tmp_path / "in")
    source = FolderSource(path=tmp_path / "in")
    whole = survey(source, QUESTION, store=Storage.at(tmp_path / "whole"))
    monkeypatch.setattr(layout, "_CHUNK", chunk)
    monkeypatch.setattr(layout, "_WALK", walk)
    monkeypatch.setattr("pipelines.sources.survey.MERGED", 3)
    original = entries.ranges
    monkeypatch.setattr("pipelines.sources.survey.ranges", lambda rows, name: original(rows, name, each=each))
    other = survey(source, QUESTION, store=Storage.at(tmp_path / "other"))
    assert found(other) == found(whole)
    assert (
        (other.count, other.ignored, other.captioned)
        == (whole.count, whole.ignored, whole.captioned)
        == (60, 1, 2)
    )
    assert other.bytes == whole.bytes == sum(len(PNG) + len(str(n)) for n in range(60))


def test_what_a_killed_survey_has_read_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.sources.tree import LocalTree

    many(tmp_path / "in")
    monkeypatch.setattr(layout, "_CHUNK", 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    source, store = FolderSource(path=tmp_path / "in"), Storage.at(tmp_path / "store")
    read: list[str] = []
    original = LocalTree.open

    def counted(tree: LocalTree, name: str):
        read.append(name)
        return original(tree, name)

    def stop(done: int, of: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(LocalTree, "open", counted)
    with pytest.raises(KeyboardInterrupt):
        survey(source, QUESTION, store=store, tell=stop)
    survey(source, QUESTION, store=store)
    assert sorted(read) == sorted(set(read)), "each file is opened once"
    assert len(read) == 63


def test_a_large_source_waits_for_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many(tmp_path / "in")
    monkeypatch.setattr(layout, "_CHUNK", 4)
    source, store = FolderSource(path=tmp_path / "in"), Storage.at(tmp_path / "store")
    with pytest.raises(TooMany, match="parts that were not read yet"):
        survey(source, QUESTION, store=store, most=3)
    survey(source, QUESTION, store=store)
    assert survey(source, QUESTION, store=store, most=3).count == 60, "what is known is no work"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.png", {"top.png"}),
        ("**/*.png", {"top.png", "cat/1.png", "cat/deep/2.png", "dog/3.png"}),
        ("cat/**", {"1.png", "deep/2.png"}),
        ("[cd]*/?.png", {"cat/1.png", "dog/3.png"}),
        ("cat/{1}*.png", set()),
    ],
)
def test_a_pattern_names_files(tmp_path: Path, pattern: str, names: set[str]) -> None:
    write(tmp_path / "in", **{"top.png": PNG, "cat__1.png": PNG, "cat__deep__2.png": PNG, "dog__3.png": PNG})
    source = GlobSource(path=tmp_path / "in" / pattern, labels="none")
    if names:
        assert {e.name for e in survey(source, QUESTION, store=Storage.at(tmp_path / "s")).entries()} == names
    else:
        assert survey(source, QUESTION, store=Storage.at(tmp_path / "s")).count == 0


def test_a_pattern_without_a_wildcard_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind: folder"):
        GlobSource(path=tmp_path / "in").roots()


def test_tasks_elsewhere_are_given_what_a_part_is_made_of(tmp_path: Path) -> None:
    many(tmp_path / "in")
    source, store = FolderSource(path=tmp_path / "in"), Storage.at(tmp_path / "store")
    (folder,) = source.roots()
    for part in source.split(folder):
        light = parted(part, store)
        assert len(str(light.data)) < 80
        assert whole(light, store) == part
    assert whole(folder, store) == folder


def test_another_executor_finds_the_same(tmp_path: Path) -> None:
    many(tmp_path / "in")
    source = FolderSource(path=tmp_path / "in")
    here = survey(source, QUESTION, store=Storage.at(tmp_path / "here"))
    executor = InlineExecutor()
    executor.parallel = True
    there = survey(source, QUESTION, store=Storage.at(tmp_path / "there"), executor=executor)
    assert (found(there), there.digest, there.name) == (found(here), here.digest, here.name)
    assert Storage.at(tmp_path / "there").list(), "in the store that was named"
