"""Parquet files as HuggingFace `datasets` and its viewer take them: images inside, features named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.export.joined import Joined, Line
from pipelines.shards import canonical

FILE_BYTES = 400_000_000
"""Bytes of images in a file, about."""
GROUP_ROWS = 100
"""Rows of a row group: the viewer reads one at a time, and random access reads a whole one."""
GROUP_BYTES = 64_000_000
TEXTS = (".json", ".txt")
"""Endings of joined columns that are text; others, such as .npy, are bytes for `numpy.load`."""


def write(line: Line, out: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Split -> samples, and split -> the pattern of its files."""
    (out / "data").mkdir()
    writers: dict[str, _Files] = {}
    for shard in line.dataset.shards:
        for sample in line.samples(shard):
            if shard.split not in writers:
                writers[shard.split] = _Files(out / "data", shard.split, line)
            writers[shard.split].add(sample)
    for files in writers.values():
        files.close()
    counts = {split: files.rows for split, files in writers.items()}
    return counts, {split: f"{out}/data/{split}-*.parquet" for split in writers}


class _Files:
    """The files of one split. How many there are is known at the end, and then they get their names."""

    def __init__(self, folder: Path, split: str, line: Line) -> None:
        self.rows = 0
        self._folder, self._split = folder, split
        self._columns = [column for _, column in line.columns]
        self._weighted = hasattr(line.dataset, "sources")
        self._classes = line.dataset.classes
        self._schema = self._schema_of(self._classes)
        self._files: list[Path] = []
        self._writer: Any = None
        self._group: list[dict[str, Any]] = []
        self._group_bytes = self._file_bytes = 0

    def add(self, sample: Joined) -> None:
        row: dict[str, Any] = {
            "key": sample.key,
            "image": {"bytes": sample.image, "path": f"{sample.key}.{sample.suffix}"},
            "text": sample.text,
            "label": sample.class_id if self._classes else sample.label,
            "json": canonical(sample.facts).decode(),
        }
        if self._weighted:
            row |= {name: sample.facts.get(name) for name in ("weight", "source")}
        for name, data in sample.columns.items():
            row[name] = data.decode() if name.endswith(TEXTS) else data
        self._group.append(row)
        self._group_bytes += len(sample.image) + sum(map(len, sample.columns.values()))
        self.rows += 1
        if len(self._group) >= GROUP_ROWS or self._group_bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()
        for n, file in enumerate(self._files):
            file.rename(self._folder / f"{self._split}-{n:05d}-of-{len(self._files):05d}.parquet")

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._group:
            return
        if self._writer is not None and self._file_bytes + self._group_bytes > FILE_BYTES:
            self._writer.close()
            self._writer, self._file_bytes = None, 0
        if self._writer is None:
            self._files.append(self._folder / f".{self._split}-{len(self._files):05d}.partial")
            # images are compressed already; the page index lets a reader skip to a row
            self._writer = pq.ParquetWriter(
                self._files[-1],
                self._schema,
                compression="zstd",
                write_page_index=True,
                use_dictionary=False,
            )
        self._writer.write_table(pa.Table.from_pylist(self._group, schema=self._schema))
        self._file_bytes += self._group_bytes
        self._group, self._group_bytes = [], 0

    def _schema_of(self, classes: list[str]) -> Any:
        import pyarrow as pa

        text = {"dtype": "string", "_type": "Value"}
        label: Any = {"names": classes, "_type": "ClassLabel"} if classes else text
        fields: dict[str, tuple[Any, Any]] = {
            "key": (pa.string(), text),
            "image": (pa.struct({"bytes": pa.binary(), "path": pa.string()}), {"_type": "Image"}),
            "text": (pa.string(), text),
            "label": (pa.int64() if classes else pa.string(), label),
            "json": (pa.string(), text),
        }
        if self._weighted:
            fields["weight"] = (pa.float64(), {"dtype": "float64", "_type": "Value"})
            fields["source"] = (pa.string(), text)
        for name in self._columns:
            binary = (pa.binary(), {"dtype": "binary", "_type": "Value"})
            fields[name] = (pa.string(), text) if name.endswith(TEXTS) else binary
        features = {name: feature for name, (_, feature) in fields.items()}
        # where `datasets` looks for what a column means
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        return pa.schema([(name, kind) for name, (kind, _) in fields.items()], metadata=metadata)
