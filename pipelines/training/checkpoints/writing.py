"""Checkpoints, written while the training goes on: the step only waits for the copy of what it changes next.

Each rank copies its share of the state to host memory and a thread writes it as a part. No rank talks to
another meanwhile: rank 0's thread looks into the storage until all parts are there, and then puts the index,
which makes them a checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipelines.training.checkpoints.host import HostMemory
from pipelines.training.checkpoints.index import gathered, read_index
from pipelines.training.checkpoints.mark import Damaged, Mark
from pipelines.training.checkpoints.part import file_of, header_of, read_part, room_for
from pipelines.training.checkpoints.pieces import Layout, Piece
from pipelines.training.checkpoints.retention import prune
from pipelines.training.checkpoints.together import BAD, FINE, Together

if TYPE_CHECKING:
    from torch import Tensor

    from cluster.storage import Storage

PATIENCE = 300.0
"""Seconds after its own part for which rank 0 waits for the others'; then a rank is taken to be gone, and
this checkpoint is given up."""
POLLS = (0.02, 1.0)
"""Seconds between two looks for parts: at first, and at most."""


def new_attempt() -> str:
    """Names the parts that one process group writes; a later one's sorts behind, as far as clocks agree."""
    return f"{int(time.time()):08x}{secrets.token_hex(4)}"


class Writer:
    """Writes checkpoints in a thread, one at a time, and prunes.

    A storage that is full or away costs the checkpoint and not the training: `news` tells of it, and the next
    one is tried. Any other error is raised by the next call.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        rank: int = 0,
        world: int = 1,
        keep: int = 2,
        patience: float = PATIENCE,
        attempt: str | None = None,
    ) -> None:
        """
        Args:
            keep: checkpoints of a kind that stay (`prune`).
            patience: `PATIENCE`.
            attempt: `new_attempt()` of rank 0, on all ranks; they tell one another if None.
        """
        self.storage, self.rank, self.world = storage, rank, world
        self.keep, self.patience = keep, patience
        self._attempt = attempt
        self._layout, self._memory = Layout(rank=rank, world=world), HostMemory()
        self._together: Together | None = None
        self._thread: threading.Thread | None = None
        self._failure: OSError | Damaged | None = None
        self._untold: list[str] = []
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def write(
        self,
        mark: Mark,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        *,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """Copies this rank's share of the tensors and returns; waits first for one that still goes on.

        All ranks must call it at the same step, each with its live tensors, plain and equal or sharded;
        `done` is called in rank 0's thread when the checkpoint is committed. On a GPU the copies are queued,
        and the tensors may be changed by what is queued behind them on the same stream.
        """
        self._join()
        if self._together is None:
            self._together = Together(rank=self.rank, world=self.world, tensors=tensors.values())
        if self._attempt is None:
            self._attempt = self._together.first(new_attempt().encode()).decode()
        frozen = json.loads(json.dumps(state)) if self.rank == 0 else None
        share = self._layout.share(tensors)
        pieces = [piece for piece, _ in share]
        self._memory.take(share, room=room_for(pieces, frozen))
        self._failure = None

        def run() -> None:
            try:
                if self._written(mark, pieces, frozen) and self.rank == 0:
                    self._settle(mark, done)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns once the last write is committed; all ranks must ask together.

        Raises:
            OSError: on all ranks, if one of them could not do its part.
        """
        if self._thread is not None:
            self._thread.join()
        if self._together is None:
            return
        mine = self._error or self._failure
        outcome, words = self._together.worst(FINE if mine is None else BAD, str(mine))
        self._join()
        if self._failure is not None:
            self._untold.clear()
            raise self._failure
        if outcome != FINE:
            raise OSError(f"The checkpoint could not be written: {words}")

    def news(self) -> list[str]:
        """What went wrong since the last call, in a line each."""
        untold, self._untold = self._untold, []
        return untold

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _written(self, mark: Mark, pieces: list[Piece], state: Mapping[str, Any] | None) -> bool:
        """Whether this rank could do its part, rank 0 the index as well."""
        try:
            self._put_part(mark, pieces, state)
            if self.rank == 0:
                self._commit(mark)
        except (OSError, Damaged) as error:
            self._failure = error
            self._untold.append(
                f"The checkpoint at {mark.images_seen:,} images could not be written: {error}"
            )
            if self.rank == 0:
                self._give_up(mark)
            return False
        return True

    def _settle(self, mark: Mark, done: Callable[[], None]) -> None:
        """After the commit, which nothing takes back."""
        try:
            done()
            prune(self.storage, keep=self.keep, written=mark)
        except OSError as error:
            self._untold.append(f"Older checkpoints could not be deleted: {error}")

    def _put_part(self, mark: Mark, pieces: list[Piece], state: Mapping[str, Any] | None) -> None:
        assert self._attempt is not None
        data, digests, position = self._memory.arrived(), [], 0
        for piece in pieces:
            digests.append(hashlib.sha256(data[position : position + piece.size]).hexdigest())
            position += piece.size
        header = header_of(
            pieces,
            digests,
            mark=mark,
            attempt=self._attempt,
            rank=self.rank,
            world=self.world,
            state=state,
        )
        file = file_of(mark, self._attempt, self.rank, self.world)
        self.storage.put_if_absent(file, self._memory.headed(header))

    def _commit(self, mark: Mark) -> None:
        """Waits for all parts and puts the index.

        Whoever arrives at a place anew, in the same lease, started from before it: what stands there was
        found damaged, or was gone back from. It makes way.
        """
        assert self._attempt is not None
        index = gathered(read_part(self.storage, file) for file in self._all_parts(mark))
        with contextlib.suppress(Damaged, FileNotFoundError):
            if read_index(self.storage, mark.file) == index:
                return
        self.storage.delete(mark.file)
        if not self.storage.put_if_absent(mark.file, index.dump()):
            raise Damaged("another process writes under the same lease")

    def _all_parts(self, mark: Mark) -> list[str]:
        assert self._attempt is not None
        wanted = {file_of(mark, self._attempt, rank, self.world) for rank in range(self.world)}
        deadline, pause = time.monotonic() + self.patience, POLLS[0]
        while missing := wanted - set(self.storage.list(f"{mark.name}.")):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{len(missing)} of {self.world} workers have not written theirs ({min(missing)})."
                )
            time.sleep(pause)
            pause = min(2 * pause, POLLS[1])
        return sorted(wanted)

    def _give_up(self, mark: Mark) -> None:
        """Frees what the parts of a checkpoint take that nobody will finish."""
        with contextlib.suppress(OSError):
            for name in self.storage.list(f"{mark.name}.{self._attempt}."):
                self.storage.delete(name)


def save(storage: Storage, mark: Mark, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes a checkpoint of one process and waits for it; nothing else is deleted."""
    writer = Writer(storage, keep=10**9)
    writer.write(mark, tensors, state)
    writer.wait()
