"""A dataset in a form that other tools read: an image folder, or WebDataset tars with every column joined."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.storage import Storage
from pipelines.dataset import Dataset, describe, write_manifest
from pipelines.shards import canonical, write_shard
from pipelines.stage import Row, Sample
from pipelines.view import View

Form = Literal["folder", "webdataset"]


def export(dataset: Dataset, out: Path, *, form: Form = "folder", captions: Dataset | None = None) -> int:
    """Writes every kept sample that has an image to the folder `out`; how many they were.

    folder: `<split>/<class>/<key>.<suffix>`, and in each split a metadata.csv (HuggingFace's ImageFolder:
    file_name, text, label, and weight where the dataset has weights). webdataset: tars that hold image, txt,
    cls and json, beside a manifest of their own. Weights are stated (metadata.csv, json), not applied.

    Args:
        dataset: images; a view's rows are read from where they lie.
        out: must not exist, or be empty.
        captions: of the same images, for their `txt`; without it the text that the source states is taken.

    Raises:
        ValueError: `out` is in use, or the dataset has no images.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty; name a folder that is not there yet.")
    if "image" not in dataset.columns:
        raise ValueError(
            f"{dataset.storage.url} has no images: its columns are {', '.join(dataset.columns)}."
        )
    out.mkdir(parents=True, exist_ok=True)
    return _folder(dataset, captions, out) if form == "folder" else _webdataset(dataset, captions, out)


@dataclass(frozen=True, kw_only=True)
class _Exported:
    key: str
    suffix: str
    image: bytes
    text: str | None
    label: str | None
    class_id: int | None
    facts: Mapping[str, Any]


def _folder(dataset: Dataset, captions: Dataset | None, out: Path) -> int:
    storage = Storage.at(out)
    folders = _folder_names(dataset.classes)
    rows: dict[str, list[dict[str, Any]]] = {}
    for shard in dataset.shards:
        for sample in _samples(dataset, captions, shard.name):
            folder = f"{folders[sample.label]}/" if sample.label in folders else ""
            name = f"{folder}{sample.key}.{sample.suffix}"
            storage.put_if_absent(f"{shard.split}/{name}", sample.image)
            said = {"file_name": name, "text": sample.text, "label": sample.label}
            said |= {k: sample.facts[k] for k in ("weight", "source") if k in sample.facts}
            rows.setdefault(shard.split, []).append({k: v for k, v in said.items() if v is not None})
    for split, said in rows.items():
        names = [
            n for n in ("file_name", "text", "label", "weight", "source") if any(n in row for row in said)
        ]
        sheet = io.StringIO(newline="")
        writer = csv.DictWriter(sheet, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(said, key=lambda row: row["file_name"]))
        storage.put_if_absent(f"{split}/metadata.csv", sheet.getvalue().encode())
    return sum(map(len, rows.values()))


def _webdataset(dataset: Dataset, captions: Dataset | None, out: Path) -> int:
    storage = Storage.at(out)
    infos = []
    for shard in dataset.shards:
        pairs = ((Row(key=s.key), _sample(s)) for s in _samples(dataset, captions, shard.name))
        infos.append(write_shard(storage, shard.name, pairs, split=shard.split))
    manifest = describe(infos, stage="export", classes=dataset.classes, inputs={"dataset": dataset.digest()})
    write_manifest(storage, manifest)
    return sum(info.samples for info in infos)


def _sample(sample: _Exported) -> Sample:
    members = {sample.suffix: sample.image, "json": canonical(sample.facts)}
    if sample.text is not None:
        members["txt"] = sample.text.encode()
    if sample.class_id is not None:
        members["cls"] = str(sample.class_id).encode()
    return Sample(key=sample.key, members=members)


def _samples(dataset: Dataset, captions: Dataset | None, shard: str) -> Iterator[_Exported]:
    index = dataset.index(shard)
    for n, key in enumerate(index.keys):
        suffix = index.suffix(n, "image")
        if suffix is None or index.reasons[n]:
            continue
        facts = json.loads(dataset.read_member(shard, n, "json")) if index.member(n, "json") else {}
        if isinstance(dataset, View):
            facts |= {name: index.meta[n][name] for name in ("source", "weight")}
        class_id = int(dataset.read_member(shard, n, "cls")) if index.member(n, "cls") else None
        label = facts.get("label")
        if class_id is not None and class_id < len(dataset.classes):
            label = dataset.classes[class_id]
        yield _Exported(
            key=key,
            suffix=suffix,
            image=dataset.read_member(shard, n, "image"),
            text=_text(dataset, captions, shard, n) or facts.get("text") or facts.get("prompt"),
            label=None if label is None else str(label),
            class_id=class_id,
            facts=facts,
        )


def _text(dataset: Dataset, captions: Dataset | None, shard: str, n: int) -> str | None:
    """The first caption: the row's own, else that of `captions`, which has the rows of its images."""
    if dataset.index(shard).member(n, "txt"):
        return dataset.read_member(shard, n, "txt").decode()
    if captions is None:
        return None
    if isinstance(dataset, View):
        row = dataset.rows(shard)[n]
        return _text(dataset.sources[row.source], captions, row.shard, row.row)
    if not any(info.name == shard for info in captions.shards):
        return None
    theirs = captions.index(shard)
    if theirs.keys != dataset.index(shard).keys or not theirs.member(n, "txt"):
        return None
    return captions.read_member(shard, n, "txt").decode()


def _folder_names(classes: Sequence[str]) -> dict[str | None, str]:
    """Class name -> a folder name that every file system takes; different for different classes."""
    names: dict[str | None, str] = {}
    for number, label in enumerate(classes):
        safe = re.sub(r"[^\w.+-]+", "_", label).strip("._") or "class"
        names[label] = f"{safe}_{number}" if safe in names.values() else safe
    return names
