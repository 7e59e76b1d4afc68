"""How long a worker's own work takes in a step: what it does before it has to wait for the others.

That is making ready its share of the batch, and the forward pass. The backward pass is left out, in which
gradients are exchanged: there the fast wait for the slow, and all take equally long.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Effort:
    """Never waits for a device: what a GPU did is known some steps later."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._running: deque[tuple[Any, Any]] = deque(maxlen=64)

    @contextlib.contextmanager
    def data(self) -> Iterator[None]:
        """The block waits for this worker's own data."""
        begun = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - begun

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """The block computes on the device."""
        if self._device.type != "cuda":
            with self.data():
                yield
            return
        import torch

        begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun.record()
        yield
        ended.record()
        self._running.append((begun, ended))

    def taken(self) -> float:
        """Seconds since the last call, as far as they are known."""
        while self._running and self._running[0][1].query():
            begun, ended = self._running.popleft()
            self._seconds += begun.elapsed_time(ended) / 1000.0
        seconds, self._seconds = self._seconds, 0.0
        return seconds
