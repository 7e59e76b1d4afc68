"""An image folder, with a metadata.csv in each split, as HuggingFace's ImageFolder reads it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.storage import Storage
from pipelines.export.joined import Line


def write(line: Line, out: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Split -> samples, and split -> its folder."""
    storage = Storage.at(out)
    folders = _folder_names(line.dataset.classes)
    rows: dict[str, list[dict[str, Any]]] = {}
    for shard in line.dataset.shards:
        for sample in line.samples(shard):
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
    return {split: len(said) for split, said in rows.items()}, {split: f"{out}/{split}" for split in rows}


def _folder_names(classes: Sequence[str]) -> dict[str | None, str]:
    """Class name -> a folder name that every file system takes; different for different classes."""
    names: dict[str | None, str] = {}
    for number, label in enumerate(classes):
        safe = re.sub(r"[^\w.+-]+", "_", label).strip("._") or "class"
        names[label] = f"{safe}_{number}" if safe in names.values() else safe
    return names
