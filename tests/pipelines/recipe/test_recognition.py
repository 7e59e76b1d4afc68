"""Which kind of source a place is taken for, and what is said where that cannot be told."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipelines.recipe import glimpse
from pipelines.recipe.recognition import recognise
from pipelines.sources import HuggingFaceSource, IdxSource

JPEG = b"\xff\xd8\xff\xe0" + bytes(60)


def lay(folder: Path, names: Sequence[str], data: bytes = b"") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def idx(folder: Path, labels: Sequence[int]) -> Path:
    for split in ("train", "t10k"):
        images = struct.pack(">IIII", 0x0803, len(labels), 2, 2) + bytes(4 * len(labels))
        lay(folder, [f"{split}-images-idx3-ubyte.gz"], gzip.compress(images))
        lay(
            folder,
            [f"{split}-labels-idx1-ubyte"],
            struct.pack(">II", 0x0801, len(labels)) + bytes(labels),
        )
    return folder


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["cat/1.jpg", "cat/1.txt", "dog/2.PNG", "notes.md"], "folder"),
        (["1.jpg", "2.jpg", "metadata.csv"], "folder"),
        (["00000.tar", "00001.tar"], "webdataset"),
        (["train/0.tar.gz", "README.md", "names.csv"], "webdataset"),
        (["00000.tar", "00000.parquet", "00000_stats.json"], "img2dataset"),
        (["00000/000000001.jpg", "00000.parquet", "00000_stats.json"], "img2dataset"),
        (["00000.parquet", "00001.parquet"], "table"),
        (["a.csv", "b.csv", "readme.txt"], "table"),
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], "huggingface"),
    ],
)
def test_a_folder_is_told_by_names(tmp_path: Path, names: Sequence[str], kind: str) -> None:
    assert recognise(str(lay(tmp_path, names))).source.kind == kind  # pyright: ignore


def test_a_folder_whose_files_have_no_ending_is_told_by_bytes(tmp_path: Path) -> None:
    assert recognise(str(lay(tmp_path, ["0001", "0002"], JPEG))).source.kind == "folder"  # pyright: ignore


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.tar", "b.jpg", "c.png"], "holds 1 tars and 2 images: .* --kind webdataset or --kind folder"),
        (["a.parquet", "b.jpg"], "1 Parquet tables and 1 images"),
        (["a.zip", "b.zip"], "holds 2 zip archives and no images: name one, as .*a.zip"),
        (["state.json", "data.arrow"], "written by `save_to_disk`"),
        (["0.tfrecord"], "1 TFRecords, which are not read"),
        (
            ["a.mp4", "b.mp4", "c.txt"],
            "no image in it, no tar and no table; there is 2 .mp4 and 1 .txt. The kin",
        ),
        ([], "there is nothing. The kinds are folder, zip, glob, webdataset, img2dataset, table, hugg"),
    ],
)
def test_what_is_none_or_several_is_refused_in_a_line(
    tmp_path: Path, names: Sequence[str], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        recognise(str(lay(tmp_path, names)))
    assert "\n" not in str(raised.value)
    if names == ["a.tar", "b.jpg", "c.png"]:
        assert recognise(str(tmp_path), kind="folder").source.kind == "folder"  # pyright: ignore


def test_files_are_told_by_their_bytes_whatever_they_are_called(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos", "w") as archive:
        archive.writestr("a.jpg", JPEG)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    lay(tmp_path, ["shard"], packed.getvalue())
    lay(tmp_path, ["list.jsonl"], b"{}\n")
    for name, kind in {"photos": "zip", "shard": "webdataset", "list.jsonl": "table"}.items():
        assert recognise(str(tmp_path / name)).source.kind == kind  # pyright: ignore
    for name, data, said in (
        ("rows", b"PAR1" + bytes(40), "name it rows.parquet"),
        ("a.jpg", JPEG, "is one picture: name the folder"),
        ("all.json", b"[]", "one object a line"),
        ("urls.txt", b"http://x", "is for img2dataset"),
    ):
        with pytest.raises(ValueError, match=said):
            recognise(str(lay(tmp_path, [name], data) / name))
    with pytest.raises(ValueError, match="there is no .*nowhere"):
        recognise(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("photos/**/*.jpg", "glob"),
        ("shards/{00000..00127}.tar", "webdataset"),
        ("tables/*.parquet", "table"),
        ("s3://bucket/photos/**/*.png", "glob"),
        ("s3://bucket/shards/*.tar.gz", "webdataset"),
        ("gs://bucket/photos.zip", "zip"),
        ("az://container/rows.csv", "table"),
    ],
)
def test_patterns_and_addresses_of_files_are_told_by_their_endings(place: str, kind: str) -> None:
    assert recognise(place).source.kind == kind  # pyright: ignore


def test_idx_files_are_found_below_and_know_their_classes(tmp_path: Path) -> None:
    digits = recognise(str(idx(tmp_path / "MNIST" / "raw", [5, 0, 4, 1, 9]).parent)).source
    assert isinstance(digits, IdxSource)
    assert (digits.path, digits.names) == (tmp_path / "MNIST" / "raw", tuple("0123456789"))
    clothes = recognise(str(idx(tmp_path / "f", [9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 1]))).source
    assert isinstance(clothes, IdxSource)
    assert clothes.names[9] == "Ankle boot"
    assert recognise(str(tmp_path / "f" / "train-labels-idx1-ubyte")).source == clothes
    with pytest.raises(ValueError, match="IDX files in 'MNIST/raw', 'f': name one"):
        recognise(str(tmp_path))


def test_of_several_configurations_one_is_taken_and_the_others_named(tmp_path: Path) -> None:
    lay(tmp_path, ["big/0.parquet", "small/0.parquet"])
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- {config_name: big, data_files: big/*}\n"
        "- {config_name: small, data_files: small/*}\n---\n"
    )
    found = recognise(str(tmp_path))
    assert isinstance(found.source, HuggingFaceSource)
    assert found.source.config == "big"
    assert "there are small, too" in found.notes[0]


def test_columns_are_handed_on_and_refused_where_there_are_none(tmp_path: Path) -> None:
    table = recognise("rows.parquet/*.parquet", fields={"image": "pic", "label": None}).source
    assert (table.image, table.label) == ("pic", None)  # pyright: ignore
    with pytest.raises(ValueError, match="of the kind folder, which has no 'text' to choose"):
        recognise(str(lay(tmp_path, ["1.jpg"])), fields={"text": "caption"})


def test_a_table_beside_images_is_pointed_out(tmp_path: Path) -> None:
    found = recognise(str(lay(tmp_path, ["1.jpg", "metadata.csv", "styles.csv"])))
    assert len(found.notes) == 1
    assert f"`latentmill init {tmp_path / 'styles.csv'}`" in found.notes[0]


def test_a_large_folder_is_not_listed_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, [f"{n:02d}/{m}.jpg" for n in range(20) for m in range(5)])
    monkeypatch.setattr(glimpse, "NAMES", 12)
    seen = glimpse.glimpse(tmp_path)
    assert len(seen.names) == 12
    assert len({name.partition("/")[0] for name in seen.names}) == 3
