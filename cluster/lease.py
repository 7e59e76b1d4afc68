"""One driver at a time on what cannot be shared, without a clock that two machines would have to agree on.

A lease is a numbered file that only one driver can create. Its holder raises a counter beside it; whoever
waits takes the next number when the counter has stood still for a while by the waiter's own monotonic clock.
A holder that was suspended and wakes up finds the higher number, and all that it wrote bears the lower one.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.head import reached
from cluster.storage import Storage

RELEASED = b"released"


class LeaseLost(RuntimeError):
    """Another driver has taken over."""


@dataclass
class Lease:
    """A lease on what one folder stands for."""

    storage: Storage
    """Folder of the lease's own files."""
    patience: float = 30.0
    """Seconds that the holder's counter may stand still before another driver takes over."""
    clock: Callable[[], float] = time.monotonic
    number: int = 0
    """Of the lease that this driver holds or held; 0 before the first."""
    _count: int = 0
    _lost: threading.Event = field(default_factory=threading.Event)

    def acquire(
        self,
        *,
        finished: Callable[[], bool] = lambda: False,
        waiting: Callable[[str], None] = lambda holder: None,
    ) -> bool:
        """Waits for the lease; False as soon as `finished()` says that there is nothing left to hold it for.

        Args:
            waiting: called once for each holder that is waited for, with its host and process id.
        """
        seen: tuple[int, bytes] | None = None
        since = self.clock()
        told = 0
        while not finished():
            highest = self._highest()
            count = self._counter(highest)
            if (highest, count) != seen:
                seen, since = (highest, count), self.clock()
            holder = self._holder(highest) if highest else {}
            still = self.clock() - since >= self.patience
            if not highest or count == RELEASED or still or is_gone(holder):
                if self.storage.put_if_absent(_name(highest + 1), owner()):
                    self.number, self._count = highest + 1, 0
                    self._lost.clear()
                    self.beat()
                    return True
                continue
            if told != highest:
                told = highest
                waiting(f"{holder.get('host')}, process {holder.get('pid')}")
            threading.Event().wait(min(1.0, self.patience / 10))
        return False

    def busy(self) -> bool:
        """Whether somebody seems to hold it: not released, and no process of this machine that ended."""
        highest = self._highest()
        return highest > 0 and self._counter(highest) != RELEASED and not is_gone(self._holder(highest))

    def beat(self) -> None:
        """Shows that the holder lives.

        Raises:
            LeaseLost: another driver has the next number.
        """
        if self._lost.is_set() or self.storage.exists(_name(self.number + 1)):
            self._lost.set()
            raise LeaseLost(f"{self.storage.url}: another driver has taken over.")
        self._count += 1
        self.storage.replace(f"{self.number:06d}.beat", str(self._count).encode())

    def check(self) -> None:
        """As `beat`, from what the last beat found; costs nothing."""
        if self._lost.is_set():
            raise LeaseLost(f"{self.storage.url}: another driver has taken over.")

    def release(self) -> None:
        """Lets the next driver have it at once."""
        with contextlib.suppress(OSError):
            self.storage.replace(f"{self.number:06d}.beat", RELEASED)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Beats in the background while the block runs, then releases."""
        done = threading.Event()

        def beating() -> None:
            while not done.wait(self.patience / 6):
                try:
                    self.beat()
                except LeaseLost:
                    return
                except OSError:
                    continue  # a store that is away for a moment must not end a training

        beats = threading.Thread(target=beating, name="lease", daemon=True)
        beats.start()
        try:
            yield
        finally:
            done.set()
            beats.join()
            if not self._lost.is_set():
                self.release()

    def _highest(self) -> int:
        numbers = [int(n[:-5]) for n in self.storage.list() if n.endswith(".json") and n[:-5].isdigit()]
        return max(numbers, default=0)

    def _counter(self, number: int) -> bytes:
        try:
            return self.storage.read(f"{number:06d}.beat")
        except FileNotFoundError:
            return b""

    def _holder(self, number: int) -> dict[str, str | int | float]:
        try:
            return json.loads(self.storage.read(_name(number)))
        except (FileNotFoundError, ValueError):
            return {}


def _name(number: int) -> str:
    return f"{number:06d}.json"


def owner() -> bytes:
    """This process, for `is_gone` to know it again."""
    import psutil

    return json.dumps(
        {
            "host": socket.gethostname(),
            "kernel": _kernel(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "id": uuid.uuid4().hex,
            **_job(),
        }
    ).encode()


def _job() -> dict[str, str]:
    """This driver to its Ray cluster, where it is connected to one."""
    if "ray" not in sys.modules:
        return {}
    import ray

    if not ray.is_initialized():
        return {}
    return {"cluster": _cluster(), "job": ray.get_runtime_context().get_job_id()}


def _cluster() -> str:
    """Another one for each start of a cluster's head that remembers nothing of the last."""
    from ray._private import worker

    connected: Any = worker.global_worker
    return connected.gcs_client.cluster_id.hex()


def _kernel() -> str | None:
    """Equal only for processes that see one another: the machine's boot and its process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def is_gone(holder: dict[str, str | int | float]) -> bool:
    """Whether the holder has ended, as far as this machine or a Ray cluster that both are connected to knows:
    then nobody needs to wait."""
    import psutil

    if not holder:
        return False
    if not holder.get("kernel") or holder["kernel"] != _kernel():
        return _ended(holder)
    try:
        return psutil.Process(int(holder["pid"])).create_time() != holder["started"]
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _ended(holder: dict[str, str | int | float]) -> bool:
    """Whether Ray has seen the end of the holder's driver; of what Ray does not know, nothing is said."""
    try:
        if not holder.get("job") or holder.get("cluster") != _job().get("cluster"):
            return False
        import ray
        from ray._private.state import jobs

        if not reached(ray.get_runtime_context().gcs_address):
            return False  # Ray would ask it for a minute, and then end this process
        return any(job["JobID"] == holder["job"] and job["IsDead"] for job in jobs())
    except Exception:
        return False
