"""Saved by N ranks, loaded by M, plain and sharded both ways, to the same bits."""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor

from cluster.storage import LocalStorage, Storage
from diffusion import sharding
from diffusion.config import OptimizationConfig
from diffusion.training import TrainingState
from pipelines.training import checkpoints
from pipelines.training.checkpoints import pieces
from pipelines.training.checkpoints.part import read_part
from pipelines.training.checkpoints.pieces import Box, Layout
from tests.pipelines.training.checkpoints.gangs import everything, gangs, mark

LAYOUTS = ("plain", "sharded", "hybrid")
WORLDS = (1, 2, 3, 4)


class Network(torch.nn.Module):
    """Seven rows are no multiple of any number of ranks here, and three leave one of four without any."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.few = torch.nn.Linear(50, 7), torch.nn.Linear(5, 3)
        self.one = torch.nn.Linear(9, 1, bias=False)
        self.conv = torch.nn.Conv2d(4, 8, 3)


def network() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network()


def state_of(layout: str, *, seed: int | None) -> TrainingState:
    """With values that are the same in any layout, in each tensor that training makes; as it starts if no
    seed is given."""
    module = network()
    if layout == "plain":
        module.conv.to(memory_format=torch.channels_last)
    else:
        sharding.shard(module, replicas=2 if layout == "hybrid" else 1, reshard=False, gathered=None)
    state = TrainingState.start(module, OptimizationConfig(lr=1e-2, ema=0.05, ema_others=(0.1,)))
    if seed is not None:
        for optimizer in state.optimizers:
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        state.images_seen = seed
        for name, tensor in state.state_dict().items():
            if tensor.is_floating_point():
                chance = torch.Generator().manual_seed(seed + sum(name.encode()))
                sharding.copy(tensor.detach(), torch.randn(tensor.shape, generator=chance))
    return state


def layouts(world: int) -> list[str]:
    return [name for name in LAYOUTS if name != "hybrid" or world == 4]


def truth(seed: int = 16) -> dict[str, Tensor]:
    return state_of("plain", seed=seed).state_dict()


@torch.no_grad()
def same(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Each rank's own part, without a gather."""
    assert state.keys() == wanted.keys()
    for name, tensor in state.items():
        expected = sharding.local(sharding.spread(wanted[name], tensor))
        assert torch.equal(sharding.local(tensor), expected), name


def save(folder: Path, world: int, rank: int) -> None:
    for layout in layouts(world):
        writer = checkpoints.Writer(Storage.at(folder / f"{world}-{layout}"), rank=rank, world=world)
        writer.write(mark(16), state_of(layout, seed=16).state_dict(), {"world": world})
        writer.wait()


SOURCES = [f"{world}-{layout}" for world in WORLDS for layout in layouts(world)]


def load(folder: Path, world: int, rank: int) -> None:
    wanted = truth()
    for layout in layouts(world):
        state = state_of(layout, seed=None)
        for source in SOURCES:
            found = checkpoints.restore(
                Storage.at(folder / source), everything, rank=rank, world=world, like=state.state_dict()
            )
            assert found is not None
            assert found.state == {"world": int(source[0])}
            state.load_state_dict(found.tensors)
            same(state.state_dict(), wanted)
            for tensor in state.state_dict().values():
                sharding.local(tensor).detach().zero_()
            (folder / f"{world}-{layout}-{rank}-from-{source}").write_text("the same")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint for each number of ranks and layout, loaded by each number of ranks and layout; and what
    else takes several ranks."""
    folder = tmp_path_factory.mktemp("layouts")
    torch.set_num_threads(1)
    # Before forking, so that each process need not: an optimizer alone imports for seconds.
    importlib.import_module("torch.distributed.fsdp")
    truth()
    gangs(
        folder,
        *((world, functools.partial(save, folder, world)) for world in WORLDS),
        *((world, functools.partial(load, folder, world)) for world in WORLDS),
        (2, functools.partial(count_reads, folder)),
        (3, functools.partial(see_damage, folder)),
    )
    return folder


def test_any_number_of_ranks_goes_on_from_any_other_in_any_layout(saved: Path) -> None:
    pairs = {path.name for path in saved.glob("*-from-*")}
    assert len(SOURCES) == 9
    assert pairs == {
        f"{world}-{layout}-{rank}-from-{source}"
        for world in WORLDS
        for layout in layouts(world)
        for rank in range(world)
        for source in SOURCES
    }


def count_reads(folder: Path, rank: int) -> None:
    """Writes down which files a rank reads in the layout in which they were written."""
    read: set[str] = set()

    class Counting(LocalStorage):
        def read_range(self, name: str, offset: int, size: int) -> bytes:
            read.add(name)
            return super().read_range(name, offset, size)

    module = torch.distributed.tensor.distribute_tensor(
        torch.arange(8.0),
        torch.distributed.init_device_mesh("cpu", (2,)),
        [torch.distributed.tensor.Shard(0)],
    )
    storage = Counting(folder / "reads")
    writer = checkpoints.Writer(storage, rank=rank, world=2)
    writer.write(mark(8), {"module.w": module, "optimizer.w.m": module + 1}, {})
    writer.wait()
    read.clear()
    found = checkpoints.restore(storage, everything, rank=rank, world=2, like={"module.w": module})
    assert found is not None
    assert torch.equal(sharding.local(found.tensors["optimizer.w.m"]), sharding.local(module) + 1)
    (folder / f"read-by-{rank}").write_text("\n".join(sorted(read)))


def test_a_rank_reads_only_what_it_needs(saved: Path) -> None:
    """What an optimizer keeps of a parameter too, of which there is nothing yet when a training resumes."""
    for rank in range(2):
        (file,) = (saved / f"read-by-{rank}").read_text().split("\n")
        assert f".0000{rank}-of-00002." in file


def see_damage(folder: Path, rank: int) -> None:
    """Of three ranks the second alone reads what is damaged, in the newest of two checkpoints."""
    storage = LocalStorage(folder / "damaged")
    for n in (8, 16):
        writer = checkpoints.Writer(storage, rank=rank, world=3)
        writer.write(mark(n), state_of("sharded", seed=n).state_dict(), {})
        writer.wait()
    if rank == 1:
        (part,) = storage.path.glob(f"{mark(16).name}.*.00001-of-*")
        data = bytearray(part.read_bytes())
        data[-1] ^= 1
        part.write_bytes(data)
    torch.distributed.barrier()
    told: list[str] = []
    like = state_of("sharded", seed=None).state_dict()
    found = checkpoints.restore(storage, everything, rank=rank, world=3, like=like, tell=told.append)
    assert found is not None
    assert found.mark == mark(8)
    (folder / f"told-{rank}").write_text("\n".join(told))


def test_damage_that_one_rank_sees_counts_for_all(saved: Path) -> None:
    told = [(saved / f"told-{rank}").read_text() for rank in range(3)]
    assert "passed over: it has other bytes than were written" in told[0]
    assert told[1:] == ["", ""]


def test_nothing_is_written_twice_and_each_writes_its_share(saved: Path) -> None:
    total = sum(t.numel() * t.element_size() for t in truth().values())
    for world in WORLDS:
        for layout in layouts(world):
            storage = LocalStorage(saved / f"{world}-{layout}")
            parts = [read_part(storage, n) for n in storage.list() if n.endswith(".safetensors")]
            sizes = [sum(one.piece.size for one in part.stored) for part in parts]
            assert sum(sizes) == total
            assert len(sizes) == world
            # Rows are not divided, so that shares are as even as they can be of a network this small.
            assert max(sizes) < 2.2 * total / world


def boxes(shape: tuple[int, ...]) -> Iterator[Box]:
    for first in range(shape[0]):
        for rows in range(1, shape[0] - first + 1):
            yield Box((first, 0), (rows, shape[1]))


def test_boxes_share_what_both_hold() -> None:
    shape = (4, 3)
    numbers = torch.arange(12).reshape(shape)
    for a in boxes(shape):
        for b in boxes(shape):
            shared = a.overlap(b)
            mine, theirs = numbers[a.within(Box.whole(shape))], numbers[b.within(Box.whole(shape))]
            both = set(mine.flatten().tolist()) & set(theirs.flatten().tolist())
            assert (shared is None) == (not both)
            if shared is not None:
                assert set(mine[shared.within(a)].flatten().tolist()) == both
                assert torch.equal(mine[shared.within(a)], theirs[shared.within(b)])


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_large_tensors_are_cut_and_shared_by_bytes(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "CHUNK", 4096)
    state: dict[str, Any] = {"big": torch.randn(1000, 33), "row": torch.randn(1, 9000), "n": torch.tensor(1)}
    total = sum(t.numel() * t.element_size() for t in state.values())
    seen: dict[str, int] = {}
    for rank in range(world):
        share = Layout(rank=rank, world=world).share(state)
        size = sum(piece.size for piece, _ in share)
        assert abs(size - total / world) < 2 * 4096
        for piece, memory in share:
            assert piece.size <= 4096
            assert tuple(memory.shape) == piece.box.shape
            assert torch.equal(memory, state[piece.tensor][piece.box.within(Box.whole(piece.shape))])
            seen[piece.tensor] = seen.get(piece.tensor, 0) + piece.box.numel
    assert seen == {name: tensor.numel() for name, tensor in state.items()}


def test_saving_many_small_tensors_takes_little(tmp_path: Path) -> None:
    """The plan of what is written is made on the step's path."""
    state = {f"module.{n}": torch.zeros(10) for n in range(2000)}
    layout = Layout(rank=0, world=8)
    start = time.process_time()
    layout.share(state)
    assert time.process_time() - start < 0.5
