"""Whether a cluster's head still answers. Ray waits a minute for one that does not, and then ends each of its
processes, and this one, in the middle of whatever it does."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

RAY_WAITS = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""How long Ray does, in seconds; a minute if not set."""
LEAVES = 45.0
"""Seconds of these that are left for checkpoints and for coming to an end."""
LEAST = 5.0
"""Seconds that a head may take to answer in any case."""
ANSWER = 1.0
"""Seconds that it has to take a connection."""


class HeadLost(KeyboardInterrupt):
    """Ends a run as an interrupt does: what trains is made safe, and the same command goes on from there."""

    status = 75
    """Exit status: run it again."""


def reached(address: str) -> bool:
    """Whether anything takes a connection at "host:port"."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    except OSError:
        return False
    return True


@dataclass
class Head:
    """Asked every now and then."""

    address: str
    """host:port of its control store (GCS)."""
    local: bool
    """Whether it was started by this process: then nobody will start it again."""
    reached: Callable[[str], bool] = reached
    clock: Callable[[], float] = time.monotonic
    lost: bool = False
    _since: float | None = field(default=None, init=False)
    """When it was first found not to answer."""

    @property
    def patience(self) -> float:
        """Seconds that it may be away: a cluster may start its head again."""
        waits = float(os.environ.get(RAY_WAITS) or 60.0)
        return LEAST if self.local else max(LEAST, waits - LEAVES)

    def check(self) -> None:
        """Raises `HeadLost` where it has not answered for too long."""
        if self.reached(self.address):
            self._since = None
            return
        now = self.clock()
        self._since = now if self._since is None else self._since
        if now - self._since >= self.patience:
            where = "which was started here" if self.local else f"at {self.address}"
            self.lost = True
            raise HeadLost(f"the head of the Ray cluster, {where}, answers no more")
