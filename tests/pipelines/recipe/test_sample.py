"""What is said of sources that are read in part, against what they hold."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.recipe import drawing, sample
from pipelines.recipe.survey import survey
from pipelines.sources import (
    FolderSource,
    HuggingFaceSource,
    Img2datasetSource,
    TableSource,
    WebDatasetSource,
    ZipSource,
    layout,
)
from tests.pipelines.sources import hostile_tars
from tests.pipelines.sources.downloads import shard
from tests.pipelines.sources.hostile_tars import plain


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if these were large: few at a time."""
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    for module in (drawing, sample):
        monkeypatch.setattr(module, "CHUNK", 16)
        monkeypatch.setattr(module, "ROWS", 16)


def png(n: int) -> bytes:
    return hostile_tars.png(n % 256)


def folder(path: Path, *, classes: int, each: int) -> Path:
    """Every second image has a caption."""
    for n in range(classes):
        (path / f"class{n}").mkdir(parents=True)
        for m in range(each):
            (path / f"class{n}" / f"{m}.png").write_bytes(png(m))
            if m % 2:
                (path / f"class{n}" / f"{m}.txt").write_text("words")
    return path


def tars(path: Path, *, number: int, each: int) -> Path:
    path.mkdir()
    for n in range(number):
        members = {
            f"{m}.{end}": png(m) if end == "png" else b"2" for m in range(each) for end in ("png", "cls")
        }
        (path / f"{n:03d}.tar").write_bytes(plain(members))
    return path


def tables(path: Path, *, number: int, each: int) -> Path:
    path.mkdir()
    for n in range(number):
        rows = pa.table({"image": [png(m) for m in range(each)], "title": ["x"] * each})
        pq.write_table(rows, path / f"{n:03d}.parquet", row_group_size=10)
    return path


def lines(path: Path, *, rows: int, where: str = "") -> Path:
    (path / "pictures").mkdir(parents=True)
    with (path / "rows.csv").open("w", newline="") as file:
        made = csv.writer(file)
        made.writerow(["file", "caption"])
        for n in range(rows):
            (path / "pictures" / f"{n}.png").write_bytes(png(n))
            made.writerow([f"{where}{n}.png", f"number {n},\nas said"])
    return path / "rows.csv"


def test_all_that_is_there_is_counted_where_it_is_small(tmp_path: Path) -> None:
    found = survey(FolderSource(path=folder(tmp_path / "f", classes=3, each=20)))
    assert (found.exact, found.images, found.read, found.looked, found.texts) == (True, 60, 60, 60, 30)
    assert found.labels == {f"class{n}": 20 for n in range(3)}
    found = survey(WebDatasetSource(path=tars(tmp_path / "t", number=3, each=20)))
    assert (found.exact, found.images, found.labels) == (True, 60, {"2": 60})
    found = survey(TableSource(path=tables(tmp_path / "p", number=3, each=20)))
    assert (found.exact, found.images, found.looked, found.metadata) == (True, 60, 60, ("title",))
    assert found.columns
    assert (found.columns.image, found.columns.others) == ("image", ("title",))
    found = survey(TableSource(path=lines(tmp_path / "c", rows=60, where="pictures/")))
    assert (found.exact, found.images, found.texts) == (True, 60, 60)


@pytest.mark.parametrize(
    "kind", ["folder", "deep", "zip", "webdataset", "packed", "table", "lines", "img2dataset"]
)
def test_what_is_read_in_part_is_reckoned(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any time: of each but the first part nothing is read, and the first is read in part."""
    path, source = tmp_path / "s", None
    if kind in ("folder", "deep", "zip"):
        folder(path, classes=10, each=40)
        source = FolderSource(path=path)
    if kind == "deep":
        monkeypatch.setattr(layout, "_WALK", 50)
    if kind == "zip":
        source = ZipSource(path=zipped(path))
    if kind == "webdataset":
        source = WebDatasetSource(path=tars(path, number=10, each=40))
    if kind == "packed":
        source = WebDatasetSource(path=one_tar(path, each=400))
    if kind == "table":
        source = TableSource(path=tables(path, number=10, each=40))
    if kind == "lines":
        source = TableSource(path=lines(path, rows=400), images=path / "pictures")
    if kind == "img2dataset":
        for n in range(10):
            shard(path, n, 40, png)
        source = Img2datasetSource(path=path)
    assert source
    found = survey(source, seconds=0.0)
    assert not found.exact
    assert 8 <= found.read <= 60
    # bytes say it less well than names and rows do, those of tars with an empty end as long as five pictures
    assert found.images == pytest.approx(400, rel=0.2 if kind in ("webdataset", "packed", "lines") else 0.05)
    assert found.images >= found.texts
    if kind in ("folder", "zip"):
        assert found.texts == pytest.approx(200, rel=0.7)
    assert not found.broken
    again = survey(source, seconds=0.0)
    assert again == found, "drawn by chance, and the same each time"


def zipped(path: Path) -> Path:
    import shutil

    return Path(shutil.make_archive(str(path), "zip", path))


def one_tar(path: Path, *, each: int) -> Path:
    path.mkdir()
    (path / "all.tar").write_bytes(plain({f"{m}.png": png(m) for m in range(each)}))
    return path / "all.tar"


def test_metadata_are_read_whatever_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they say of images that were not drawn is no fault of these."""
    path = folder(tmp_path / "f", classes=2, each=100)
    rows = "".join(f"class{n}/{m}.png,hat {m},{m}\n" for n in range(2) for m in range(100))
    (path / "metadata.csv").write_text(f"file_name,text,size\n{rows}")
    monkeypatch.setattr(drawing, "DRAWN", 50)
    found = survey(FolderSource(path=path))
    assert (found.exact, found.read, found.images, found.texts) == (False, 50, 200, 200)
    assert (found.metadata, found.broken) == (("size",), ())
    found = survey(FolderSource(path=path), seconds=0.0)
    assert (found.exact, found.images, found.texts, found.broken) == (False, 200, 200, ())
    monkeypatch.setattr(drawing, "METADATA", 100)
    found = survey(FolderSource(path=path))
    assert "metadata.csv is too large to be read here" in found.notes[0]


def test_the_files_of_a_table_are_looked_for_nearby(tmp_path: Path) -> None:
    table = lines(tmp_path / "c", rows=40)
    found = survey(TableSource(path=table))
    assert (found.images, found.looked, found.texts) == (40, 40, 40)
    assert found.source.images == tmp_path / "c" / "pictures"  # pyright: ignore
    (tmp_path / "elsewhere").mkdir()
    alone = tmp_path / "elsewhere" / "rows.csv"
    table.rename(alone)
    with pytest.raises(ValueError, match="none of 40 images .* --below DIR says where"):
        survey(TableSource(path=alone))
    found = survey(TableSource(path=alone, images=tmp_path / "c" / "pictures"))
    assert found.looked == 40


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    survey(TableSource(path=tables(tmp_path / "p", number=2, each=20)))
    assert not [path for path in (tmp_path / "cache").rglob("*") if "init-" in str(path)]


def test_a_dataset_of_huggingface(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, count in (("train", 30), ("test", 10)):
        picture = [{"bytes": png(n), "path": None} for n in range(count)]
        rows = pa.table({"image": picture, "label": [n % 2 for n in range(count)]})
        pq.write_table(rows, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    found = survey(HuggingFaceSource(path=tmp_path))
    assert (found.images, found.splits, found.labels) == (40, {"train": 30, "test": 10}, {"0": 20, "1": 20})


def test_a_long_tar_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten tars each gives a few images, and what is held of packed ones has an end."""
    path = tars(tmp_path / "t", number=10, each=40)
    monkeypatch.setattr(sample, "EACH", 5)
    found = survey(WebDatasetSource(path=path))
    assert (found.read, found.exact) == (50, False)
    assert found.images == pytest.approx(400, rel=0.2)
    monkeypatch.setattr(drawing, "PARTS", 4)
    found = survey(WebDatasetSource(path=path))
    assert (found.read, found.exact, found.images) == (160, False, 400), "four tars of ten, to their ends"


def test_members_that_tars_hold_twice(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for n in range(30):
            info: Any = tarfile.TarInfo(f"{n}.png")
            info.size = len(png(n))
            tar.addfile(info, io.BytesIO(png(n)))
    (tmp_path / "a.tar.gz").write_bytes(packed.getvalue())
    found = survey(WebDatasetSource(path=tmp_path / "a.tar.gz"))
    assert (found.images, found.looked, found.exact) == (30, 30, True)
