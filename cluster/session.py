"""Joining a Ray cluster, or starting one on this machine and stopping it again."""

from __future__ import annotations

import os
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.resources import Capacity

PACKAGES = ("diffusion", "cluster", "pipelines")
OBJECT_STORE = 200 * 2**20
"""Bytes of the local object store: images and weights are read from files, only metadata goes through Ray."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
    "RAY_DEDUP_LOGS": "0",
    # A thread that is still in a call when the session ends would start another Ray by itself.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Read by Ray when it is imported; what the environment says already is kept."""


@dataclass
class RaySession:
    """One connection to Ray, made by the first `start()` and undone by `close()`.

    `begin()` starts Ray in the background: it takes eight seconds, which planning and opening can use.
    """

    shared: str | None = None
    """Folder or URL that every node sees, for Ray Train's notes; not needed where Ray is started here."""
    dashboard: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    """More arguments of `ray.init`."""

    address: str | None = None
    dashboard_url: str | None = None
    _thread: threading.Thread | None = None
    _ready: threading.Event = field(default_factory=threading.Event)
    _done: threading.Event = field(default_factory=threading.Event)
    _error: BaseException | None = None
    _notes: tempfile.TemporaryDirectory[str] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def local(self) -> bool:
        """Whether Ray is started here, not joined."""
        return not os.environ.get("RAY_ADDRESS")

    def begin(self) -> None:
        """Starts or joins Ray without waiting for it."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._hold, name="ray session", daemon=True)
                self._thread.start()

    def start(self) -> RaySession:
        """Waits until Ray is there.

        Raises:
            ValueError: there is no cluster at RAY_ADDRESS.
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

        total = ray.cluster_resources()
        return Capacity(cpus=total.get("CPU", 1.0), gpus=total.get("GPU", 0.0))

    @property
    def train_storage(self) -> str:
        """Where Ray Train keeps its notes of a run."""
        if not self.local and self.shared:
            return self.shared
        if self._notes is None:
            self._notes = tempfile.TemporaryDirectory(prefix="latentmill-train-", ignore_cleanup_errors=True)
        return self._notes.name

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

        ray.shutdown()

    def _join(self) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        import logging

        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        options: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "configure_logging": True,
            "ignore_reinit_error": True,
        }
        if self.local:
            options |= {
                "address": "local",
                "include_dashboard": self.dashboard,
                "object_store_memory": OBJECT_STORE,
                "num_cpus": int(Capacity.here().cpus),
            }
        else:
            root = Path(__file__).resolve().parent.parent
            options["runtime_env"] = {"py_modules": [str(root / package) for package in PACKAGES]}
        try:
            context: Any = ray.init(**(options | self.options))
        except ConnectionError as error:
            raise ValueError(
                f"No Ray cluster answers at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}: if it asks for a "
                "token, set RAY_AUTH_MODE=token; to work on this machine, unset RAY_ADDRESS."
            ) from error
        self.address = context.address_info.get("gcs_address")
        url = getattr(context, "dashboard_url", None)
        self.dashboard_url = f"http://{url}" if url else None


def _gpus() -> float:
    """GPUs that Ray will find here, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return float(len([v for v in visible.split(",") if v.strip() and v.strip() != "-1"]))
    devices = Path("/dev")
    return float(len([d for d in devices.glob("nvidia[0-9]*") if d.name[6:].isdigit()]))
