"""One sample, by its key: where it lies, what is known of it, and what became of it along its line."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from pipelines.dataset import Dataset
from pipelines.inspection.sheet import Shown
from pipelines.inspection.thing import Sources, Thing, ancestors, indices
from pipelines.shards import ShardIndex

TEXTS = ("json", "captions.json", "scores.json", "text.json")
"""Members that are shown as what they say."""


def sample(thing: Thing, key: str) -> tuple[dict[str, Any], Shown | None]:
    """What the dataset and those that it was made from say of a sample, and its picture.

    Raises:
        ValueError: no row has this key.
    """
    own = thing.dataset
    index, n = _find(own, key, thing)
    told: dict[str, Any] = {
        "key": key,
        "source": Sources(thing).of(index, [n])[0],
        "split": index.info.split,
        "shard": f"{own.storage.url}/{index.info.name}.tar",
        "row": n,
        "reason": index.reasons[n],
        "facts": dict(index.meta[n]),
        "members": _members(index, n),
    }
    picture, caption = None, ""
    for dataset in [own, *(ancestors(thing) if thing.finished else [])]:
        theirs = index if dataset is own else dataset.index(index.info.name)
        if key not in theirs.keys:
            continue
        row = theirs.keys.index(key)
        for name in TEXTS:
            if name not in told and theirs.member(row, name):
                with contextlib.suppress(ValueError):
                    told[name] = json.loads(dataset.read_member(index.info.name, row, name))
        if not caption and theirs.member(row, "txt"):
            caption = dataset.read_member(index.info.name, row, "txt").decode(errors="replace")
            told["txt"] = caption
        if picture is None and theirs.member(row, "image"):
            picture = dataset.read_member(index.info.name, row, "image")
    if picture is None:
        return told, None
    return told, Shown(key=key, label=key, caption=caption, picture=picture)


def _find(dataset: Dataset, key: str, thing: Thing) -> tuple[ShardIndex, int]:
    for index in indices(dataset):
        if key in index.keys:
            return index, index.keys.index(key)
    raise ValueError(f"{thing.reference} has no sample {key!r}; --reason lists keys of rejects.")


def _members(index: ShardIndex, n: int) -> dict[str, dict[str, Any]]:
    return {
        suffix: {"offset": spans[n][0], "bytes": spans[n][1], "sha256": spans[n][2]}  # pyright: ignore[reportOptionalSubscript]
        for suffix, spans in index.members.items()
        if spans[n]
    }
