"""From a checkpoint's parts to the tensors of one rank, however many ranks wrote it and in whatever layout.

Read are the pieces that hold something of what the rank needs, and no others; each is checked before a byte
of it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pipelines.training.checkpoints.index import Index
from pipelines.training.checkpoints.mark import Checkpoint, Damaged
from pipelines.training.checkpoints.part import Part, Stored, read_part
from pipelines.training.checkpoints.pieces import Box, Layout, dtype_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from cluster.storage import Storage

READ = 32 << 20
"""Bytes that are asked for at once, where pieces lie side by side."""
THREADS = 4
"""That read and check at the same time."""


class Tensors(Mapping[str, "Tensor"]):
    """This rank's tensors in host memory; one that is sharded becomes so when it is asked for, so that a
    device need not hold all of a state twice."""

    def __init__(self, local: Mapping[str, Tensor], layouts: Mapping[str, Any]) -> None:
        """`layouts`: tensors that are laid out as those of the same name in `local` are to be."""
        self._local, self._layouts = local, layouts

    def __getitem__(self, name: str) -> Tensor:
        layout = self._layouts.get(name)
        if layout is None:
            return self._local[name]
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            self._local[name],
            layout.device_mesh,
            layout.placements,
            run_check=False,
            shape=layout.shape,
            stride=layout.stride(),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._local)

    def __len__(self) -> int:
        return len(self._local)


def layout_of(name: str, shape: tuple[int, ...], like: Mapping[str, Tensor]) -> Any:
    """A tensor that is laid out as that one is to be here; None if it is to be whole.

    What an optimizer keeps of a parameter ("optimizer.PARAMETER.SLOT") is laid out as the parameter, if it
    has the parameter's shape.
    """
    from diffusion import sharding

    known = like.get(name)
    if known is None and name.startswith("optimizer."):
        known = like.get("module." + name.removeprefix("optimizer.").rpartition(".")[0])
    return known if known is not None and sharding.sharded(known) and tuple(known.shape) == shape else None


def load(
    storage: Storage, index: Index, like: Mapping[str, Tensor], *, rank: int = 0, world: int = 1
) -> Checkpoint:
    """A checkpoint's tensors as this rank is to have them.

    Args:
        like: tensors whose layout those of the same name get; what is not among them is whole.

    Raises:
        Damaged: something that this rank needs is missing, or not what was written.
    """
    tensors = _whole_file(storage, index) if index.format == 1 else _pieces(storage, index, like, rank, world)
    return Checkpoint(mark=index.mark, tensors=tensors, state=index.state)


def _whole_file(storage: Storage, index: Index) -> Mapping[str, Tensor]:
    from safetensors.torch import load

    (file,) = index.files
    try:
        data = storage.read(file.name)
    except FileNotFoundError:
        raise Damaged("lacks its tensors") from None
    if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.check:
        raise Damaged("has tensors of other bytes")
    return load(data)


def _pieces(
    storage: Storage, index: Index, like: Mapping[str, Tensor], rank: int, world: int
) -> Mapping[str, Tensor]:
    import torch

    layout = Layout(rank=rank, world=world)
    layouts = {name: layout_of(name, shape, like) for name, (_, shape) in index.tensors.items()}
    wanted: dict[str, Box] = {}
    local: dict[str, Tensor] = {}
    for name, (word, shape) in index.tensors.items():
        whole = Box.whole(shape)
        wanted[name] = whole if layouts[name] is None else layout.box(layouts[name])
        dtype = dtype_of(word)
        memory = torch.empty(wanted[name].numel * dtype.itemsize, dtype=torch.uint8)
        local[name] = memory.view(dtype).view(wanted[name].shape)
    places = {name: _bytes(local[name], wanted[name]) for name in local}
    missing = {name: box.numel for name, box in wanted.items() if box.numel}

    def take(stored: Stored, data: memoryview) -> None:
        import numpy as np

        piece, box = stored.piece, wanted[stored.piece.tensor]
        if hashlib.sha256(data).hexdigest() != stored.sha256:
            raise Damaged(f"has other bytes than were written in {piece.key}")
        shared = piece.box.overlap(box)
        assert shared is not None
        given = np.frombuffer(data, np.uint8).reshape(*piece.box.shape, dtype_of(piece.dtype).itemsize)
        places[piece.tensor][shared.within(box)] = given[shared.within(piece.box)]

    # Its own part first: where as many ranks as wrote it read it, that is all of what each needs.
    count = len(index.files)
    begin = rank * count // world
    with ThreadPoolExecutor(THREADS) as pool:
        for file in (index.files[(begin + n) % count] for n in range(count)):
            if not missing:
                break
            part = read_part(storage, file.name)
            if (part.check, part.size, part.attempt) != (file.check, file.size, index.attempt):
                raise Damaged(f"has a part that is not what was written ({file.name})")
            needed = []
            for stored in part.stored:
                name = stored.piece.tensor
                if index.tensors.get(name) != (stored.piece.dtype, stored.piece.shape):
                    raise Damaged(f"has a part that is not what was written ({file.name})")
                shared = stored.piece.box.overlap(wanted[name]) if name in missing else None
                if shared is not None:
                    needed.append(stored)
                    missing[name] -= shared.numel
                    if missing[name] <= 0:
                        del missing[name]
            _read(storage, part, needed, take, pool)
    if missing:
        raise Damaged(f"lacks something of {min(missing)}")
    return Tensors(local, {name: found for name, found in layouts.items() if found is not None})


def _read(
    storage: Storage,
    part: Part,
    needed: Iterable[Stored],
    take: Callable[[Stored, memoryview], None],
    pool: ThreadPoolExecutor,
) -> None:
    """Hands over the bytes of pieces; neighbours are read as one."""
    runs: list[list[Stored]] = []
    for stored in needed:
        last = runs[-1][-1] if runs else None
        joins = last is not None and last.offset + last.piece.size == stored.offset
        if joins and stored.offset + stored.piece.size - runs[-1][0].offset <= READ:
            runs[-1].append(stored)
        else:
            runs.append([stored])

    def fetch(run: list[Stored]) -> None:
        begin, end = run[0].offset, run[-1].offset + run[-1].piece.size
        try:
            data = memoryview(storage.read_range(part.file, begin, end - begin))
        except (FileNotFoundError, EOFError):
            raise Damaged(f"lacks a part ({part.file})") from None
        for stored in run:
            first = stored.offset - begin
            take(stored, data[first : first + stored.piece.size])

    for _ in pool.map(fetch, runs):
        pass


def _bytes(tensor: Tensor, box: Box) -> np.ndarray:
    """The same memory as an array of bytes, one more dimension for those of a number."""
    import torch

    flat = tensor.reshape(-1).view(torch.uint8).numpy()
    return flat.reshape(*box.shape, tensor.element_size())
