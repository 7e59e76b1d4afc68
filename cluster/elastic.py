"""How many workers a gang has at its next start, and what Ray Train's controller tells of each attempt.

Ray's own policies learn of a lost machine from a coordinator that looks every twenty seconds, and until then
wait for places that no longer exist. This one asks the machines themselves. It imports Ray: only the driver
of a gang and its controller load it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

from cluster import pulse
from cluster.mailbox import GangPaused, GangStopped, Place

ANSWER = 1.0
"""Seconds that a machine has to take a connection."""
STARTS = 20
"""Starts in a row that may fail before a training is given up: for memory, or as others took the room."""
WAIT = "LATENTMILL_WAIT"
"""Seconds that a gang waits for machines to come back; an hour if not set."""


def count(nodes: Mapping[str, Mapping[str, float]], each: Mapping[str, float]) -> int:
    """Workers that so many resources of machines hold."""
    asked = {name: amount for name, amount in each.items() if amount > 0}
    return sum(
        int(min(has.get(name, 0.0) / amount + 1e-9 for name, amount in asked.items()))
        for has in nodes.values()
    )


def answering(nodes: Sequence[Mapping[str, Any]], *, draining: Mapping[str, Any]) -> dict[str, Any]:
    """Resources by id of the machines that are there and stay: Ray may see late that one is gone."""
    alive = [node for node in nodes if node["Alive"] and node["NodeID"] not in draining]

    def there(node: Mapping[str, Any]) -> bool:
        try:
            address = (node["NodeManagerAddress"], node["NodeManagerPort"])
            socket.create_connection(address, timeout=ANSWER).close()
        except OSError:
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor(max(1, min(64, len(alive)))) as pool:
        found = list(pool.map(there, alive))
    return {node["NodeID"]: node["Resources"] for node, here in zip(alive, found, strict=True) if here}


class Places(ElasticScalingPolicy):
    """As many workers as there is room for now, between the gang's fewest and most."""

    def __init__(self, scaling_config: Any, *, mailbox: Any, alone: bool = False) -> None:
        """`alone`: no machine will ever be added, so nobody has to be told what is wished for."""
        super().__init__(scaling_config)
        self._mailbox, self._alone = mailbox, alone
        self._patience = float(os.environ.get(WAIT, "3600"))
        self._since: float | None = None
        self._starts = 0
        self._error = ""
        self._asked = 0.0

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        import ray

        error, paused = ray.get(self._mailbox.fate.remote())
        if error is not None or paused:
            if error is None:
                ray.get(self._mailbox.give_up.remote(GangPaused("Stopped; run again to go on.")))
            raise GangStopped("the gang was given up, or told to end.")
        if self._starts > STARTS:
            raise RuntimeError(
                f"its workers could not be started {self._starts} times in a row: {self._error}"
            )
        self._since = self._since or time.monotonic()
        decision = self._decide()
        if isinstance(decision, NoopDecision):
            if time.monotonic() - self._since > self._patience:
                fewest = self.scaling_config.min_workers
                raise RuntimeError(
                    f"there was no room for {fewest} workers of {self.scaling_config.resources_per_worker} "
                    f"for {self._patience:.0f} s."
                )
            time.sleep(0.2)  # the controller asks again at once
        else:
            self._since = None
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Grows by asking the workers to make safe what they have, and end: the next start has more."""
        import ray

        if not self.scaling_config.elasticity_enabled:
            self._maybe_send_resource_request()
            return NoopDecision()
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision) and decision.num_workers > worker_group_state.num_workers:
            each: Any = self.scaling_config._resources_per_worker_not_none
            if count(_free(self._nodes()), each):
                ray.get(self._mailbox.resize.remote())
        return NoopDecision()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        name = type(current_state).__name__
        if name == "RunningState":
            self._starts = 0
        elif name == "ReschedulingState":
            self._starts += 1
            self._error = str(getattr(current_state, "training_failed_error", ""))

    def _decide(self) -> ScalingDecision:
        if self.scaling_config.elasticity_enabled:
            return super().make_decision_for_non_running_worker_group()
        self._maybe_send_resource_request()
        each: Any = self.scaling_config._resources_per_worker_not_none
        wanted = self.scaling_config.max_workers
        return self._get_resize_decision(wanted) if count(self._nodes(), each) >= wanted else NoopDecision()

    def _get_reserved_resources(self) -> Any:
        """Ray's, of those machines that answer."""
        there = self._nodes()
        if self._alone:
            return there
        reserved = super()._get_reserved_resources()
        if not reserved:
            return reserved
        known = {node: resources for node, resources in reserved.items() if node in there}
        return {node: there[node] for node in known} if self._starts else known

    def _send_resource_request(self) -> None:
        if not self._alone:
            super()._send_resource_request()

    def _maybe_send_resource_request(self) -> None:
        if not self._alone:
            super()._maybe_send_resource_request()

    def _cancel_resource_request(self) -> None:
        if not self._alone:
            super()._cancel_resource_request()

    def _nodes(self) -> dict[str, Any]:
        import ray
        from ray._private.state import state

        draining: Mapping[str, Any] = {}
        with contextlib.suppress(Exception):
            draining = state.get_draining_nodes() or {}
        there = answering(ray.nodes(), draining=draining)
        # Where a start has waited in vain, others have the room: then only what is free counts.
        return _free(there) if self._starts else there


def _free(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """What nobody uses of these machines."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return {node: free.get(node, {}) for node in nodes}


class Attempts(WorkerGroupCallback):
    """Numbers the attempts, and tells the mailbox who works in each and why it ended."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._attempt = -1

    def after_worker_group_start(self, worker_group: Any) -> None:
        import ray

        self._attempt += 1
        started = worker_group.execute(prepare, self._attempt)
        places = [
            Place(
                rank=worker.distributed_context.world_rank,
                node=worker.metadata.node_id,
                host=worker.metadata.hostname,
                pid=worker.metadata.pid,
                started=since,
            )
            for worker, since in zip(worker_group.get_workers(), started, strict=True)
        ]
        ray.get(self._mailbox.begin.remote(self._attempt, places))

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        errors = worker_group_status.errors
        if errors:
            self._mailbox.failed.remote(self._attempt, cause(errors))


def prepare(attempt: int) -> float:
    """Runs in the main thread of each worker's process, which alone may say what a signal does."""
    import psutil

    PREPARED.append(attempt)
    pulse.TOLD.clear()
    signal.signal(signal.SIGTERM, pulse.on_sigterm)
    return psutil.Process().create_time()


PREPARED: list[int] = []
"""The attempt that this worker's process was started for."""


def cause(errors: Mapping[int, BaseException]) -> str:
    """One line: a lost worker says more than what the others raised because of it."""
    lost = sorted(rank for rank, error in errors.items() if hasattr(error, "health_check_failure"))
    if lost:
        ranks = ", ".join(map(str, lost))
        return f"worker{'s' if len(lost) > 1 else ''} {ranks} {'were' if len(lost) > 1 else 'was'} lost"
    rank, error = min(errors.items())
    inner = getattr(error, "_base_exc", error)
    line = next((text.strip() for text in str(inner).splitlines() if text.strip()), "")
    return f"worker {rank}: {type(inner).__name__}: {line}"
