"""Tars that were made to be read wrongly: each is read, none leaves anything outside, nothing is lost."""

from __future__ import annotations

import contextlib
import gzip
import io
import random
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from pipelines.sources.tars import Broken, TarStream
from pipelines.sources.webdataset import WebDatasetSource
from tests.pipelines.sources import hostile_tars
from tests.pipelines.sources.hostile_tars import CASES, PNG, plain, png
from tests.pipelines.sources.reading import everything


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_there_are_fifty() -> None:
    assert len(CASES) >= 50


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", CASES)
def test_a_hostile_tar(name: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    inside = tmp_path / "in" / "side"
    inside.mkdir(parents=True)
    (inside / ("x.tar.gz" if packed else "x.tar")).write_bytes(
        gzip.compress(case.data, 1) if packed else case.data
    )
    monkeypatch.chdir(inside)
    before = files(tmp_path)
    found = everything(WebDatasetSource(path=inside), tmp_path)
    assert {file for file in files(tmp_path) - before if file.partition("/")[0] != "blobs"} == set()
    tar = "x.tar.gz/" if packed else "x.tar/"
    kept = [one.name.removeprefix(tar) for one in found if one.data is not None]
    assert sorted(kept) == sorted(case.kept)
    assert Counter(one.reject for one in found if one.reject) == case.rejects
    assert sum(one.side == "file" for one in found) == case.ignored
    # Nothing but the images' own bytes is ever taken for an image.
    assert {one.data for one in found if one.data is not None} <= {PNG, png(1), png(2)}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_reads(form: int) -> None:
    draw = random.Random(form)
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as tar:
        for n in range(200):
            # Long names go into ustar's prefix, GNU's long names or pax headers.
            name = (
                "/".join(draw.choice(["a", "b" * 90, "é" * 40]) for _ in range(draw.randint(0, 2)))
                + f"/{n}.jpg"
            )
            info = tarfile.TarInfo(
                name.lstrip("/")[:200] if form == tarfile.USTAR_FORMAT else name.lstrip("/")
            )
            info.size = draw.choice([0, 1, 511, 512, 513, 5000])
            tar.addfile(info, io.BytesIO(draw.randbytes(info.size)))
    data = sink.getvalue()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(info.name, info.size, info.offset_data) for info in tar]
    stream = TarStream(io.BytesIO(data))
    seen = []
    for member in stream.members():
        assert member.refused is None
        assert stream.read(1 << 20) == data[member.offset : member.offset + member.size]
        seen.append((member.name, member.size, member.offset))
    assert seen == expected


def test_every_cut_is_told_of() -> None:
    """At any byte: what is whole is read, and the cut is known."""
    data = plain({f"{n}.png": PNG for n in range(4)})
    for cut in range(4 * (512 + 512)):
        stream = TarStream(io.BytesIO(data[:cut]))
        whole = []
        with contextlib.suppress(Broken):
            whole += (stream.read(1 << 20) for _ in stream.members())
            pytest.fail(f"cut at {cut}, and nothing was noticed")
        assert whole == [PNG] * ((cut + 512 - len(PNG)) // 1024)


def test_a_flip_in_a_header_is_told_of_or_changes_nothing_it_says() -> None:
    data = hostile_tars.between()
    draw = random.Random(0)
    for _ in range(400):
        at = draw.randrange(512)
        broken = bytearray(data)
        broken[at] ^= 1 << draw.randrange(8)
        stream = TarStream(io.BytesIO(bytes(broken)))
        try:
            seen = [(m.name, stream.read(1 << 20)) for m in stream.members() if not m.refused]
        except Broken:
            continue
        # Only the checksum field's own blanks are read leniently.
        assert seen == [("first.png", PNG), ("last.png", PNG)]
