"""Gauges that a cluster's Prometheus scrapes from this process, through Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Gauges:
    """Sets gauges by name; `<port of ray start --metrics-export-port>/metrics` shows each as `ray_<name>`.

    Nothing happens as long as this process is not connected to Ray.
    """

    def __init__(self, descriptions: dict[str, str], tags: Sequence[str]) -> None:
        """`descriptions`: name -> what Prometheus says of it. `tags`: names of the labels of all of them."""
        self._descriptions, self._tags = descriptions, tuple(tags)
        self._gauges: dict[str, Any] = {}

    def set(self, name: str, value: float, **tags: str) -> None:
        import ray

        if not ray.is_initialized():
            return
        gauge = self._gauges.get(name)
        if gauge is None:
            from ray.util.metrics import Gauge

            gauge = self._gauges[name] = Gauge(name, self._descriptions[name], self._tags)
        gauge.set(value, tags=tags)
