"""IDX files, as MNIST and Fashion-MNIST come: images and labels as raw numbers, in an official split."""

from __future__ import annotations

import functools
import gzip
import hashlib
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipelines.places import at_hand
from pipelines.sources.blobs import Blobs
from pipelines.sources.source import Found, Part, Reader, Source, Where

FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""Class names of Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), in the order of their numbers."""

_PART = 5000
"""Images a part."""
_FILES = {"train": "train", "test": "t10k"}
_WAYS = (
    "Fashion-MNIST is in the Debian package dataset-fashion-mnist: `sudo apt-get install"
    " dataset-fashion-mnist` puts it into /usr/share/datasets/fashion-mnist; without root `apt-get download"
    " dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb data` puts it into"
    " data/usr/share/datasets/fashion-mnist."
)


@dataclass(frozen=True, kw_only=True)
class IdxSource(Source):
    """A folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not."""

    pictures: ClassVar[bool] = False
    """28 px of one kind of thing all look alike to it (Fashion-MNIST: one cluster of 10,958 in 4 bits)."""
    kind: Literal["idx"] = "idx"
    path: Path = field(default=Path("/usr/share/datasets/fashion-mnist"), metadata={"execution": True})
    """The folder. Where it lies decides nothing."""
    names: tuple[str, ...] = FASHION
    """Class names in the order of their numbers."""

    def roots(self) -> list[Part]:
        """`ValueError` if a file is missing or is not IDX, with how to get it."""
        files = IdxFiles(at_hand(self.path))
        return [Part(name=split, stamp=files.state(split), leaf=False) for split in _FILES]

    def split(self, part: Part) -> list[Part]:
        files, split = IdxFiles(at_hand(self.path)), part.name
        labels, count = files.labels(split), files.count(split)
        if len(labels) != count:
            raise ValueError(f"{self.path}: {count} images and {len(labels)} labels in {split}.")
        if max(labels, default=0) >= len(self.names):
            raise ValueError(f"{self.path} has label {max(labels)}, and {len(self.names)} names are given.")
        return [
            Part(name=f"{split}/{start}", stamp=part.stamp, data={"split": split, "start": start})
            for start in range(0, count, _PART)
        ]

    def read(self, part: Part, limit: int, known: Mapping[str, str], blobs: Blobs) -> Iterator[Found]:
        files, split, start = IdxFiles(at_hand(self.path)), part.data["split"], part.data["start"]
        labels = files.labels(split)
        for n in range(start, min(start + _PART, len(labels))):
            label, where = self.names[labels[n]], f"{split}/{n}"
            data = files.read(where, limit)
            yield Found(
                name=f"{split}-{n:05d}",
                where=where,
                data=data,
                digest=files.digest(where, data),
                facts={"label": label, "text": label},
                split=split,
            )

    def reader(self, blobs: Blobs) -> Reader:
        return IdxFiles(at_hand(self.path))


class IdxFiles(Reader):
    """Images of an IDX folder as gray PNGs, made on reading."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    def read(self, where: Where, limit: int) -> bytes:
        pixels, height, width, n = self._pixels(where)
        size = height * width
        return png(pixels[n * size : (n + 1) * size], width, height)

    def digest(self, where: Where, data: bytes) -> str:
        # The PNG's bytes depend on zlib's version; the pixels do not.
        pixels, height, width, n = self._pixels(where)
        size = height * width
        return hashlib.sha256(b"%d %d " % (height, width) + pixels[n * size : (n + 1) * size]).hexdigest()

    def labels(self, split: str) -> bytes:
        return _parsed(self._file(split, "labels-idx1"), 1, self.state(split))[0]

    def count(self, split: str) -> int:
        return _parsed(self._file(split, "images-idx3"), 3, self.state(split))[1][0]

    def state(self, split: str) -> str:
        states = [self._file(split, kind).stat() for kind in ("images-idx3", "labels-idx1")]
        return " ".join(f"{state.st_size} {state.st_mtime_ns} {state.st_ino}" for state in states)

    def _pixels(self, where: Where) -> tuple[bytes, int, int, int]:
        split, _, n = str(where).partition("/")
        data, (_, height, width) = _parsed(self._file(split, "images-idx3"), 3, self.state(split))
        return data, height, width, int(n)

    def _file(self, split: str, kind: str) -> Path:
        name = f"{_FILES[split]}-{kind}-ubyte"
        for path in (self.path / f"{name}.gz", self.path / name):
            if path.is_file():
                return path
        raise ValueError(f"{self.path / name}.gz is not there. {_WAYS}")


def png(pixels: bytes, width: int, height: int) -> bytes:
    """An 8-bit gray PNG of raw pixels (ISO/IEC 15948), without filters."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + pixels[y * width : (y + 1) * width] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 6)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@functools.lru_cache(maxsize=4)
def _parsed(path: Path, dimensions: int, stamp: str) -> tuple[bytes, tuple[int, ...]]:
    """`_parse`, once a process for files that stay as they are."""
    return _parse(path, dimensions)


def _parse(path: Path, dimensions: int) -> tuple[bytes, tuple[int, ...]]:
    """Bytes and shape of an IDX file of unsigned bytes (LeCun, the MNIST page)."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            data: Any = file.read()
        magic, *shape = struct.unpack(f">{1 + dimensions}I", data[: 4 * (1 + dimensions)])
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{path} cannot be read ({error}). {_WAYS}") from error
    body = data[4 * (1 + dimensions) :]
    size = 1
    for length in shape:
        size *= length
    if magic != 0x0800 + dimensions or len(body) != size:
        raise ValueError(f"{path} is not an IDX file of bytes in {dimensions} dimensions. {_WAYS}")
    return body, tuple(shape)
