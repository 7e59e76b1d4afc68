"""Everything needed to resume a training: safetensors and JSON in a folder that all lengths of the training
share.

A checkpoint is its JSON, which is written last and holds the tensors' name, size and sha256. The newest one
that is whole wins; a torn or altered one is as good as none. A process may die at any point of a write.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from cluster.storage import Storage

NAME = re.compile(r"\d{12}-\d{6}\.json")
FILES = re.compile(r"\d{12}-\d{6}\.(json|safetensors)")


def name_of(images_seen: int, lease: int) -> str:
    return f"{images_seen:012d}-{lease:06d}"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Where a training stands, in words that decide who may continue from there."""

    images_seen: int
    lease: int
    """Number of the lease under which it was written; of two for the same place the higher one is read."""
    cooling: bool
    """Whether the learning rate had begun to fall: then only a run with the same `target` goes on from it."""
    target: int
    """`images_seen` at which the run that wrote it was to end."""

    @property
    def name(self) -> str:
        return name_of(self.images_seen, self.lease)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    mark: Mark
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    """What is no tensor (JSON)."""


def save(storage: Storage, mark: Mark, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes a checkpoint unless this very one is there whole. `tensors` may be views; they are only read."""
    from safetensors.torch import save as serialise

    if _whole(storage, mark.name + ".json"):
        return
    # What an earlier attempt left under this name is torn, or it would have been returned above.
    storage.delete(mark.name + ".json")
    storage.delete(mark.name + ".safetensors")
    data = serialise({name: tensor.contiguous() for name, tensor in tensors.items()})
    record = {
        "format": 1,
        "images_seen": mark.images_seen,
        "lease": mark.lease,
        "cooling": mark.cooling,
        "target": mark.target,
        "tensors": mark.name + ".safetensors",
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "state": dict(state),
    }
    record["check"] = _check(record)
    storage.put_if_absent(mark.name + ".safetensors", data)
    storage.put_if_absent(mark.name + ".json", json.dumps(record, sort_keys=True, indent=1).encode())


def newest(storage: Storage, usable: Callable[[Mark], bool]) -> Checkpoint | None:
    """The furthest whole checkpoint that `usable` accepts, of the highest lease where two stand at one place.

    Damaged ones are passed over, never loaded. None without any.
    """
    from safetensors.torch import load

    for name in sorted((n for n in storage.list() if NAME.fullmatch(n)), reverse=True):
        record = _record(storage, name)
        if record is None or not usable(_mark(record)):
            continue
        data = _tensors(storage, record)
        if data is not None:
            return Checkpoint(mark=_mark(record), tensors=load(data), state=record["state"])
    return None


def restore(
    storage: Storage,
    usable: Callable[[Mark], bool],
    *,
    rank: int,
    world: int,
    like: Mapping[str, Tensor],
) -> Checkpoint | None:
    """The newest whole checkpoint, the same on all ranks, which must ask together.

    Args:
        like: this training's own tensors as they are laid out on this rank; an optimizer's are laid out as
            the parameter that they are of.
    """
    if world == 1:
        return newest(storage, usable)
    import torch
    import torch.distributed

    found = newest(storage, usable) if rank == 0 else None
    choice = torch.tensor([found.mark.images_seen, found.mark.lease] if found else [-1, -1])
    if torch.distributed.get_backend() == "nccl":
        choice = choice.cuda()
    torch.distributed.broadcast(choice, 0)
    images_seen, lease = choice.tolist()
    if rank == 0 or images_seen < 0:
        return found
    return read(storage, name_of(images_seen, lease))


def read(storage: Storage, name: str) -> Checkpoint:
    """The checkpoint of that name (`Mark.name`). Raises ValueError where it is missing or damaged."""
    from safetensors.torch import load

    record = _record(storage, name + ".json")
    data = None if record is None else _tensors(storage, record)
    if record is None or data is None:
        raise ValueError(
            f"Checkpoint {name} in {storage.url} is missing or damaged; run again to use an older one."
        )
    return Checkpoint(mark=_mark(record), tensors=load(data), state=record["state"])


def prune(storage: Storage, *, keep: int = 2) -> None:
    """Deletes all but the `keep` furthest checkpoints of each kind, cooling and not, and what no JSON names.

    Those that do not cool stay the road to any longer run; two of a kind, so that one may be damaged.
    """
    names = storage.list()
    kinds: dict[bool, list[str]] = {False: [], True: []}
    for name in sorted((n for n in names if NAME.fullmatch(n)), reverse=True):
        record = _record(storage, name)
        if record is not None:
            kinds[record["cooling"]].append(name)
    kept = {name.removesuffix(".json") for group in kinds.values() for name in group[:keep]}
    # The JSON first: without it, tensors are only space.
    for name in sorted(n for n in names if FILES.fullmatch(n)):
        if name.rpartition(".")[0] not in kept:
            storage.delete(name)


class Writer:
    """Writes checkpoints in a thread, one at a time; the caller only pays for the copy of the tensors.

    An error in the thread is raised by the next call.
    """

    def __init__(self, storage: Storage, *, rank: int = 0, world: int = 1, keep: int = 2) -> None:
        self.storage = storage
        self.rank, self.world = rank, world
        self.keep = keep
        self._thread: threading.Thread | None = None
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
        """Copies the tensors to memory of its own and returns; waits first for one that still goes on.

        All ranks must call it at the same step, each with its live tensors; `done` is called in the thread
        when the checkpoint is committed.
        """
        self.wait()
        if self.rank:
            return
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        frozen = json.loads(json.dumps(state))

        def run() -> None:
            try:
                save(self.storage, mark, copies, frozen)
                done()
                prune(self.storage, keep=self.keep)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns once the last write is committed; raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def _mark(record: Mapping[str, Any]) -> Mark:
    return Mark(
        images_seen=record["images_seen"],
        lease=record["lease"],
        cooling=record["cooling"],
        target=record["target"],
    )


def _record(storage: Storage, name: str) -> dict[str, Any] | None:
    """A checkpoint's JSON if it is one of ours and complete."""
    try:
        record = json.loads(storage.read(name))
    except (ValueError, FileNotFoundError):
        return None
    types = {
        "images_seen": int,
        "lease": int,
        "cooling": bool,
        "target": int,
        "tensors": str,
        "size": int,
        "sha256": str,
    }
    if not isinstance(record, dict) or record.get("format") != 1 or not isinstance(record.get("state"), dict):
        return None
    if any(type(record.get(key)) is not kind for key, kind in types.items()):
        return None
    if record.pop("check", None) != _check(record):
        return None
    return record if _mark(record).name + ".json" == name else None


def _tensors(storage: Storage, record: Mapping[str, Any]) -> bytes | None:
    """The tensors' bytes if they are those that were written."""
    try:
        data = storage.read(record["tensors"])
    except FileNotFoundError:
        return None
    whole = len(data) == record["size"] and hashlib.sha256(data).hexdigest() == record["sha256"]
    return data if whole else None


def _whole(storage: Storage, name: str) -> bool:
    record = _record(storage, name)
    return record is not None and _tensors(storage, record) is not None


def _check(record: Mapping[str, Any]) -> str:
    """Guards the JSON itself: a flipped digit in it would otherwise be believed."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
