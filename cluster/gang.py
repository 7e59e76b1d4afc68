"""Workers that train together: one in this process, or several under Ray Train.

Ray Train starts and restarts the processes and forms their process group. It is never given a checkpoint:
the worker function takes the newest valid one from its own store, and `report()` is not on its path. Events
travel from rank 0 through a small actor to the driver, without the training step ever waiting for them.

A gang starts again as often as it takes, as long as it gets further; see `cluster.mailbox.Mailbox`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster import spare
from cluster.keeper import Keeper
from cluster.mailbox import GangFailed, GangPaused, GangStopped, Mailbox, Place, Reply, Report, Standing
from cluster.pulse import Gone, Pulse
from cluster.resources import Resources
from cluster.watch import Limits, Watch

__all__ = ["GangFailed", "GangPaused", "GangStopped", "GangWorker", "Member", "run_alone", "run_gang"]

COLLECTIVE = "LATENTMILL_COLLECTIVE_TIMEOUT"
"""Seconds that torch lets a worker wait for the others in one operation; half an hour if not set."""
GROW = "LATENTMILL_GROW_SECONDS"
"""Between two looks whether more workers have room; a minute if not set."""
ANSWER = 20.0
"""Seconds that the mailbox has to answer a worker, and a worker's machine to end it."""

FINAL = (
    GangStopped,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    AssertionError,
    NotImplementedError,
)
"""What would fail again: for these a gang ends, for a lost process or connection it starts again."""


@dataclass(frozen=True)
class Member:
    """What a worker knows of its gang."""

    rank: int
    world: int
    event: Callable[[dict[str, Any]], None]
    """Tells the driver; returns at once. Ranks above 0 are heard as well, but should keep silent."""
    threads: int
    """Torch threads of this worker, already set."""
    local_rank: int = 0
    """Among the workers on its machine."""
    attempt: int = 0
    """How often the gang was started before."""
    beat: Callable[..., None] = lambda done, busy=0.0: None
    """Shows that this worker lives, how far it is, and how many seconds of its last step were its own work;
    returns at once. For every rank, at every step."""
    stopping: Callable[[], bool] = lambda: False
    """Whether it was told to make safe what it has and end soon: a preempted node, a run that is stopped."""
    phase: Callable[[str], None] = lambda name: None
    """Tells what it does beside steps that may take long, so that nobody takes it for hung; "" ends it."""


GangWorker = Callable[[dict[str, Any], Member], dict[str, Any]]


def run_alone(
    worker: GangWorker,
    config: dict[str, Any],
    *,
    threads: int,
    on_event: Callable[[dict[str, Any]], None],
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """A gang of one in this process: no process group, events arrive as they are sent."""
    return worker(config, Member(rank=0, world=1, event=on_event, threads=threads, stopping=stopping))


def run_gang(
    worker: GangWorker,
    config: dict[str, Any],
    *,
    resources: Resources,
    name: str,
    on_event: Callable[[dict[str, Any]], None],
    storage_path: str,
    cancelled: threading.Event,
    paused: threading.Event | None = None,
    alone: bool = False,
) -> dict[str, Any]:
    """A gang under Ray Train; waits for its end, and starts it again when it loses a worker.

    With `resources.min_workers` it goes on with fewer workers while machines are away, and with more once
    they are back.

    Args:
        name: shown in the dashboard; a suffix is added, so that no attempt finds an older one's state.
        cancelled: ends the gang early when it is set: its workers stop at their next step.
        paused: asks its workers to make safe what they have, and to end.
        storage_path: where Ray Train keeps its own notes: a folder that every node sees, or a URL.
        alone: Ray was started for this process, on this machine: nothing is added, and nothing preempted.

    Raises:
        Exception: what the worker function raised.
        GangPaused: it was asked to end, and what it has is safe.
        GangFailed: it lost workers again and again and got no further.
        RuntimeError: the gang could not be started.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.controller import Torch, Trainer
    from cluster.elastic import Attempts, Places

    paused = paused or threading.Event()
    if cancelled.is_set():
        raise GangStopped(f"{name} was interrupted.")
    if paused.is_set():
        raise GangPaused("Stopped; run again to go on.")
    run = f"{name}-{time.time_ns():x}"
    # Beside the driver: a node that is lost takes workers away, and not what they have told.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "name": f"events of {run}", "scheduling_strategy": here}
    # Its calls are many, and would hide the work from those who look at the dashboard.
    options["enable_task_events"] = False
    mailbox: Any = ray.remote(Mailbox).options(**options).remote()
    each = {"CPU": resources.cpus or 1.0}
    if resources.gpus:
        each["GPU"] = resources.gpus
        os.environ.setdefault("RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR", "1")
        os.environ.setdefault("RAY_TRAIN_NCCL_RAS_ACTION", "fail")
    if resources.memory:
        each["memory"] = resources.memory
    most = resources.workers or 1
    fewest = min(resources.min_workers or most, most)
    # What a worker's function comes from, a process can import that waits for one.
    variables = spare.environment([worker.__module__], threads=resources.threads, gpus=bool(resources.gpus))
    trainer = Trainer(
        _enter,
        policy=lambda scaling: Places(scaling, mailbox=mailbox, alone=alone),
        alone=alone,
        train_loop_config={
            "worker": worker,
            "config": config,
            "threads": resources.threads,
            "mailbox": mailbox,
            "name": name,
        },
        scaling_config=ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),
            use_gpu=bool(resources.gpus),
            resources_per_worker=each,
            elastic_resize_monitor_interval_s=float(os.environ.get(GROW, "60")),
        ),
        backend_config=Torch(
            backend="nccl" if resources.gpus else "gloo", timeout_s=int(os.environ.get(COLLECTIVE, "1800"))
        ),
        run_config=RunConfig(
            name=run,
            storage_path=storage_path,
            worker_runtime_env={"env_vars": variables},
            # The mailbox counts, and knows what was gained between two failures.
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=-1),
            callbacks=[Attempts(mailbox)],  # pyright: ignore[reportArgumentType]
        ),
    )
    keeper = Keeper(
        line=_Line(mailbox),
        name=name,
        on_event=on_event,
        cancelled=cancelled,
        paused=paused,
        watch=Watch(limits=Limits.here()),
    )
    follower = threading.Thread(target=keeper.run, name=f"events of {name}", daemon=True)
    follower.start()
    result, failure = None, None
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        failure = _cause(error)
    finally:
        keeper.stop.set()
        follower.join()
    for event in ray.get(mailbox.take.remote()):
        on_event(event)
    final: Any = ray.get(mailbox.final.remote())
    ray.kill(mailbox)
    for error in (keeper.error, final, failure):
        if error is not None:
            raise error
    return (result.return_value if result else None) or {}


@dataclass(frozen=True)
class _Line:
    """To the mailbox and the workers' machines, over Ray."""

    mailbox: Any

    def look(self) -> Standing:
        return self._call(self.mailbox.look)

    def pause(self, why: str) -> None:
        self._call(self.mailbox.pause, why)

    def ask(self) -> None:
        self._call(self.mailbox.ask)

    def give_up(self, error: BaseException) -> None:
        self._call(self.mailbox.give_up, error)

    def end(self, place: Place) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(place.node, soft=False)
        call = ray.remote(_end).options(num_cpus=0, scheduling_strategy=there, max_retries=0)
        ray.get(call.remote(place), timeout=ANSWER)

    @staticmethod
    def _call(method: Any, *arguments: Any) -> Any:
        import ray

        return ray.get(method.remote(*arguments))


def _end(place: Place) -> None:
    """Runs on the worker's machine; a stopped process takes this signal too."""
    import signal

    import psutil

    try:
        if abs(psutil.Process(place.pid).create_time() - place.started) < 1.0:
            os.kill(place.pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return


def _enter(loop: dict[str, Any]) -> dict[str, Any]:
    """Runs in each worker of Ray Train, and again in each attempt."""
    import ray
    import ray.train
    import torch
    from ray.exceptions import ActorDiedError, RaySystemError

    from cluster.elastic import PREPARED

    mailbox = loop["mailbox"]
    error, paused = ray.get(mailbox.fate.remote())
    if paused and error is None:
        ray.get(mailbox.give_up.remote(GangPaused("Stopped; run again to go on.")))
    if paused or error is not None:
        return {}
    torch.set_num_threads(loop["threads"])
    context = ray.train.get_context()
    last: list[Any] = []

    def event(told: dict[str, Any]) -> None:
        if last and ray.wait(last, timeout=0)[0] and not ray.get(last.pop()):
            raise GangStopped(loop["name"])
        last[:] = [mailbox.put.remote(told)]

    def send(report: Report) -> Reply:
        try:
            return ray.get(mailbox.beat.remote(report), timeout=ANSWER)
        except (ActorDiedError, RaySystemError) as error:
            raise Gone(str(error)) from error

    rank, world = context.get_world_rank(), context.get_world_size()
    attempt = PREPARED[-1] if PREPARED else 0
    waiting = spare.Spare()
    pulse = Pulse(send, rank=rank, attempt=attempt, world=world, leaving=_leaving)

    def beat(done: int, busy: float = 0.0) -> None:
        pulse.beat(done, busy)
        waiting.step()

    member = Member(
        rank=rank,
        world=world,
        event=event,
        threads=loop["threads"],
        local_rank=context.get_local_rank(),
        attempt=attempt,
        beat=beat,
        stopping=pulse.stopping,
        phase=pulse.phase,
    )
    pulse.start()
    try:
        return loop["worker"](loop["config"], member)
    except GangPaused as error:
        if ray.get(mailbox.paused.remote(attempt, error)):
            return {}
        raise  # so that Ray Train starts the gang again, where it can stay
    except FINAL as error:
        ray.get(mailbox.give_up.remote(error))
        if member.world == 1:
            return {}
        raise  # so that Ray Train takes the others down, which wait for this one
    finally:
        pulse.close()


def _leaving() -> bool:
    """Whether Ray says that a machine of this gang is about to be taken away.

    `ray.train.get_preemption_info` waits until all ranks ask; what it gives them lies here.
    """
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        return get_train_context().preemption_context.preemption_info is not None
    except (ImportError, AttributeError, RuntimeError):
        return False


def _cause(error: Exception) -> Exception:
    """The worker's own exception, if Ray Train carries one of a kind that says more than its wrapper."""
    for failure in (getattr(error, "worker_failures", None) or {}).values():
        inner = getattr(failure, "cause", None) or failure
        if isinstance(inner, Exception):
            return inner
    inner = getattr(error, "controller_failure", None)
    return inner if isinstance(inner, RuntimeError) else error
