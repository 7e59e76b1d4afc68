"""Folders as img2dataset 1.47.0 writes them (writer.py, downloader.py, logger.py), without a network."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

Output = Literal["webdataset", "files", "parquet"]


def row(key: str, data: bytes, *, n: int, status: str, error: str | None, kept: bool) -> dict[str, Any]:
    """The row of one address; `kept`: with --disable_all_reencoding, no size is written down."""
    done = status == "success"
    size = None if kept or not done else 1
    return {
        "url": f"http://127.0.0.1/{n}.png",
        "caption": f"number {n}",
        "camera": "x",
        "key": key,
        "status": status,
        "error_message": error,
        "width": size,
        "height": size,
        "original_width": size,
        "original_height": size,
        "exif": json.dumps({"GPS GPSLatitude": "canary"}) if done else None,
        "sha256": hashlib.sha256(data).hexdigest() if done else None,
    }


def schema() -> pa.Schema:
    kinds = {name: pa.int32() for name in ("width", "height", "original_width", "original_height")}
    names = ("url", "caption", "camera", "key", "status", "error_message", *kinds, "exif", "sha256")
    return pa.schema([(name, kinds.get(name, pa.string())) for name in names])


def shard(
    folder: Path,
    number: int,
    count: int,
    picture: Callable[[int], bytes],
    *,
    output: Output = "webdataset",
    failed: Sequence[int] = (),
    unsized: Sequence[int] = (),
    vanished: Sequence[int] = (),
    unwritten: Sequence[int] = (),
    kept: bool = False,
    finished: bool = True,
) -> None:
    """One shard.

    Args:
        failed, unsized: rows that were not downloaded, or not resized.
        vanished: rows that are a success in the table, and no image.
        unwritten: rows that an exception in the writer's loop left out of everything but the count.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{number:05d}"
    rows, samples = [], []
    for n in range(count):
        if n in unwritten:
            continue
        key, data = f"{stem}{n:04d}", picture(n)
        status, error = "success", None
        if n in failed:
            status, error = "failed_to_download", "HTTP Error 404: Not Found"
        if n in unsized:
            status, error = "failed_to_resize", "Image decoding error"
        rows.append(row(key, data, n=n, status=status, error=error, kept=kept))
        if status == "success" and n not in vanished:
            samples.append((key, data, rows[-1]))
    if output == "parquet":
        data = {key: data for key, data, _ in samples}
        full = [{**one, "txt": one["caption"], "jpg": data.get(one["key"])} for one in rows]
        columns = schema().append(pa.field("jpg", pa.binary()))
        pq.write_table(pa.Table.from_pylist(full, columns), folder / f"{stem}.parquet", row_group_size=10)
    else:
        pq.write_table(pa.Table.from_pylist(rows, schema()), folder / f"{stem}.parquet", row_group_size=10)
        members = {
            f"{key}.{ending}": member
            for key, data, told in samples
            for ending, member in (
                ("jpg", data),
                ("txt", told["caption"].encode()),
                ("json", json.dumps(told, indent=4).encode()),
            )
        }
        if output == "files":
            (folder / stem).mkdir(exist_ok=True)
            for name, member in members.items():
                (folder / stem / name).write_bytes(member)
        else:
            with tarfile.open(folder / f"{stem}.tar", "w") as tar:
                for name, member in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(member)
                    tar.addfile(info, io.BytesIO(member))
    if finished:
        stats = {
            "count": count,
            "successes": len([r for r in rows if r["status"] == "success"]),
            "failed_to_download": len(failed),
            "failed_to_resize": len(unsized),
            "duration": 1.0,
            "status_dict": {"success": len(samples)},
        }
        (folder / f"{stem}_stats.json").write_text(json.dumps(stats, indent=4))
