"""What a manifest says of its shards, as arrays: hundreds of thousands of objects are gigabytes a machine."""

from __future__ import annotations

import array
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from pipelines.manifest_text import ABSENT, NONE, Fields, Part
from pipelines.shard_index import ShardInfo

if TYPE_CHECKING:
    import numpy as np


class Numbers:
    """One of each shard; it grows in one piece: arrays joined in the end would take twice the memory."""

    def __init__(self, kind: str) -> None:
        """`kind`: as of `array.array`."""
        self._held = array.array(kind)

    def extend(self, values: Iterable[int]) -> None:
        self._held.extend(values)

    @functools.cached_property
    def all(self) -> np.ndarray:
        """Once nothing is added any more."""
        import numpy as np

        return np.frombuffer(self._held, self._held.typecode)


class Digests:
    """sha256 of each shard, or of a column of it."""

    def __init__(self) -> None:
        self.packed = bytearray()
        """32 bytes each."""
        self._others: dict[int, str] = {}
        """Those that are none, by number."""

    def extend(self, texts: Sequence[str]) -> None:
        odd = [n for n, text in enumerate(texts) if len(text) != len(NONE)]
        if odd:
            start = len(self.packed) // 32
            self._others |= {start + n: texts[n] for n in odd}
            texts = [text if len(text) == len(NONE) else NONE for text in texts]
        self.packed += bytes.fromhex("".join(texts))

    def __getitem__(self, n: int) -> str:
        return self._others[n] if n in self._others else self.packed[32 * n : 32 * n + 32].hex()


class Column:
    """Of each shard: how many of its rows have it, and what they hold."""

    def __init__(self, before: int) -> None:
        """`before`: shards so far, none of which has it."""
        self._count, self._bytes, self.digest = Numbers("i"), Numbers("q"), Digests()
        self.extend({what: [value] * before for what, value in ABSENT.items()})

    def extend(self, said: Fields) -> None:
        self._count.extend(said["count"])
        self._bytes.extend(said["bytes"])
        self.digest.extend(said["digest"])

    @property
    def count(self) -> np.ndarray:
        """int32; -1 where the shard's entry does not name the column."""
        return self._count.all

    @property
    def bytes(self) -> np.ndarray:
        """int64."""
        return self._bytes.all


class ShardTable(Sequence[ShardInfo]):
    """Entries of a manifest in their order: 140 bytes each, and an object while it is asked for."""

    def __init__(self, parts: Iterable[Part]) -> None:
        """
        Args:
            parts: the entries, a few at a time.
        """
        import numpy as np

        self._splits: list[str] = []
        """Their names, in the order of their numbers."""
        self._reasons: dict[int, Mapping[str, int]] = {}
        self.columns: dict[str, Column] = {}
        self.sha256, self.indexes = Digests(), Digests()
        split, samples, rejected, size = Numbers("i"), Numbers("i"), Numbers("i"), Numbers("q")
        names, count = [np.empty(0, "S1")], 0
        for part in parts:
            fields = part.fields
            names.append(np.array([name.encode() for name in fields["name"]], "S"))
            self._splits += [name for name in dict.fromkeys(fields["split"]) if name not in self._splits]
            numbers = {name: n for n, name in enumerate(self._splits)}
            split.extend([numbers[name] for name in fields["split"]])
            for held, name in ((samples, "samples"), (rejected, "rejected"), (size, "bytes")):
                held.extend(fields[name])
            self.sha256.extend(fields["sha256"])
            self.indexes.extend(fields["index"])
            self._reasons |= {n: dict(said) for n, said in enumerate(fields["reasons"], count) if said}
            absent = {what: [value] * part.length for what, value in ABSENT.items()}
            for name in dict.fromkeys([*self.columns, *part.columns]):
                if name not in self.columns:
                    self.columns[name] = Column(count)
                self.columns[name].extend(part.columns.get(name, absent))
            count += part.length
        self.names = np.concatenate(names)
        """UTF-8."""
        self.split, self.samples, self.rejected = split.all, samples.all, rejected.all
        """Number of the split's name; rows, the rejected among them; those. int32."""
        self.bytes = size.all
        """int64."""

    @property
    def splits(self) -> list[str]:
        return list(self._splits)

    @overload
    def __getitem__(self, n: int) -> ShardInfo: ...
    @overload
    def __getitem__(self, n: slice) -> list[ShardInfo]: ...
    def __getitem__(self, n: int | slice) -> ShardInfo | list[ShardInfo]:
        if isinstance(n, slice):
            return [self[one] for one in range(*n.indices(len(self)))]
        n = range(len(self))[n]
        return ShardInfo(
            name=self.name(n),
            split=self._splits[self.split[n]],
            samples=int(self.samples[n]),
            rejected=int(self.rejected[n]),
            bytes=int(self.bytes[n]),
            sha256=self.sha256[n],
            reasons=dict(self._reasons.get(n, {})),
            columns={
                name: {
                    "count": int(column.count[n]),
                    "bytes": int(column.bytes[n]),
                    "digest": column.digest[n],
                }
                for name, column in self.columns.items()
                if column.count[n] >= 0
            },
            index=self.indexes[n],
        )

    def __len__(self) -> int:
        return len(self.names)

    def name(self, n: int) -> str:
        return self.names[n].decode()

    def find(self, name: str) -> int | None:
        """Number of the shard of that name."""
        import numpy as np

        if not len(self):
            return None
        place = int(np.searchsorted(self.names, name.encode(), sorter=self._sorted))
        n = int(self._sorted[min(place, len(self) - 1)])
        return n if self.names[n] == name.encode() else None

    def of(self, split: str) -> np.ndarray:
        """Numbers of a split's shards."""
        import numpy as np

        return np.flatnonzero(self.split == (self._splits.index(split) if split in self._splits else -1))

    def alike(self, other: ShardTable) -> bool:
        """Whether both have the same shards in the same splits, in one order."""
        import numpy as np

        ours, theirs = (np.array([*table._splits, ""])[table.split] for table in (self, other))
        return np.array_equal(self.names, other.names) and np.array_equal(ours, theirs)

    def ordered(self) -> Iterator[ShardInfo]:
        """By name."""
        return (self[n] for n in self._sorted.tolist())

    @property
    def nbytes(self) -> int:
        """Of memory."""
        held = [self.names, self.split, self.samples, self.rejected, self.bytes]
        held += [array for column in self.columns.values() for array in (column.count, column.bytes)]
        digests = [self.sha256, self.indexes, *(column.digest for column in self.columns.values())]
        return sum(array.nbytes for array in held) + sum(len(one.packed) for one in digests)

    @functools.cached_property
    def _sorted(self) -> np.ndarray:
        import numpy as np

        return np.argsort(self.names, kind="stable").astype(np.uint32)


class Entries(Sequence[Mapping[str, Any]]):
    """A table as a manifest's list of shards."""

    def __init__(self, table: ShardTable) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, n: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, n: slice) -> list[Mapping[str, Any]]: ...
    def __getitem__(self, n: int | slice) -> Mapping[str, Any] | list[Mapping[str, Any]]:
        return [one.__dict__ for one in self.table[n]] if isinstance(n, slice) else self.table[n].__dict__
