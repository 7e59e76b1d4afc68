"""Which checkpoints stay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipelines.training.checkpoints.index import Index, read_index
from pipelines.training.checkpoints.mark import FILE, INDEX, Damaged, Mark

if TYPE_CHECKING:
    from cluster.storage import Storage


def prune(storage: Storage, *, keep: int = 2, written: Mark | None = None) -> None:
    """Deletes all but the `keep` furthest checkpoints of each kind, cooling and not, and what writers that
    were killed left behind the furthest that stays.

    Those that do not cool stay the road to any longer run; two of a kind, so that one may be damaged. A
    process may die after any deletion: an index goes before its parts, so that what is left is either a
    whole checkpoint or one that was never finished.

    Args:
        written: the latest of who asks. So many at or before it stay as well, whoever went further: a longer
            training, or a damaged one. What was written under a higher lease is left alone.
    """
    names = [name for name in storage.list() if FILE.fullmatch(name)]
    indices: dict[str, Index] = {}
    for name in names:
        if INDEX.fullmatch(name):
            try:
                indices[name] = read_index(storage, name)
            except (Damaged, FileNotFoundError):
                continue
    kept = _kept(indices.values(), keep, written)
    needed = {file.name for name in kept for file in indices[name].files} | kept
    furthest = max(kept, default="")

    def goes(name: str) -> bool:
        checkpoint = FILE.fullmatch(name)[1]  # pyright: ignore[reportOptionalSubscript]
        if name in needed or (written is not None and int(checkpoint.rpartition("-")[2]) > written.lease):
            return False
        # What is ahead of all that stays may be on its way.
        return name in indices or f"{checkpoint}.json" in indices or f"{checkpoint}.json" <= furthest

    for name in sorted(filter(goes, names), key=lambda name: (not INDEX.fullmatch(name), name)):
        storage.delete(name)


def _kept(indices: Iterable[Index], keep: int, written: Mark | None) -> set[str]:
    """Names of the indices that stay."""
    marks = sorted((index.mark for index in indices), key=lambda mark: mark.name, reverse=True)
    kept = set()
    for cooling in (False, True):
        kind = [mark for mark in marks if mark.cooling is cooling]
        mine = [
            mark
            for mark in kind
            if written is not None
            and mark.name <= written.name
            and (not cooling or mark.target == written.target)
        ]
        kept |= {mark.file for mark in (*kind[:keep], *mine[:keep])}
    return kept
