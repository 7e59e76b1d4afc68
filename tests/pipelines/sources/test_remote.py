"""Containers in a bucket: read where they lie, by ranges, to what they are on a disk."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.storage import Storage
from pipelines.sources import HuggingFaceSource, Img2datasetSource, TableSource, WebDatasetSource
from tests import s3
from tests.pipelines.sources.downloads import shard
from tests.pipelines.sources.hostile_tars import plain, png
from tests.pipelines.sources.reading import everything, images


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3.serving() as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in s3.credentials(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    return f"s3://{s3.new_bucket()}"


def put(folder: Path, url: str) -> None:
    storage = Storage.at(url)
    for path in folder.rglob("*"):
        if path.is_file():
            storage.put_if_absent(path.relative_to(folder).as_posix(), path)


def tars(folder: Path) -> None:
    data = plain(
        {f"{n}.{end}": png(n) if end == "png" else b"words" for n in range(5) for end in ("png", "txt")}
    )
    (folder / "00.tar").write_bytes(data)
    (folder / "01.tar.gz").write_bytes(gzip.compress(data))


def tables(folder: Path) -> None:
    pq.write_table(
        pa.table({"image": [png(n) for n in range(5)]}), folder / "train-0.parquet", row_group_size=2
    )


def lines(folder: Path) -> None:
    for n in range(5):
        (folder / f"{n}.png").write_bytes(png(n))
    (folder / "t.csv").write_text(
        "path,text\n" + "".join(f"{n}.png,shade\n" for n in range(5)) + "../x.png,no\n"
    )


def downloads(folder: Path) -> None:
    shard(folder, 0, 5, png, failed=(1,))
    shard(folder, 1, 5, png, output="files")


SOURCES = {
    "webdataset": (tars, lambda at: WebDatasetSource(path=at)),
    "pattern": (tars, lambda at: WebDatasetSource(path=Path(f"{at}/{{00..00}}.tar"))),
    "parquet": (tables, lambda at: TableSource(path=at)),
    "csv": (lines, lambda at: TableSource(path=Path(f"{at}/t.csv"))),
    "huggingface": (tables, lambda at: HuggingFaceSource(path=at)),
    "img2dataset": (downloads, lambda at: Img2datasetSource(path=at)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_bucket_holds_what_a_folder_holds(name: str, bucket: str, tmp_path: Path) -> None:
    write, source = SOURCES[name]
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder)
    put(folder, f"{bucket}/data")

    def said(found: list[Any]) -> list[Any]:
        return [
            (one.name, one.data, dict(one.facts), one.split, one.reject, one.key, one.side) for one in found
        ]

    here = everything(source(folder), tmp_path / "here")
    there = everything(source(Path(f"{bucket}/data")), tmp_path / "there")
    assert said(there) == said(here)
    assert len(images(here)) >= 5
