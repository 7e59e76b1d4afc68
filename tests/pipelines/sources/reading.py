"""Reads a source as the survey does, part by part, and checks what holds for every source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.storage import Storage
from pipelines.sources.blobs import Blobs
from pipelines.sources.source import Found, Part

LIMIT = 1_000_000


def leaves(source: Any) -> list[Part]:
    waiting, found = source.roots(), []
    while waiting:
        part = waiting.pop(0)
        if part.leaf:
            found.append(part)
        else:
            waiting += source.split(part)
    assert len({part.name for part in found}) == len(found)
    return found


def everything(source: Any, folder: Path, limit: int = LIMIT) -> list[Found]:
    """All that a source gives; every image is found again by its place, and two reads are equal."""
    blobs = Blobs(Storage.at(folder / "blobs"))
    found: list[Found] = []
    for part in leaves(source):
        first = list(source.read(part, limit, {}, blobs))
        assert list(source.read(part, limit, {}, blobs)) == first
        found += first
    reader = source.reader(blobs)
    for one in found:
        if one.data is not None:
            assert reader.read(one.where, limit) == one.data
            assert one.reject is None
    names = [one.name for one in found if one.side != "facts"]
    assert len(set(names)) == len(names)
    return found


def images(found: list[Found]) -> dict[str, Found]:
    return {one.name: one for one in found if not one.side and not one.reject}


def rejects(found: list[Found]) -> dict[str, str]:
    return {one.name: one.reject for one in found if one.reject}
