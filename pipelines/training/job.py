"""From a stage that trains to the workers that do it: what a training is, and how stages ask for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from diffusion.config import OptimizationConfig
from pipelines.training.config import DDPConfig, GuardConfig, ParallelConfig

if TYPE_CHECKING:
    import torch

    from cluster.storage import Storage
    from pipelines.stage import Session
    from pipelines.training.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long, on what terms, and how often to look."""

    batch: int
    """Images of the global batch."""
    images_seen: int
    """At which it ends."""
    optimization: OptimizationConfig
    seed: int
    precision: Literal["float32", "bfloat16"]
    accelerated: bool
    """Whether each worker has a GPU."""
    file: str
    """Of the snapshot's weights."""
    parallel: ParallelConfig = DDPConfig()
    guard: GuardConfig = GuardConfig()
    recompute: bool = False
    """Makes the blocks' activations again in the backward pass instead of keeping them."""
    accumulate: int = 1
    """Pieces of a worker's share of the batch, of which one at a time is in memory."""
    loaders: int = 1
    """Threads of a worker that make its shares of the batches."""
    compile: bool = False
    """Compiles the module's blocks."""
    ema_width: float | None = None
    """Of the average in the snapshot, made of stored ones; `optimization.ema`, which needs none, if None."""
    validate_every: int | None
    samples_every: int | None
    kid_every: int | None = None
    beside: bool | None = False
    """Whether a worker beside makes pictures and KID; None: where the cluster has one to spare."""
    checkpoint_every: int | None
    checkpoint_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker is sent."""

    training: Training
    task: Callable[[torch.device, int], Task]
    """Builds it from the device and the number of workers on a machine."""
    output: Storage
    checkpoints: Storage
    lease: int


def opened(job: Job, device: torch.device, workers: int) -> Task:
    """The task, with the same first weights on every rank."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.training.seed)
        return job.task(device, workers)


def uncooled(training: Training, images_seen: int) -> bool:
    """Whether longer trainings pass through the same state at `images_seen`."""
    return training.optimization.before_cooldown(
        images_seen, batch=training.batch, target_images=training.images_seen
    )


class Trains(Protocol):
    """A stage that trains, by its fields."""

    @property
    def batch(self) -> int: ...
    @property
    def images_seen(self) -> int: ...
    @property
    def optimization(self) -> OptimizationConfig: ...
    @property
    def seed(self) -> int: ...
    @property
    def precision(self) -> Literal["float32", "bfloat16"]: ...
    @property
    def validate_every(self) -> int | None: ...
    @property
    def samples_every(self) -> int | None: ...
    @property
    def checkpoint_every(self) -> int | None: ...
    @property
    def checkpoint_seconds(self) -> float | None: ...


def trained(
    stage: Trains,
    session: Session,
    task: Callable[..., Any],
    *,
    file: str,
    points: int = 10,
    pictures: int = 8,
    **more: Any,
) -> dict[str, Any]:
    """Trains on the session's workers; what rank 0 says of it (`train_worker`).

    Args:
        task: builds the task from the device and the number of workers on a machine.
        file: of the snapshot's weights.
        points: of the held-out curve, where the stage does not say how often.
        pictures: the same of them.
        more: other fields of `Training`.
    """
    from pipelines.training.trainer import train_worker

    training = Training(
        batch=stage.batch,
        images_seen=stage.images_seen,
        optimization=stage.optimization,
        seed=stage.seed,
        precision=stage.precision,
        accelerated=bool(session.resources.gpus),
        file=file,
        validate_every=stage.validate_every or max(1, stage.images_seen // points),
        samples_every=stage.samples_every or max(1, stage.images_seen // pictures),
        checkpoint_every=stage.checkpoint_every,
        checkpoint_seconds=stage.checkpoint_seconds,
        **more,
    )
    job = Job(
        training=training,
        task=task,
        output=session.output,
        checkpoints=session.checkpoints,
        lease=session.lease,
    )
    return session.gang(train_worker, {"job": job})
