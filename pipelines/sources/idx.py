"""IDX files, as MNIST and Fashion-MNIST come: images and labels as raw numbers, in an official split."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipelines.places import at_hand
from pipelines.shards import canonical
from pipelines.sources.listing import Entry, Listing, Reader
from pipelines.sources.seen import Seen

FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""Class names of Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), in the order of their numbers."""

_FILES = {"train": "train", "test": "t10k"}
_WAYS = (
    "Fashion-MNIST is in the Debian package dataset-fashion-mnist: `sudo apt-get install"
    " dataset-fashion-mnist` puts it into /usr/share/datasets/fashion-mnist; without root `apt-get download"
    " dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb data` puts it into"
    " data/usr/share/datasets/fashion-mnist."
)


@dataclass(frozen=True, kw_only=True)
class IdxSource:
    """A folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not."""

    pictures: ClassVar[bool] = False
    """28 px of one kind of thing all look alike to it (Fashion-MNIST: one cluster of 10,958 in 4 bits)."""
    kind: Literal["idx"] = "idx"
    path: Path = field(default=Path("/usr/share/datasets/fashion-mnist"), metadata={"execution": True})
    """The folder. Where it lies decides nothing."""
    names: tuple[str, ...] = FASHION
    """Class names in the order of their numbers."""

    def digest(self) -> str:
        """Of pixels and labels; `ValueError` if a file is missing or is not IDX, with how to get it."""
        return hashlib.sha256(canonical([*self._splits().values(), self.names])).hexdigest()

    def listing(self) -> Listing:
        """`ValueError` as for `digest`."""
        entries = []
        for split, (labels, digests) in self._splits().items():
            for n, (label, digest) in enumerate(zip(labels, digests, strict=True)):
                facts = {"label": self.names[label], "text": self.names[label]}
                entries.append(
                    Entry(
                        name=f"{split}-{n:05d}", where=f"{split}/{n}", digest=digest, facts=facts, split=split
                    )
                )
        return Listing(entries=sorted(entries, key=lambda e: e.name))

    def reader(self) -> Reader:
        return IdxFiles(at_hand(self.path))

    def _splits(self) -> dict[str, tuple[list[int], list[str]]]:
        """Split -> labels and digests of its images."""
        files = IdxFiles(at_hand(self.path))
        splits = {}
        for split in _FILES:
            labels, digests = files.labels(split), files.digests(split)
            if len(labels) != len(digests):
                raise ValueError(f"{self.path}: {len(digests)} images and {len(labels)} labels in {split}.")
            if max(labels, default=0) >= len(self.names):
                raise ValueError(
                    f"{self.path} has label {max(labels)}, and {len(self.names)} names are given."
                )
            splits[split] = (labels, digests)
        return splits


class IdxFiles(Reader):
    """Images of an IDX folder as gray PNGs, made on reading."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._images = functools.cache(self._load_images)

    def read(self, where: str | int, limit: int) -> bytes:
        split, _, n = str(where).partition("/")
        pixels, height, width = self._images(split)
        size = height * width
        return png(pixels[int(n) * size : (int(n) + 1) * size], width, height)

    def digest(self, where: str | int, data: bytes) -> str:
        # The PNG's bytes depend on zlib's version; the pixels do not.
        split, _, n = str(where).partition("/")
        pixels, height, width = self._images(split)
        return _pixels_digest(pixels, int(n), height, width)

    def labels(self, split: str) -> list[int]:
        return list(_parse(self._file(f"{_FILES[split]}-labels-idx1-ubyte"), 1)[0])

    def digests(self, split: str) -> list[str]:
        """sha256 of each image's size and pixels."""
        file = self._file(f"{_FILES[split]}-images-idx3-ubyte")
        state = file.stat()
        stamp = json.dumps([state.st_size, state.st_mtime_ns, state.st_ino])
        question = f"idx {file.name} {stamp}"
        with Seen(self.path) as seen:
            known = seen.looks(question)
            if "all" not in known:
                pixels, height, width = self._images(split)
                count = len(pixels) // (height * width)
                known["all"] = [_pixels_digest(pixels, n, height, width) for n in range(count)]
                seen.remember_looks(question, known)
        return known["all"]

    def _load_images(self, split: str) -> tuple[bytes, int, int]:
        data, (_, height, width) = _parse(self._file(f"{_FILES[split]}-images-idx3-ubyte"), 3)
        return data, height, width

    def _file(self, name: str) -> Path:
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


def _pixels_digest(pixels: bytes, n: int, height: int, width: int) -> str:
    size = height * width
    return hashlib.sha256(b"%d %d " % (height, width) + pixels[n * size : (n + 1) * size]).hexdigest()


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
