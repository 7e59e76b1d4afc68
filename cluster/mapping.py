"""Calling one function on many items: in this process, or on a pool of Ray actors.

A pool opens its function once a worker (a model is loaded once) and calls it on many items, one at a time, so
that a lost worker costs one item. Results come as they are ready.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from cluster.gang import GangWorker, run_alone, run_gang
from cluster.mailbox import SAFE
from cluster.resources import Capacity, Resources, limit_threads

if TYPE_CHECKING:
    from cluster.session import RaySession

Factory = Callable[[], Callable[[Any], Any]]
"""Opens what a worker needs (weights, datasets) and returns the function that is called on each item."""


_NUMBERS = itertools.count()
"""Of a process's workers, so that each has a name of its own in the dashboard."""
LOOK = 0.5
"""Seconds between two looks whether the work was cancelled."""


class WorkerLost(RuntimeError):
    """An item whose worker died at every try: for memory, in native code, or with its machine."""


class Executor(Protocol):
    """Where work runs. Factories, items, workers and configs are pickled (by cloudpickle) to get there."""

    parallel: bool
    """Whether several stages may use it at the same time."""

    def capacity(self) -> Capacity: ...

    def map(
        self,
        factory: Factory,
        items: Sequence[Any],
        *,
        resources: Resources,
        name: str,
        describe: Callable[[Any], str] = str,
    ) -> Iterator[tuple[int, Any]]:
        """Calls what `factory` opens on every item; (position of the item, result) as they come.

        Raises:
            WorkerLost: a worker died on the same item three times.
            Exception: what the function raised, as it raised it.
        """
        ...

    def gang(
        self,
        worker: GangWorker,
        config: dict[str, Any],
        *,
        resources: Resources,
        name: str,
        on_event: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        """Runs `worker(config, member)` on `resources.workers` processes at once; what rank 0 returned."""
        ...

    def pause(self, seconds: float) -> None:
        """Asks trainings to make safe what they have and end (`GangPaused`); returns when they have, or after
        so many seconds."""
        ...

    def check(self) -> None:
        """Raises `HeadLost` where nothing more can be done here; to be asked now and then."""
        ...

    def cancel(self) -> None:
        """Makes calls that other threads are in raise soon."""
        ...

    def close(self) -> None: ...


@dataclass
class InlineExecutor:
    """This process, one item after the other; needs no Ray."""

    parallel = False
    paused: threading.Event = field(default_factory=threading.Event)
    """Ends a training once what it has is safe."""
    training: bool = False
    """Whether one goes on."""

    def capacity(self) -> Capacity:
        return Capacity.here()

    def map(
        self,
        factory: Factory,
        items: Sequence[Any],
        *,
        resources: Resources,
        name: str,
        describe: Callable[[Any], str] = str,
    ) -> Iterator[tuple[int, Any]]:
        limit_threads(resources.threads)
        call = factory()
        limit_threads(resources.threads)
        for position, item in enumerate(items):
            yield position, call(item)

    def gang(
        self,
        worker: GangWorker,
        config: dict[str, Any],
        *,
        resources: Resources,
        name: str,
        on_event: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        if (resources.min_workers or resources.workers or 1) > 1:
            raise ValueError(
                f"{name} asks for {resources.workers} workers, and this process is one: run it on Ray."
            )
        limit_threads(resources.threads)
        self.training = True
        try:
            return run_alone(
                worker, config, threads=resources.threads, on_event=on_event, stopping=self.paused.is_set
            )
        finally:
            self.training = False

    def pause(self, seconds: float) -> None:
        """Only asks: this thread is the one that trains."""
        self.paused.set()

    def check(self) -> None:
        pass

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class RayExecutor:
    """A pool of Ray actors for `map`, Ray Train for `gang`. Ray starts with the first call."""

    session: RaySession
    tries: int = 3
    """Workers that may die on one item before it is given up."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    paused: threading.Event = field(default_factory=threading.Event)
    _going: dict[str, bool] = field(default_factory=dict)
    """Trainings, and whether what they have is safe."""
    _changed: threading.Condition = field(default_factory=threading.Condition)

    parallel = True

    def capacity(self) -> Capacity:
        return self.session.capacity()

    def map(
        self,
        factory: Factory,
        items: Sequence[Any],
        *,
        resources: Resources,
        name: str,
        describe: Callable[[Any], str] = str,
    ) -> Iterator[tuple[int, Any]]:
        if not items:
            return
        self.session.start()
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        shared = ray.put(factory)
        waiting = deque((position, 1) for position in range(len(items)))
        running: dict[Any, tuple[Any, int, int]] = {}
        pool: list[Any] = []
        idle: list[Any] = []
        try:
            while waiting or running:
                while waiting and (idle or len(pool) < min(resources.workers or 1, len(items))):
                    if not idle:
                        pool.append(_start_worker(shared, resources, name, f"{name} {next(_NUMBERS)}"))
                        idle.append(pool[-1])
                    actor = idle.pop()
                    position, attempt = waiting.popleft()
                    item = items[position]
                    call = actor.call.options(name=f"{name} {describe(item)}").remote(item)
                    running[call] = (actor, position, attempt)
                ready, _ = ray.wait(list(running), num_returns=1, timeout=LOOK)
                if self.cancelled.is_set():
                    raise RuntimeError(f"{name} was interrupted.")
                if not ready:
                    continue
                actor, position, attempt = running.pop(ready[0])
                try:
                    result = ray.get(ready[0])
                except RayActorError as error:
                    pool.remove(actor)
                    if attempt >= self.tries:
                        raise WorkerLost(
                            f"{describe(items[position])}: its worker died {attempt} times, for memory or in "
                            f"native code ({_first_line(error)})"
                        ) from None
                    waiting.appendleft((position, attempt + 1))
                    continue
                except RayTaskError as error:
                    raise error.cause if isinstance(error.cause, Exception) else error from None
                if waiting:
                    idle.append(actor)
                else:
                    # What is left may be with a worker that waits for a place, where a machine was lost.
                    pool.remove(actor)
                    ray.kill(actor)
                yield position, result
        finally:
            for actor in pool:
                ray.kill(actor)

    def gang(
        self,
        worker: GangWorker,
        config: dict[str, Any],
        *,
        resources: Resources,
        name: str,
        on_event: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        self.session.begin()
        import cluster.controller  # noqa: F401  # while Ray starts, which takes longer

        self.session.start()
        self._tell(name, False)

        def listen(event: dict[str, Any]) -> None:
            if event["kind"] == SAFE:
                self._tell(name, True)
            else:
                on_event(event)

        try:
            return run_gang(
                worker,
                config,
                resources=resources,
                name=name,
                on_event=listen,
                storage_path=self.session.train_storage,
                cancelled=self.cancelled,
                paused=self.paused,
                alone=self.session.local,
            )
        finally:
            self._tell(name, None)

    def _tell(self, name: str, safe: bool | None) -> None:
        """Of a training: whether what it has is safe; None when it has ended."""
        with self._changed:
            if safe is None:
                self._going.pop(name, None)
            else:
                self._going[name] = safe
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Where the head is lost no training ends by itself: then it is enough that they are safe."""
        self.paused.set()
        with self._changed:
            self._changed.wait_for(
                lambda: not self._going or (self.session.lost and all(self._going.values())), timeout=seconds
            )

    def check(self) -> None:
        self.session.check()

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        self.session.close()


class Worker:
    """A pool's actor: opens the function with its first item, so that starting a pool waits for nobody."""

    def __init__(self, factory: Factory, threads: int) -> None:
        self.factory, self.threads = factory, threads
        # Here and not in a runtime environment: that would cost a new process where Ray has one waiting.
        limit_threads(threads)
        self.function: Callable[[Any], Any] | None = None

    def call(self, item: Any) -> Any:
        if self.function is None:
            self.function = self.factory()
            limit_threads(self.threads)
        return self.function(item)


def _start_worker(factory: Any, resources: Resources, kind: str, name: str) -> Any:
    """An actor of class `kind` and of that name: what the dashboard's lists show."""
    import ray

    options: dict[str, Any] = {
        "name": name,
        "num_cpus": resources.cpus or 1,
        "num_gpus": resources.gpus or 0,
    }
    if resources.memory:
        options["memory"] = resources.memory
    actor: Any = ray.remote(type(kind, (Worker,), {}))
    return actor.options(**options).remote(factory, resources.threads)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
