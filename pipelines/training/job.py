"""From a stage that trains to the workers that do it: the fields that all such stages have."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from diffusion.config import OptimizationConfig
    from pipelines.stage import Session


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
    from pipelines.training.trainer import Job, Training, train_worker

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
