"""A batch in pieces, where the whole of it does not fit into memory at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch

Share = TypeVar("Share")


def micro_batches(share: Share, count: int) -> Iterator[Share]:
    """`count` runs of its samples, sizes equal or one apart; in its own type.

    A share is a tensor or array [b, ...], or any nest of tuples, lists, mappings and dataclasses whose
    tensors and arrays all are [b, ...]; whatever else they hold goes to each piece as it is. An object of
    another kind is cut by its own `len(share)` and `share[i:j]`.

    Raises:
        ValueError: it has fewer than `count` samples.
    """
    if count == 1:
        yield share
        return
    size = _size(share)
    if size is None or size < count:
        raise ValueError(f"a share of {size or 'no'} samples cannot be cut into {count} micro-batches.")
    for n in range(count):
        yield _cut(share, slice(size * n // count, size * (n + 1) // count))


def _parts(value: Any) -> Mapping[Any, Any] | None:
    """What a nest holds, by name or place; None for a leaf."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    return None


def _rows(leaf: Any) -> bool:
    """Whether a leaf has one row a sample."""
    if isinstance(leaf, torch.Tensor) or hasattr(leaf, "__array__"):
        return leaf.ndim > 0
    return hasattr(leaf, "__len__") and hasattr(leaf, "__getitem__") and not isinstance(leaf, str | bytes)


def _size(value: Any) -> int | None:
    parts = _parts(value)
    if parts is None:
        return len(value) if _rows(value) else None
    return next((size for size in map(_size, parts.values()) if size is not None), None)


def _cut(value: Any, rows: slice) -> Any:
    parts = _parts(value)
    if parts is None:
        return value[rows] if _rows(value) else value
    pieces = {name: _cut(part, rows) for name, part in parts.items()}
    if isinstance(value, Mapping):
        return pieces
    if isinstance(value, list | tuple):
        named = hasattr(value, "_fields")
        return type(value)(*pieces.values()) if named else type(value)(pieces.values())
    return dataclasses.replace(value, **pieces)
