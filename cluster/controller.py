"""Ray Train's trainer as gangs need it: it forms torch's process group in the workers, and nowhere else is
torch imported for it, which takes seconds in the driver and in the controller, one after the other.

It imports Ray: only the driver of a gang and its processes load it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import ray
from ray.runtime_env import RuntimeEnv
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.callbacks.state_manager import StateManagerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.state.state_actor import get_or_create_state_actor
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster import spare

ASKED: set[tuple[str, str]] = set()
"""Addresses of Ray and the runtime environments of which this process has asked for workers' processes."""


class Trainer(DataParallelTrainer):
    """Ray's, with a policy of our own."""

    def __init__(self, *arguments: Any, policy: Callable[[Any], Any], alone: bool, **options: Any) -> None:
        """`alone`: Ray was started for this process, on this machine."""
        super().__init__(*arguments, **options)
        self._policy, self._alone = policy, alone

    def _create_default_callbacks(self) -> list[Any]:
        """Without those that start a process for nothing: there are no datasets of Ray's, and where Ray ends
        with its driver, nobody has to tidy up behind a controller."""
        idle = (DatasetsCallback, PlacementGroupCleanerCallback) if self._alone else (DatasetsCallback,)
        return [each for each in super()._create_default_callbacks() if not isinstance(each, idle)]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        """As Ray's own. Where Ray was started here, its processes have this one's environment: with no other
        one, the controller takes a process that is there already."""
        variables = {} if self._alone else get_env_vars_to_propagate()
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}  # pyright: ignore[reportAttributeAccessIssue]
        actor: Any = ray.remote(TrainController)
        placed = {"num_cpus": 0, "label_selector": here}
        if variables:
            placed["runtime_env"] = {"env_vars": variables}
        options["scaling_policy"] = self._policy(self.scaling_config)
        if any(isinstance(each, StateManagerCallback) for each in options["callbacks"]):
            get_or_create_state_actor()  # the controller waits for it: it starts while that does
        controller = actor.options(**placed).remote(**options)
        if self._alone:
            self._prepare()
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())

    def _prepare(self) -> None:
        """Starts the workers' processes while the controller does, which will ask for just these."""
        variables: dict[str, str] = dict(self.run_config.worker_runtime_env or {}).get("env_vars", {})
        if spare.HOOK not in variables or not spare.wanted():
            return
        runtime = RuntimeEnv(env_vars=get_env_vars_to_propagate() | variables).serialize()
        asked = (ray.get_runtime_context().gcs_address, runtime)
        if asked in ASKED:  # an earlier gang has left its spare ones
            return
        ASKED.add(asked)
        with contextlib.suppress(Exception):
            spare.ask(self.scaling_config.max_workers, runtime=runtime)


class Torch(BackendConfig):
    """Torch's process group of the workers."""

    def __init__(self, *, backend: str, timeout_s: int) -> None:
        """`timeout_s`: that one operation may take."""
        self.backend, self.timeout_s = backend, timeout_s

    @property
    def backend_cls(self) -> Any:
        return _Group

    @property
    def train_func_context(self) -> Any:
        return _Device

    def to_dict(self) -> dict[str, Any]:
        return {"backend": self.backend, "timeout_s": self.timeout_s}


class _Group(Backend):
    """Formed as Ray's own, in one call to each worker. Processes that are about to be killed are not asked to
    leave it first: one that waits for a lost one does not answer for half a minute."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        from ray.train._internal.utils import get_address_and_port

        at = worker_group.execute_single(0, get_address_and_port)
        size = len(worker_group)
        told = (backend_config.backend, backend_config.timeout_s, at)
        ray.get([worker_group.execute_single_async(n, _join, n, size, *told) for n in range(size)])


def _join(rank: int, size: int, backend: str, timeout_s: int, at: tuple[str, int]) -> None:
    """Runs in a worker."""
    from ray.train.torch import config

    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = at[0], str(at[1])
    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(backend, rank, size, "env://", timeout_s)


class _Device:
    """Around a worker's training: its GPU is torch's own choice there."""

    def __enter__(self) -> None:
        from ray.train.torch.config import TorchConfigContextManager

        TorchConfigContextManager().__enter__()

    def __exit__(self, *_: object) -> None:
        pass
