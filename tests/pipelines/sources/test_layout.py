"""What a folder says by the way its files lie."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from cluster.storage import Storage
from pipelines.sources import FolderSource, ZipSource
from pipelines.sources.blobs import Blobs
from pipelines.sources.listing import Entry

PNG = b"\x89PNG\r\n\x1a\n"
NO_BLOBS = Blobs(Storage.at("/nowhere"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))


def listed(folder: Path, **files: str | bytes) -> dict[str, Entry]:
    for name, data in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return {entry.name: entry for entry in FolderSource(path=folder).listing().entries}


def test_class_folders_are_labels(tmp_path: Path) -> None:
    found = listed(
        tmp_path / "in", **{"cat__1.png": PNG, "dog__1.png": PNG, "stray.png": PNG, "big__cow__2.png": PNG}
    )
    assert {name: e.facts.get("label") for name, e in found.items()} == {
        "cat/1.png": "cat",
        "dog/1.png": "dog",
        "big/cow/2.png": "cow",
        "stray.png": None,
    }


def test_one_folder_for_all_is_no_label(tmp_path: Path) -> None:
    assert not any(
        e.facts for e in listed(tmp_path / "in", **{"images__1.png": PNG, "images__2.png": PNG}).values()
    )


def test_split_folders_are_splits_and_not_labels(tmp_path: Path) -> None:
    found = listed(
        tmp_path / "in",
        **{
            "train__cat__1.png": PNG,
            "train__dog__1.png": PNG,
            "Val__cat__1.png": PNG,
            "test__dog__9.png": PNG,
        },
    )
    assert {name: (e.split, e.facts["label"]) for name, e in found.items()} == {
        "train/cat/1.png": ("train", "cat"),
        "train/dog/1.png": ("train", "dog"),
        "Val/cat/1.png": ("validation", "cat"),
        "test/dog/9.png": ("test", "dog"),
    }


def test_a_lone_folder_called_train_is_no_split(tmp_path: Path) -> None:
    assert {e.split for e in listed(tmp_path / "in", **{"train__1.png": PNG}).values()} == {None}


def test_metadata_beats_folders_and_sidecars(tmp_path: Path) -> None:
    found = listed(
        tmp_path / "in",
        **{
            "a__1.png": PNG,
            "a__1.txt": "from the sidecar",
            "b__2.png": PNG,
            "b__2.txt": "sidecar",
            "metadata.csv": "file_name,text,split\na/1.png,from the sheet,val\nb/2.png,,\nc/3.png,lost,\n",
        },
    )
    assert {name: (dict(e.facts), e.split, e.reject) for name, e in found.items()} == {
        "a/1.png": ({"text": "from the sheet"}, "validation", None),
        "b/2.png": ({"text": "sidecar"}, None, None),
        "c/3.png": ({"text": "lost"}, None, "missing"),
    }


def test_inputs_are_told_by_name_and_by_magic(tmp_path: Path) -> None:
    found = listed(
        tmp_path / "in",
        **{
            "x.png": "no image",
            "y": PNG,
            "z.dat": PNG,
            "note.md": "words",
            "script.py": "words",
            ".hidden.png": PNG,
            "__MACOSX__x.png": PNG,
        },
    )
    assert set(found) == {"x.png", "y", "z.dat"}
    assert FolderSource(path=tmp_path / "in").listing().ignored == 2


def test_only_what_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.sources.tree import LocalTree

    read: list[str] = []
    original = LocalTree.open
    monkeypatch.setattr(LocalTree, "open", lambda self, name: (read.append(name), original(self, name))[1])
    before = listed(tmp_path / "in", **{"1.png": PNG + b"1", "2.png": PNG + b"2"})
    assert sorted(read) == ["1.png", "2.png"]
    read.clear()
    assert listed(tmp_path / "in") == before
    assert read == []
    after = listed(tmp_path / "in", **{"2.png": PNG + b"other"})
    assert read == ["2.png"]
    assert after["1.png"] == before["1.png"]
    assert after["2.png"].digest != before["2.png"].digest


def test_links_out_of_the_folder_and_pipes_are_not_followed(tmp_path: Path) -> None:
    import os

    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(PNG)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "away").symlink_to(tmp_path / "outside")
    (tmp_path / "in" / "dead.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    assert set(listed(tmp_path / "in", **{"1.png": PNG})) == {"1.png"}


def test_a_zip_with_two_members_of_one_name_has_two_inputs(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", PNG + b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", PNG + b"2")
    source = ZipSource(path=tmp_path / "a.zip")
    entries = source.listing().entries
    assert len({e.digest for e in entries}) == len({e.name for e in entries}) == 2
    assert {source.reader(NO_BLOBS).read(e.where, 99) for e in entries} == {PNG + b"1", PNG + b"2"}


def test_a_damaged_member_is_its_own_trouble(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.png", PNG + b"good")
        archive.writestr("bad.png", PNG + b"FIND ME")
    path.write_bytes(path.read_bytes().replace(b"FIND ME", b"FOUND Y"))
    found = {e.name: e for e in ZipSource(path=path).listing().entries}
    assert {name: e.reject for name, e in found.items()} == {"good.png": None, "bad.png": None} | {
        "bad.png": "unreadable"
    }
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="cut short"):
        ZipSource(path=path).listing()


def test_a_member_is_read_no_further_than_the_limit(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", PNG + bytes(10**7))
    reader = ZipSource(path=tmp_path / "bomb.zip").reader(NO_BLOBS)
    assert len(reader.read(0, 1000)) == 1001
