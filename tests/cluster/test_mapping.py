"""The executors: the same answers in this process and on Ray, whose workers are killed on the way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.gang import Member
from cluster.mapping import Executor, InlineExecutor, RayExecutor, WorkerLost
from cluster.resources import Capacity, Resources, settle
from cluster.session import RaySession

pytestmark = pytest.mark.timeout(900)  # on a machine with much else to do
RESOURCES = Resources(cpus=1, workers=2)


def open_square() -> Callable[[int], tuple[int, str | None]]:
    return lambda number: (number * number, os.environ.get("OMP_NUM_THREADS"))


def open_refusing() -> Callable[[int], int]:
    def refuse(number: int) -> int:
        raise ValueError(f"{number} is too much")

    return refuse


class Deadly:
    """Kills its worker at the item "poison" always, and at any other the first time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> Callable[[str], str]:
        def call(item: str) -> str:
            mark = self.folder / item
            if item == "poison" or not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return item

        return call


class Other:
    """Takes a CPU."""

    def ready(self) -> None:
        return None


def train(config: dict[str, Any], member: Member) -> dict[str, Any]:
    """Least squares by gradient descent over all ranks, from its own checkpoint; rank 1 dies once."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    folder = Path(config["folder"])
    start, weight = 0, torch.zeros(1, 4)
    checkpoints = sorted(folder.glob("at-*"))
    if checkpoints:
        state = torch.load(checkpoints[-1], weights_only=True)
        start, weight = state["step"], state["weight"]
    model = torch.nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(weight)
    wrapped = DistributedDataParallel(model) if member.world > 1 else model
    for step in range(start, config["steps"]):
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))[member.rank :: member.world]
        loss = (wrapped(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        wrapped.zero_grad()
        loss.backward()
        with torch.no_grad():
            model.weight -= 0.1 * model.weight.grad  # pyright: ignore[reportOperatorIssue]
        if member.rank == 0:
            member.event({"kind": "metrics", "step": step + 1, "values": {"loss": loss.item()}})
            torch.save({"step": step + 1, "weight": model.weight.detach()}, folder / f"at-{step + 1:03d}")
        member.beat(step + 1)
        dead = folder / "dead"
        if config.get("kill_at") == step and member.rank == member.world - 1 and not dead.exists():
            dead.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(config.get("rest", 0.0))  # signs of life are sent by the second
    return {"weight": model.weight.tolist(), "world": member.world, "threads": torch.get_num_threads()}


def train_badly(config: dict[str, Any], member: Member) -> dict[str, Any]:
    Path(config["folder"], f"try-{time.time_ns()}").touch()
    raise ValueError("the images are too small")


def gang(
    executor: Executor, worker: Any, config: dict[str, Any], workers: int
) -> tuple[dict[str, Any], list[Any]]:
    events: list[Any] = []
    resources = Resources(cpus=1, workers=workers)
    result = executor.gang(worker, config, resources=resources, name="learn", on_event=events.append)
    return result, events


def test_settling_a_request():
    machine = Capacity(cpus=8, gpus=2)
    pool = settle(Resources(), machine, shape="pool")
    assert (pool.cpus, pool.gpus, pool.workers) == (1, 0, 8)
    pool = settle(Resources(), machine, shape="pool", accelerated=True)
    assert (pool.cpus, pool.gpus, pool.workers) == (1, 1, 2)
    gang = settle(Resources(workers=2), machine, shape="gang", accelerated=True)
    assert (gang.cpus, gang.gpus, gang.workers) == (4, 1, 2)
    with pytest.raises(ValueError, match="asks for 9 CPUs"):
        settle(Resources(cpus=9), machine, shape="pool")


def test_a_worker_lies_on_one_machine():
    machines = Capacity.of([(0.0, 0.0), (4.0, 0.0), (6.0, 2.0), (4.0, 0.0)])
    assert (machines.cpus, machines.gpus) == (14, 2)
    assert machines.fit(4) == 3
    assert machines.fit(1, gpus=1) == 2
    assert settle(Resources(), machines, shape="gang").cpus == 6
    assert settle(Resources(workers=3), machines, shape="gang").cpus == 4
    assert settle(Resources(workers=2), machines, shape="gang", accelerated=True).cpus == 3
    assert settle(Resources(cpus=4), machines, shape="pool").workers == 3
    with pytest.raises(ValueError, match="the largest machine has 6 and 2"):
        settle(Resources(cpus=7), machines, shape="pool")


def test_inline_map_and_gang(tmp_path: Path):
    executor = InlineExecutor()
    results = list(executor.map(open_square, [3, 4], resources=RESOURCES, name="square"))
    assert results == [(0, (9, "1")), (1, (16, "1"))]
    result, events = gang(executor, train, {"folder": str(tmp_path), "steps": 3}, 1)
    assert (result["world"], result["threads"], len(events)) == (1, 1, 3)
    with pytest.raises(ValueError, match="asks for 2 workers, and this process is one"):
        gang(executor, train, {}, 2)


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayExecutor]:
    # Ray's sockets lie in its folder, and their names may have 107 characters at most.
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        options = {"num_cpus": 2, "object_store_memory": 100 * 2**20, "_temp_dir": folder}
        session = RaySession(dashboard=False, options=options)
        # The dashboard's view of trainings costs an actor for each, and nobody looks here.
        os.environ["RAY_TRAIN_ENABLE_STATE_TRACKING"] = "0"
        session.begin()
        yield RayExecutor(session)
        session.close()


@pytest.mark.ray
def test_a_pool_answers_as_this_process_does(on_ray: RayExecutor):
    results = list(on_ray.map(open_square, range(7), resources=RESOURCES, name="square"))
    assert sorted(results) == [(n, (n * n, "1")) for n in range(7)]
    with pytest.raises(ValueError, match="^2 is too much$"):
        list(on_ray.map(open_refusing, [2], resources=RESOURCES, name="refuse"))


@pytest.mark.ray
def test_killed_workers_cost_a_try_and_poison_is_given_up(on_ray: RayExecutor, tmp_path: Path):
    items = ["a", "b", "c"]
    found = list(on_ray.map(Deadly(tmp_path), items, resources=RESOURCES, name="deadly"))
    assert sorted(found) == list(enumerate(items))
    with pytest.raises(WorkerLost, match="poison: its worker died 3 times"):
        list(on_ray.map(Deadly(tmp_path), ["poison"], resources=RESOURCES, name="deadly"))


@pytest.mark.ray
def test_a_pool_ends_where_there_is_room_for_fewer_workers_than_it_was_given(on_ray: RayExecutor):
    """As behind the loss of a machine: an item is with a worker that waits for the place of another."""
    import ray

    on_ray.session.start()
    other: Any = ray.remote(Other).options(num_cpus=1).remote()
    ray.get(other.ready.remote())
    results = list(on_ray.map(open_square, range(3), resources=RESOURCES, name="square"))
    assert sorted(number for number, _ in results) == [0, 1, 2]
    ray.kill(other)


@pytest.mark.ray
def test_a_gang_that_loses_a_worker_ends_as_if_it_had_not(on_ray: RayExecutor, tmp_path: Path):
    """Under DDP the gradient is that of the whole batch, so one worker gives the same weights as two."""
    pytest.importorskip("torch")
    folder = {name: tmp_path / name for name in ("killed", "alone")}
    for path in folder.values():
        path.mkdir()
    config = {"folder": str(folder["killed"]), "steps": 6, "kill_at": 3, "rest": 4.0}
    result, events = gang(on_ray, train, config, 2)
    assert (folder["killed"] / "dead").exists()
    alone, _ = gang(InlineExecutor(), train, {"folder": str(folder["alone"]), "steps": 6}, 1)
    assert result["world"] == 2
    assert result["weight"] == [pytest.approx(alone["weight"][0], abs=1e-6)]
    assert {event["step"] for event in events if event["kind"] == "metrics"} == set(range(1, 7))
    assert [event["world"] for event in events if event["kind"] == "restart"] == [2]


@pytest.mark.ray
def test_a_mistake_ends_a_gang_as_it_was_raised(on_ray: RayExecutor, tmp_path: Path):
    with pytest.raises(ValueError, match="^the images are too small$"):
        gang(on_ray, train_badly, {"folder": str(tmp_path)}, 1)
    assert len(list(tmp_path.iterdir())) == 1
