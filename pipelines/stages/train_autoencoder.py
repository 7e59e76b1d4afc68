"""Images to an autoencoder."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from diffusion.config import (
    AutoencoderConfig,
    IdentityAutoencoderConfig,
    KLAutoencoderConfig,
    OptimizationConfig,
)
from pipelines import buckets
from pipelines.stage import KEEP, Input, Kind, Session, Stage, added, execution, jsonable

if TYPE_CHECKING:
    import torch

    from pipelines.training.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class TrainAutoencoder(Stage):
    """Trains an autoencoder on the train split; its averaged weights are the snapshot."""

    version: ClassVar[int] = 1
    output: ClassVar[Kind] = "snapshot"
    accelerated: ClassVar[bool] = True

    images: Annotated[str, Input("dataset", ("image",))]
    keep: Annotated[str | None, Input("dataset", (KEEP,))] = added(None)
    """A filter or deduplicate stage: only images that it keeps are trained on, and validated with."""
    autoencoder: AutoencoderConfig = KLAutoencoderConfig()
    """`kind: kl`, or `kind: identity` for pixels as latents, which takes no training."""
    images_seen: int = 40_000
    """Images that training sees, each as often as it takes. A larger number continues the shorter run."""
    batch: int = 32
    """Images a step, over all workers."""
    optimization: OptimizationConfig = OptimizationConfig(lr=1e-3, warmup=2_000, cooldown=10_000)
    kl_weight: float = 1e-4
    """Of the divergence from a standard normal in nats a latent element, beside the mean absolute error."""
    perceptual_weight: float = 0.0
    """Of the distance of edge features (first blocks of HED), beside the mean absolute error."""
    flips: bool = True
    """Mirrors half of the images left to right."""
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic; its weights stay float32."""

    validation_samples: int = execution(256)
    """Held-out images that the curve is measured on, at most."""
    validate_every: int | None = execution(None)
    """Images between two points of the held-out curve; a tenth of the run if None."""
    samples_every: int | None = execution(None)
    """Images between two pictures of reconstructions; an eighth of the run if None."""
    checkpoint_every: int | None = execution(None)
    """Images between two checkpoints, beside those by time."""
    checkpoint_seconds: float | None = execution(60.0)
    """Seconds between two checkpoints; what a killed run loses at most."""

    def __post_init__(self) -> None:
        check_training(self.images_seen, self.batch, self.optimization)
        if self.kl_weight < 0 or self.perceptual_weight < 0:
            raise ValueError("kl_weight and perceptual_weight must be 0 or more.")

    def external(self) -> dict[str, str]:
        if not self.perceptual_weight:
            return {}
        from pipelines import weights

        return {"hed": weights.digest("hed")}

    def summary(self) -> str:
        if isinstance(self.autoencoder, IdentityAutoencoderConfig):
            return "pixels as latents"
        return f"{self.images_seen:,} images seen, {self.autoencoder.factor}x smaller"

    def run(self, session: Session) -> dict[str, Any]:
        from pipelines.training.trainer import Job, Training, train_worker

        images = session.inputs["images"]
        if isinstance(self.autoencoder, IdentityAutoencoderConfig):
            result = self._untrained(session)
        else:
            training = Training(
                batch=self.batch,
                images_seen=self.images_seen,
                optimization=self.optimization,
                seed=self.seed,
                precision=self.precision,
                accelerated=bool(session.resources.gpus),
                file="autoencoder.safetensors",
                validate_every=self.validate_every or max(1, self.images_seen // 10),
                samples_every=self.samples_every or max(1, self.images_seen // 8),
                checkpoint_every=self.checkpoint_every,
                checkpoint_seconds=self.checkpoint_seconds,
            )
            job = Job(
                training=training,
                task=functools.partial(self.task, dict(session.inputs)),
                output=session.output,
                checkpoints=session.checkpoints,
                lease=session.lease,
            )
            result = session.gang(train_worker, {"job": job})
        return {
            "task": "autoencoder",
            "autoencoder": jsonable(self.autoencoder),
            "resolution": resolution(images),
            **result,
        }

    def task(self, inputs: dict[str, Any], device: torch.device, workers: int) -> Task:
        from pipelines.training.tasks.autoencoder import AutoencoderTask

        return AutoencoderTask(
            self, inputs["images"], keep=inputs.get("keep"), device=device, workers=workers
        )

    def _untrained(self, session: Session) -> dict[str, Any]:
        import hashlib

        from safetensors.torch import save

        data = save({})
        session.output.replace("autoencoder.safetensors", data)
        files = {"autoencoder.safetensors": hashlib.sha256(data).hexdigest()}
        return {"images_seen": 0, "curve": [], "skipped": 0, "parameters": 0, "files": files}


def check_training(images_seen: int, batch: int, optimization: OptimizationConfig) -> None:
    """`ValueError` where a training cannot be what its fields say."""
    if images_seen < 1 or batch < 1:
        raise ValueError(f"images_seen is {images_seen} and batch {batch}; both must be at least 1.")
    if optimization.cooldown > images_seen:
        raise ValueError(
            f"optimization.cooldown ({optimization.cooldown:,} images) is longer than the training "
            f"(images_seen {images_seen:,}): make it shorter."
        )


def resolution(images: Any) -> int:
    """Side of the first image, px; of several sizes, of the square that has their area."""
    from pipelines import pictures

    statistics = images.manifest.get("statistics", {})
    if buckets.known(statistics):
        return buckets.resolution(statistics)
    for shard in images.shards:
        for record in images.read(shard.name, columns=("image",)):
            return pictures.decode(record.members["image"]).width
    raise ValueError(f"{images.storage.url} has no images.")
