"""Gauges that a cluster's Prometheus scrapes from this process, through Ray."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

BEAT = 5.0
"""Seconds between two reports; Ray exports every ten what was set within them, and forgets the rest."""


class Gauges:
    """Values by name and labels, shown as `ray_<name>` on a node's `--metrics-export-port` until `close`.

    What is set before this process is connected to Ray is shown when it is.
    """

    def __init__(self, descriptions: dict[str, str], tags: Sequence[str]) -> None:
        """`descriptions`: name -> what Prometheus says of it. `tags`: names of the labels of all of them."""
        self._descriptions, self._tags = descriptions, tuple(tags)
        self._values: dict[tuple[str, tuple[str, ...]], float] = {}
        self._gauges: dict[str, Any] = {}
        self._done = threading.Event()
        self._reporter = threading.Thread(target=self._report, name="metrics", daemon=True)
        self._lock = threading.Lock()
        self._reporter.start()

    def set(self, name: str, value: float, **tags: str) -> None:
        """Returns at once."""
        with self._lock:
            self._values[name, tuple(tags[tag] for tag in self._tags)] = value

    def close(self) -> None:
        """Reports a last time."""
        self._done.set()
        self._reporter.join()

    def _report(self) -> None:
        last = False
        while not last:
            last = self._done.wait(BEAT)
            self._export()

    def _export(self) -> None:
        import ray

        if not ray.is_initialized():
            return
        from ray.util.metrics import Gauge

        with self._lock:
            values = dict(self._values)
        for (name, labels), value in values.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, self._descriptions[name], self._tags)
            self._gauges[name].set(value, tags=dict(zip(self._tags, labels, strict=True)))
