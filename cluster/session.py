"""Joining a Ray cluster, or starting one on this machine and stopping it again."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.head import Head
from cluster.jobs import current
from cluster.resources import Capacity

PACKAGES = ("diffusion", "cluster", "pipelines")
SHARED_STORE = "LATENTMILL_SHARED_STORE"
"""Set where a store that is a folder is the same folder on every node."""
OBJECT_STORE = 200 * 2**20
"""Bytes of the local object store: images and weights are read from files, only metadata goes through Ray."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    # A worker whose process does not answer for so long is taken for lost, if our own watch has not seen it.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "300",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",
    "RAY_DEDUP_LOGS": "0",
    # A thread that is still in a call when the session ends would start another Ray by itself.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Read by Ray when it is imported; what the environment says already is kept."""
ALONE = {
    # Nobody takes this machine away, and tells it.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # What Ray Train tells its controller, which finds it in its environment here.
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
    # Ray's own, 15, lets a dashboard and a record that start keep a training waiting that starts again.
    "RAY_worker_niceness": "5",
}
"""The same where Ray is started here."""


def packages() -> tuple[Path, ...]:
    """The folders that a cluster is sent; a wheel would be installed with all it needs on each node."""
    root = Path(__file__).resolve().parent.parent
    return tuple(root / name for name in PACKAGES)


@dataclass
class RaySession:
    """One connection to Ray, made by the first `start()` and undone by `close()`.

    `begin()` starts Ray in the background: it takes eight seconds, which planning and opening can use.
    """

    shared: str | None = None
    """Folder or URL of the store, for Ray Train's notes; not needed where Ray is started here."""
    dashboard: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    """More arguments of `ray.init`."""

    address: str | None = None
    dashboard_url: str | None = None
    _thread: threading.Thread | None = None
    _ready: threading.Event = field(default_factory=threading.Event)
    _done: threading.Event = field(default_factory=threading.Event)
    _error: BaseException | None = None
    _found: bool = False
    """Whether this process was connected before, and is to stay so."""
    _notes: tempfile.TemporaryDirectory[str] | None = None
    _head: Head | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def local(self) -> bool:
        """Whether Ray is started here, not joined."""
        return not (os.environ.get("RAY_ADDRESS") or self._found)

    def begin(self) -> None:
        """Starts or joins Ray without waiting for it."""
        with self._lock:
            if self._thread is None:
                # Before it is known what runs where: a cluster that was joined may take its machines away.
                ray: Any = sys.modules.get("ray")
                self._found = ray is not None and ray.is_initialized()
                for name, value in (SETTINGS | (ALONE if self.local else {})).items():
                    os.environ.setdefault(name, value)
                self._thread = threading.Thread(target=self._hold, name="ray session", daemon=True)
                self._thread.start()

    def start(self) -> RaySession:
        """Waits until Ray is there.

        Raises:
            ValueError: there is no cluster at RAY_ADDRESS, or its nodes do not share the store.
        """
        self.begin()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        return self

    def capacity(self) -> Capacity:
        """All CPUs and GPUs; of this machine without waiting for Ray, where Ray is started here."""
        if self.local and not self._ready.is_set():
            here = Capacity.here()
            return Capacity(cpus=float(self.options.get("num_cpus") or here.cpus), gpus=_gpus())
        self.start()
        import ray

        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return Capacity.of((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in alive)

    @property
    def train_storage(self) -> str:
        """Where Ray Train keeps its notes of a run."""
        if not self.local and self.shared:
            return self.shared
        if self._notes is None:
            self._notes = tempfile.TemporaryDirectory(prefix="latentmill-train-", ignore_cleanup_errors=True)
        return self._notes.name

    def check(self) -> None:
        """Raises `HeadLost` where the cluster's head has not answered for too long."""
        if self._ready.is_set() and self.address:
            self._head = self._head or Head(self.address, local=self.local)
            self._head.check()

    @property
    def lost(self) -> bool:
        """Whether `check` has found so."""
        return self._head is not None and self._head.lost

    def close(self) -> None:
        """Disconnects; stops what was started here."""
        if self._thread is None:
            return
        self._ready.wait()
        self._done.set()
        self._thread.join()
        if self._notes is not None:
            self._notes.cleanup()

    def _hold(self) -> None:
        """Ray's processes die with the thread that started them, so one thread stays while they are used."""
        try:
            self._join()
        except BaseException as error:
            self._error = error
            return
        finally:
            self._ready.set()
        self._done.wait()
        import ray

        if not self._found:
            ray.shutdown()

    def _join(self) -> None:
        import logging

        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        self._found = ray.is_initialized()
        if self._found:
            self.address = ray.get_runtime_context().gcs_address
            self._check_store()
            return
        options: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "configure_logging": True,
        }
        if self.local:
            options |= {
                "address": "local",
                "include_dashboard": self.dashboard,
                "object_store_memory": OBJECT_STORE,
                "num_cpus": int(Capacity.here().cpus),
            }
        elif current() is None:  # a job's processes have been given the packages, or have them installed
            options["runtime_env"] = {"py_modules": [str(package) for package in packages()]}
        try:
            with _own_sigterm():
                context: Any = ray.init(**(options | self.options))
        except ConnectionError as error:
            raise ValueError(
                f"No Ray cluster answers at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}: if it asks for a "
                "token, set RAY_AUTH_MODE=token; to work on this machine, unset RAY_ADDRESS."
            ) from error
        self.address = context.address_info.get("gcs_address")
        url = getattr(context, "dashboard_url", None)
        self.dashboard_url = f"http://{url}" if url else None
        self._check_store()

    def _check_store(self) -> None:
        """A folder of one machine is no store for several: each would write into its own."""
        import ray

        if self.local or not self.shared or "://" in self.shared or os.environ.get(SHARED_STORE):
            return
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if len(nodes) > 1:
            if not self._found:
                ray.shutdown()
            raise ValueError(
                f"The cluster has {len(nodes)} nodes and the store is a folder: put it into a bucket "
                f"(LATENTMILL_STORE=s3://BUCKET/store), or set {SHARED_STORE}=1 if every node sees it at the "
                "same path."
            )


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """What a process does when it is told to end stays its own: Ray's libraries take the signal over, below
    Python and from any thread."""
    libc = ctypes.CDLL(None)
    before = ctypes.create_string_buffer(1024)  # larger than any system's struct sigaction
    known = libc.sigaction(int(signal.SIGTERM), None, before) == 0
    try:
        yield
    finally:
        if known:
            libc.sigaction(int(signal.SIGTERM), before, None)


def _gpus() -> float:
    """GPUs that Ray will find here, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return float(len([v for v in visible.split(",") if v.strip() and v.strip() != "-1"]))
    devices = Path("/dev")
    return float(len([d for d in devices.glob("nvidia[0-9]*") if d.name[6:].isdigit()]))
