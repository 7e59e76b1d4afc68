"""A process that waits beside a worker, to take its place: it has already imported what a worker needs.

A new process takes Ray, torch and the training's own imports several seconds, in which a gang that has lost a
worker does nothing. This one is started while training goes on, and Ray itself hands it out: to the next
worker on its machine that asks for the same runtime environment. Where it cannot be had, nothing is lost but
those seconds.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

WANTED = "LATENTMILL_SPARE"
"""0 keeps no spare processes: each takes as much memory as the imports of a worker, 0.4 GB."""
MODULES = "LATENTMILL_SPARE_MODULES"
"""Names of what a worker's process imports before it is needed, with commas between."""
HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""Ray's, of what a process calls before it takes work."""
ALWAYS = ("torch", "torch.distributed", "ray.train", "ray.train.torch")
UNSEEN = ("torch._dynamo",)
"""Imported by every optimizer, though nothing is compiled; but where there are GPUs, nothing that might look
at them is imported before Ray has said which of them are the worker's."""
STEPS = 3
"""After so many a training is under way, and a process that starts beside it no longer keeps it waiting."""
KEPT = 30 * 86_400
"""Seconds that Ray keeps one: as long as its driver, which it never outlives."""
ANSWER = 10.0
"""Seconds that a machine has to take the request."""


def environment(modules: Sequence[str], *, threads: int, gpus: bool = False) -> dict[str, str]:
    """Variables of a worker's process; a spare one waits for those with the same ones.

    Empty where Ray has been told to call something else in each process.
    """
    if HOOK in os.environ:
        return {}
    names = ",".join((*ALWAYS, *(() if gpus else UNSEEN), *modules))
    # What is imported before Ray says how many CPUs it has would take all of them.
    return {HOOK: f"{__name__}.ready", MODULES: names, "OMP_NUM_THREADS": str(threads)}


def wanted() -> bool:
    return os.environ.get(WANTED) != "0"


def ready() -> None:
    """Ray calls it in a new process. What cannot be imported fails where it is used, with a better word."""
    for name in os.environ.get(MODULES, "").split(","):
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def ask(count: int = 1, *, runtime: str = "") -> None:
    """Has Ray start processes on this machine that wait for work.

    Args:
        runtime: their runtime environment as Ray writes it; that of the calling worker if empty.
    """
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.utils import get_runtime_env_info
    from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc
    from ray.runtime_env import RuntimeEnv

    context = ray.get_runtime_context()
    runtime = runtime or context.get_runtime_env_string()
    here = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    information: Any = get_runtime_env_info(RuntimeEnv.deserialize(runtime), is_job_runtime_env=False)
    information.serialized_runtime_env = runtime
    messages: Any = node_manager_pb2
    request = messages.PrestartWorkersRequest(
        language=0,  # Python
        job_id=bytes.fromhex(context.get_job_id()),
        runtime_env_info=information,
        keep_alive_duration_secs=KEPT,
        num_workers=count,
    )
    opened: Any = init_grpc_channel(f"{here['NodeManagerAddress']}:{here['NodeManagerPort']}")
    with opened as channel:
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=ANSWER)


@dataclass
class Spare:
    """One worker's: asked for once it has taken some steps, in a thread."""

    left: int = STEPS
    start: Callable[[], None] = ask

    def step(self) -> None:
        self.left -= 1
        if self.left == 0 and wanted():
            threading.Thread(target=self._start, name="spare", daemon=True).start()

    def _start(self) -> None:
        with contextlib.suppress(Exception):
            self.start()
