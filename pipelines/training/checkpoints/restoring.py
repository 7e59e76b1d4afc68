"""Which checkpoint a training goes on from: the furthest whole one that it may use, the same on all ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from pipelines.training.checkpoints.index import Index, parse, read_index, rebuilt
from pipelines.training.checkpoints.mark import INDEX, PART, Checkpoint, Damaged, Mark
from pipelines.training.checkpoints.reading import load
from pipelines.training.checkpoints.together import BAD, FAILED, FINE, Together

if TYPE_CHECKING:
    from torch import Tensor

    from cluster.storage import Storage


def silent(text: str) -> None:
    """Tells nobody."""


def restore(
    storage: Storage,
    usable: Callable[[Mark], bool],
    *,
    rank: int,
    world: int,
    like: Mapping[str, Tensor],
    tell: Callable[[str], None] = silent,
) -> Checkpoint | None:
    """The furthest whole checkpoint that `usable` accepts, the same on all ranks, which must ask together.

    Of two at one place that of the higher lease. One that is damaged, as far as any rank needs it, is passed
    over; an index that is lost is made anew. None without any.

    Args:
        like: this training's own tensors as they are laid out on this rank; an optimizer's are laid out as
            the parameter that they are of.
        tell: is given a line for each that was passed over or mended, on rank 0.

    Raises:
        OSError: a storage that does not answer, on all ranks; another attempt may find it well.
    """
    together = Together(rank=rank, world=world, tensors=like.values())
    tell = tell if rank == 0 else silent
    rejected: set[str] = set()
    mended: set[str] = set()
    while True:
        # Rank 0 alone looks and chooses; the others are given the index itself.
        outcome, words, name, data = FINE, "", "", b""
        if rank == 0:
            try:
                found = next(_candidates(storage, usable, rejected, mended, tell), None)
                name, data = ("", b"") if found is None else (found.mark.file, _dump(storage, found))
            except OSError as error:
                outcome, words = FAILED, str(error)
        outcome, words = together.worst(outcome, words)
        if outcome == FAILED:
            raise OSError(f"The checkpoints in {storage.url} cannot be read: {words}")
        name, data = together.first(name.encode()).decode(), together.first(data)
        if not name:
            return None

        checkpoint = None
        try:
            checkpoint = load(storage, parse(data, name), like, rank=rank, world=world)
        except Damaged as error:
            outcome, words = BAD, str(error)
        except OSError as error:
            outcome, words = FAILED, str(error)
        outcome, words = together.worst(outcome, words)
        if outcome == FAILED:
            raise OSError(f"The checkpoints in {storage.url} cannot be read: {words}")
        if outcome == FINE:
            if name in mended:
                with contextlib.suppress(OSError):
                    storage.replace(name, data)
            return checkpoint
        rejected.add(name)
        tell(_passed_over(name, words))


def newest(
    storage: Storage, usable: Callable[[Mark], bool], *, tell: Callable[[str], None] = silent
) -> Checkpoint | None:
    """What a training of one process would go on from, with whole tensors."""
    return restore(storage, usable, rank=0, world=1, like={}, tell=tell)


def read(storage: Storage, name: str) -> Checkpoint:
    """The checkpoint of that name (`Mark.name`). Raises ValueError where it is missing or damaged."""
    try:
        return load(storage, read_index(storage, f"{name}.json"), {})
    except (Damaged, FileNotFoundError) as error:
        raise ValueError(
            f"Checkpoint {name} in {storage.url} is missing or damaged; run again to use an older one."
        ) from error


def _candidates(
    storage: Storage,
    usable: Callable[[Mark], bool],
    rejected: set[str],
    mended: set[str],
    tell: Callable[[str], None],
) -> Iterator[Index]:
    """Checkpoints by their index alone, the furthest first, looked for anew at each call: another process may
    have deleted some since."""
    names = storage.list()
    parts = {found[1] for name in names if (found := PART.fullmatch(name))}
    indexed = {name.removesuffix(".json") for name in names if INDEX.fullmatch(name)}
    for name in sorted(parts | indexed, reverse=True):
        file = f"{name}.json"
        if file in rejected:
            continue
        try:
            found = read_index(storage, file)
        except (Damaged, FileNotFoundError) as error:
            reason = str(error) if isinstance(error, Damaged) else "has lost its index"
            try:
                found = rebuilt(storage, names, name)
            except Damaged as worse:
                rejected.add(file)
                tell(_passed_over(file, str(worse) if name in parts else reason))
                continue
            if usable(found.mark) and file not in mended:
                mended.add(file)
                tell(f"The checkpoint at {_place(name)} {reason}; it is made anew from the parts.")
        if usable(found.mark):
            yield found


def _dump(storage: Storage, index: Index) -> bytes:
    """Its bytes: those that are stored, which is the only form that one of an older format has."""
    return index.dump() if index.format == 2 else storage.read(index.mark.file)


def _passed_over(file: str, reason: str) -> str:
    return f"The checkpoint at {_place(file)} is passed over: it {reason}."


def _place(name: str) -> str:
    return f"{int(name.partition('-')[0]):,} images"
