"""A worker beside this process: it answers now and then, nobody waits for it, and its end harms nobody.

Without Ray it is a process of the lowest priority with one thread and no GPU; under Ray an actor with
resources of its own. It is given one item at a time by a thread of this process, and of those that wait the
newest stays.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

from cluster.frames import Unpacker, packed
from cluster.mapping import Factory, Worker
from cluster.resources import limit_threads

NICE = 19
LOOK = 1.0
"""Seconds between two looks of a process beside whether the one that it is beside of still lives."""


class BesideLost(RuntimeError):
    """The worker died, or did not answer in time."""


class Beside:
    """Nothing here waits but `wait`; what goes wrong with the worker stands in `fault`, and it gets nothing
    more."""

    def __init__(
        self,
        factory: Factory,
        *,
        name: str,
        patience: float,
        prepare: Callable[[Any], Any] = lambda item: item,
        done: Callable[[Any], None] = lambda message: None,
    ) -> None:
        """
        Args:
            factory: opens, in the worker, the function that is called on each message.
            patience: seconds that one answer may take, the first one's opening included.
            prepare: in this process's thread, from an item to the message: JSON types and bytes.
            done: with a message that has been answered, or never will be.
        """
        self.fault: str | None = None
        """What ended the worker, as a line."""
        self.skipped = 0
        """Items that made room for newer ones, or came after the fault."""
        self.longest = 0.0
        """Seconds that an answer took at most."""
        self._prepare, self._done, self._patience = prepare, done, patience
        self._worker: _Talker = (_Actor if connected() else _Process)(factory, name)
        self._changed = threading.Condition()
        self._waiting: list[Any] = []
        self._answers: list[tuple[Any, Any]] = []
        self._busy = self._closed = False
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def offer(self, item: Any) -> None:
        """To be answered next, unless a newer one comes before the worker is free."""
        with self._changed:
            if self.fault is not None or self._closed:
                self.skipped += 1
                return
            self.skipped += len(self._waiting)
            self._waiting[:] = [item]
            self._changed.notify_all()

    def answers(self) -> list[tuple[Any, Any]]:
        """(item, answer) that came since the last call, in the order of the items."""
        with self._changed:
            found, self._answers = self._answers, []
            return found

    def wait(self, seconds: float) -> bool:
        """For all that was offered, at most so long; whether nothing is left to wait for."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._busy or self._waiting), seconds)

    def close(self) -> None:
        """Ends the worker at once, whatever it does."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        self._worker.end()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                (item,), self._busy = self._waiting, True
                self._waiting.clear()
            found, fault, start = [], None, time.monotonic()
            try:
                found = [(item, self._ask(item))]
            except Exception as error:
                fault = str(error).strip().partition("\n")[0] or type(error).__name__
                self._worker.end()
            with self._changed:
                self._busy = False
                self.longest = max(self.longest, time.monotonic() - start)
                self._answers += found
                if fault is not None and not self._closed:
                    self.fault = fault
                    self.skipped += 1 + len(self._waiting)
                    self._waiting.clear()
                self._changed.notify_all()
                if fault is not None:
                    return

    def _ask(self, item: Any) -> Any:
        message = self._prepare(item)
        try:
            return self._worker.ask(message, self._patience)
        finally:
            self._done(message)


def connected() -> bool:
    """Whether this process belongs to a Ray cluster."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def spare(*, cpus: float, gpus: float) -> bool:
    """Whether the Ray cluster of this process has so much that nobody uses."""
    if not connected():
        return False
    import ray

    free = ray.available_resources()
    return free.get("CPU", 0.0) >= cpus and free.get("GPU", 0.0) >= gpus


class _Talker(Protocol):
    def __init__(self, factory: Factory, name: str) -> None: ...

    def ask(self, message: Any, seconds: float) -> Any: ...

    def end(self) -> None: ...


class _Process:
    """A child of this process, which starts with the first message."""

    def __init__(self, factory: Factory, name: str) -> None:
        self._factory, self._name = factory, name
        self._process: Any = None
        self._ended = False
        self._lock = threading.Lock()

    def ask(self, message: Any, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        if self._process is None:
            self._start()
        try:
            self._here.send_bytes(packed(message))
            if not self._here.poll(max(0.0, deadline - time.monotonic())):
                raise BesideLost(f"it did not answer within {seconds:.0f} s")
            answer = _value(self._here.recv_bytes())
        except (EOFError, OSError):
            process: Any = self._process
            process.join(10)
            code = process.exitcode
            died = f"it died of signal {-code}" if code and code < 0 else f"it ended with code {code}"
            raise BesideLost(died) from None
        if "error" in answer:
            raise BesideLost(answer["error"])
        return answer["answer"]

    def end(self) -> None:
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.kill()
                self._process.join()

    def _start(self) -> None:
        # A new interpreter: what this one has open, locked or on a GPU is not for the child.
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        with self._lock:
            if self._ended:
                raise BesideLost("it was ended")
            process = context.Process(
                target=_answer_all, args=(there, self._factory, NICE), name=self._name, daemon=True
            )
            process.start()
            self._process = process
        there.close()


class _Actor:
    """An actor of this process's Ray cluster: with a CPU where one is free, and a GPU where one is."""

    def __init__(self, factory: Factory, name: str) -> None:
        self._factory, self._name = factory, name
        self._actor: Any = None
        self._ended = False

    def ask(self, message: Any, seconds: float) -> Any:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        if self._actor is None:
            self._actor = (
                ray.remote(type(self._name.partition(" ")[0], (_Quiet,), {}))
                .options(
                    num_cpus=1 if spare(cpus=1, gpus=0) else 0,
                    num_gpus=1 if spare(cpus=0, gpus=1) else 0,
                    scheduling_strategy="DEFAULT",  # not within the gang's own resources
                )
                .remote(self._factory, 1)
            )
        call = self._actor.call.remote(message)
        if not ray.wait([call], timeout=seconds)[0]:
            raise BesideLost(f"it did not answer within {seconds:.0f} s")
        try:
            return ray.get(call)
        except RayActorError as error:
            raise BesideLost(f"it died ({str(error).strip().splitlines()[0]})") from None
        except RayTaskError as error:
            raise BesideLost(f"{type(error.cause).__name__}: {error.cause}") from None

    def end(self) -> None:
        if self._actor is not None and not self._ended:
            import ray

            self._ended = True
            ray.kill(self._actor)


class _Quiet(Worker):
    """A pool's worker of the lowest priority."""

    def __init__(self, factory: Factory, threads: int) -> None:
        os.nice(NICE)
        super().__init__(factory, threads)


def _answer_all(messages: Connection, factory: Factory, nice: int) -> None:
    """The child: ends with its parent, however that one ends."""
    os.nice(nice)
    # Two trainings on one GPU would share its memory, and then one of them has none.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    limit_threads(1)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    function: Callable[[Any], Any] | None = None
    while True:
        try:
            message = _value(messages.recv_bytes())
        except EOFError:
            return
        try:
            if function is None:
                function = factory()
                limit_threads(1)
            answer = {"answer": function(message)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        messages.send_bytes(packed(answer))


def _value(frame: bytes) -> Any:
    (value,), _ = Unpacker().feed(frame)
    return value
