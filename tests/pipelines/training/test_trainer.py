from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from cluster.gang import Member
from cluster.mapping import RayExecutor
from cluster.resources import Resources
from cluster.session import RaySession
from cluster.storage import LocalStorage
from diffusion import compilation
from diffusion.config import OptimizationConfig
from pipelines.models import SnapshotFolder
from pipelines.training import loop
from pipelines.training.tasks.denoiser import DenoiserTask
from tests import fresh
from tests.pipelines import tiny

COOLED = OptimizationConfig(lr=3e-3, warmup=16, cooldown=32)
EVERY = 16


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    return tiny.line(tmp_path_factory.mktemp("line"))


def weights(snapshot: SnapshotFolder) -> str:
    return snapshot.record["files"]["denoiser.safetensors"]


@pytest.fixture(scope="module")
def unbroken(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> SnapshotFolder:
    """96 images, never stopped, and without a checkpoint on the way."""
    folder = tmp_path_factory.mktemp("unbroken")
    return tiny.run(tiny.train(optimization=COOLED), tiny.session(folder, inputs))


def notes(session: tiny.TinySession) -> list[str]:
    return [event["text"] for event in session.events if event["kind"] == "note"]


def kill_in_step(folder: Path) -> None:
    step = loop.Loop.step

    def dying(self: loop.Loop, progress: Any) -> None:
        if progress.images_seen == 56:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, progress)

    loop.Loop.step = dying


def kill_in_write(suffix: str, number: int) -> Callable[[Path], None]:
    """Kills inside the `number`-th write of a file with that suffix, half of it on disk."""

    def arrange(folder: Path) -> None:
        write, seen = LocalStorage._write, []

        def dying(self: LocalStorage, path: Path, source: Any) -> Path:
            if path.suffix == suffix and path.parent.name == "checkpoints":
                seen.append(path)
                if len(seen) == number:
                    path.with_name(f".{path.name}.partial").write_bytes(source[: len(source) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
            return write(self, path, source)

        LocalStorage._write = dying

    return arrange


KILLS = {
    "step": kill_in_step,
    "tensors": kill_in_write(".safetensors", 3),
    "record": kill_in_write(".json", 5),
}


def killed(folder: str) -> None:
    """Trains once a kind of death, each in a process of its own."""
    line, context = tiny.line(Path(folder) / "line"), multiprocessing.get_context("fork")
    for name, arrange in KILLS.items():

        def train(name: str = name, arrange: Callable[[Path], None] = arrange) -> None:
            arrange(Path(folder))
            stage = tiny.train(optimization=COOLED, checkpoint_every=EVERY)
            tiny.run(stage, tiny.session(Path(folder) / name, line))

        process = context.Process(target=train)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (name, process.exitcode)


def import_all() -> None:
    """Before forking, so that each process need not: an optimizer alone imports for seconds."""
    for name in ("torch.nn.parallel", "safetensors.torch", "pipelines.training.tasks.denoiser", "PIL.Image"):
        importlib.import_module(name)
    COOLED.build(tiny.NETWORK.build(channels=2, size=4))[0].zero_grad()


def aftermath(folder: str) -> None:
    """All that forks, in a fresh process: autograd may not be forked once it has been used."""
    torch.set_num_threads(1)
    import_all()
    killed(f"{folder}/killed")
    gangs(f"{folder}/gangs")


@pytest.fixture(scope="module")
def remains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remains")
    fresh.run(aftermath, str(folder), timeout=280)
    return folder


@pytest.mark.parametrize("where", list(KILLS))
def test_killed_and_resumed_is_the_unbroken_one(
    inputs: dict[str, Any], unbroken: SnapshotFolder, remains: Path, where: str
) -> None:
    session = tiny.session(remains / "killed" / where, inputs, lease=2)
    resumed = tiny.run(tiny.train(optimization=COOLED, checkpoint_every=EVERY), session)

    # The step that dies does not wait for the checkpoint before it, which may not have been whole by then;
    # one that lacks nothing but its index gets another.
    furthest = {"step": (32, 48), "tensors": (32,), "record": (72,)}[where]
    assert notes(session)[-1] in [f"Continues from {n} images." for n in furthest]
    assert weights(resumed) == weights(unbroken)
    assert resumed.record["curve"] == unbroken.record["curve"]
    time = resumed.record["time"]
    assert time["attempts"] == 2
    assert time["wall"] == pytest.approx(sum(time["seconds"].values()), abs=1e-3)
    assert time["seconds"]["down"] > 0


def test_damaged_newest_checkpoint_costs_only_its_steps(
    inputs: dict[str, Any], unbroken: SnapshotFolder, tmp_path: Path
) -> None:
    stage = tiny.train(optimization=COOLED, checkpoint_every=EVERY)
    tiny.run(stage, tiny.session(tmp_path, inputs))
    newest = max((tmp_path / "checkpoints").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])

    session = tiny.session(tmp_path, inputs, output="again", lease=2)
    again = tiny.run(stage, session)

    assert "passed over" in notes(session)[0]
    assert notes(session)[1:] == ["Continues from 80 images."]
    assert weights(again) == weights(unbroken)


def test_longer_continues_shorter_to_the_same_bits(
    inputs: dict[str, Any], unbroken: SnapshotFolder, tmp_path: Path
) -> None:
    """The shorter run cools from 48 - 32 = 16 images on, so that is as far as it helps."""
    short = tiny.run(
        tiny.train(images_seen=48, optimization=COOLED), tiny.session(tmp_path, inputs, output="short")
    )

    session = tiny.session(tmp_path, inputs, output="long", lease=2)
    long = tiny.run(tiny.train(optimization=COOLED), session)

    # Cooling begins with the step that starts above 16 images, so the state after 24 is still on the common
    # road.
    assert notes(session) == ["Continues from 24 images."]
    assert weights(long) == weights(unbroken)
    assert weights(short) != weights(long)


def test_shorter_does_not_start_beyond_its_end(inputs: dict[str, Any], tmp_path: Path) -> None:
    tiny.run(tiny.train(optimization=COOLED, checkpoint_every=EVERY), tiny.session(tmp_path, inputs))
    alone = tiny.run(
        tiny.train(images_seen=48, optimization=COOLED),
        tiny.session(tmp_path, inputs, checkpoints="none", output="a"),
    )

    after = tiny.run(
        tiny.train(images_seen=48, optimization=COOLED), tiny.session(tmp_path, inputs, output="b")
    )

    assert weights(after) == weights(alone)


def test_routed_tokens_are_all_there_in_the_cooldown(
    inputs: dict[str, Any], unbroken: SnapshotFolder, tmp_path: Path
) -> None:
    """Longer continues shorter here too, and a task's shares say which tokens pass by until then."""
    short = tiny.train(images_seen=48, optimization=COOLED, tokens=0.5)
    tiny.run(short, tiny.session(tmp_path, inputs, output="short"))
    session = tiny.session(tmp_path, inputs, output="long", lease=2)
    long = tiny.run(tiny.train(optimization=COOLED, tokens=0.5), session)
    assert notes(session) == ["Continues from 24 images."]
    alone = tiny.run(tiny.train(optimization=COOLED, tokens=0.5), tiny.session(tmp_path / "alone", inputs))
    assert weights(long) == weights(alone)
    assert weights(long) != weights(unbroken)

    task = short.task(inputs, torch.device("cpu"), 1)
    routes = [task.share(np.arange(n, n + 8), np.arange(8)).conditioning.route for n in range(0, 48, 8)]
    assert [None if r is None else tuple(r.shape) for r in routes] == [(8, 2)] * 3 + [None] * 3


def test_looking_changes_nothing(inputs: dict[str, Any], unbroken: SnapshotFolder, tmp_path: Path) -> None:
    looking = tiny.train(optimization=COOLED, validate_every=8, samples_every=24, checkpoint_seconds=0.0)
    assert weights(tiny.run(looking, tiny.session(tmp_path, inputs))) == weights(unbroken)


def test_in_pieces_and_compiled_it_learns_the_same(
    inputs: dict[str, Any], unbroken: SnapshotFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def compile_blocks(module: torch.nn.Module, *, shapes: int) -> None:
        compiled.append(shapes)

    monkeypatch.setattr(compilation, "compile_blocks", compile_blocks)
    stage = tiny.train(optimization=COOLED, accumulate=3, compile=True)
    one = load(unbroken.read("denoiser.safetensors"))
    for key, tensor in load(
        tiny.run(stage, tiny.session(tmp_path, inputs)).read("denoiser.safetensors")
    ).items():
        torch.testing.assert_close(tensor.float(), one[key].float(), rtol=2e-2, atol=2e-3)
    assert compiled == [1]


def test_bfloat16_is_the_losses_arithmetic(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, losses = set(), DenoiserTask.losses

    def watching(self: DenoiserTask, module: torch.nn.Module, share: Any) -> torch.Tensor:
        seen.add(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return losses(self, module, share)

    monkeypatch.setattr(DenoiserTask, "losses", watching)
    every = {"validate_every": 96, "samples_every": 96, "images_seen": 16}
    tiny.run(tiny.train(precision="bfloat16", **every), tiny.session(tmp_path, inputs))
    assert seen == {torch.bfloat16, False}  # held-out figures are in float32


def test_hopeless_training_stops_with_a_reason(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = DenoiserTask.losses
    monkeypatch.setattr(DenoiserTask, "losses", lambda *given: losses(*given) * torch.nan)
    stage = tiny.train(validate_every=96, samples_every=96)

    with pytest.raises(ValueError, match=r"None of 12 steps .* none before: lower optimization\.lr"):
        tiny.run(stage, tiny.session(tmp_path, inputs))


def test_error_in_the_data_reaches_the_loop(inputs: dict[str, Any], tmp_path: Path) -> None:
    line = tiny.line(tmp_path / "line")
    shard = tmp_path / "line" / "latents" / "00001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])  # in the first member

    with pytest.raises(ValueError, match="other bytes|cut short"):
        tiny.run(tiny.train(), tiny.session(tmp_path, line))


def gang(world: int, folder: Path, line: dict[str, Any], stage: Any, *, dies_at: int | None = None) -> None:
    """Runs a stage on `world` processes that talk over gloo; all die at `dies_at` images."""
    context = multiprocessing.get_context("fork")
    meeting = folder / f"meeting-{os.urandom(4).hex()}"
    folder.mkdir(parents=True, exist_ok=True)

    class Gang(tiny.TinySession):
        def gang(self, worker: Any, config: dict[str, Any]) -> dict[str, Any]:
            result = worker(config, Member(rank=rank, world=world, event=self.event, threads=1))
            # Only rank 0's answer goes back to the stage.
            return result if rank == 0 else sys.exit(0)

    def work(rank: int) -> None:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world
        )
        if dies_at is not None:
            step = loop.Loop.step

            def dying(self: loop.Loop, progress: Any) -> None:
                step(self, progress)
                if progress.images_seen == dies_at:
                    self._writer.wait()
                    torch.distributed.barrier()
                    os.kill(os.getpid(), signal.SIGKILL)

            loop.Loop.step = dying
        session = tiny.session(folder, line)
        session.__class__ = Gang
        tiny.run(stage, session)

    processes = []
    for rank in range(world):
        processes.append(context.Process(target=work, args=(rank,)))
        processes[-1].start()
    for process in processes:
        process.join()
    wanted = 0 if dies_at is None else -signal.SIGKILL
    assert [process.exitcode for process in processes] == [wanted] * world


def gangs(folder: str) -> None:
    line, top = tiny.line(Path(folder) / "line"), Path(folder)
    stage = tiny.train(optimization=COOLED, checkpoint_every=EVERY)
    gang(2, top / "two", line, stage)
    gang(3, top / "three", line, stage)
    gang(3, top / "broken", line, stage, dies_at=48)
    gang(3, top / "broken", line, stage)


@pytest.mark.parametrize("name", ["two", "three"])
def test_more_workers_learn_the_same(unbroken: SnapshotFolder, remains: Path, name: str) -> None:
    """Three do not divide the batch of 8, so their shares differ in size."""
    one = load(unbroken.read("denoiser.safetensors"))
    many = load((remains / "gangs" / name / "output" / "denoiser.safetensors").read_bytes())

    for key, tensor in one.items():
        torch.testing.assert_close(many[key].float(), tensor.float(), rtol=2e-2, atol=2e-3)


def test_three_killed_and_resumed_are_three_unbroken(remains: Path) -> None:
    three, broken = (
        (remains / "gangs" / n / "output" / "denoiser.safetensors").read_bytes() for n in ("three", "broken")
    )
    assert three == broken


@pytest.mark.ray
def test_two_workers_under_ray_train(inputs: dict[str, Any], remains: Path, tmp_path: Path) -> None:
    """The same bits as from two processes without Ray; events and the result come back to the driver."""
    # A socket's path is short, and pytest's folders are not.
    notes = tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)
    options = {"num_cpus": 2, "object_store_memory": 100 * 2**20, "_temp_dir": notes.name}
    executor = RayExecutor(RaySession(dashboard=False, options=options))

    class OnRay(tiny.TinySession):
        def gang(self, worker: Any, config: dict[str, Any]) -> dict[str, Any]:
            return executor.gang(
                worker, config, resources=Resources(cpus=1, workers=2), name="train", on_event=self.event
            )

    session = tiny.session(tmp_path, inputs)
    session.__class__ = OnRay
    try:
        snapshot = tiny.run(tiny.train(optimization=COOLED), session)
    finally:
        executor.close()
        notes.cleanup()

    alone = (remains / "gangs" / "two" / "output" / "denoiser.safetensors").read_bytes()
    assert snapshot.read("denoiser.safetensors") == alone
    assert {event["kind"] for event in session.events} >= {"progress", "metrics", "picture"}
