"""Images to an autoencoder."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from cluster.resources import Resources
from diffusion.config import (
    AutoencoderConfig,
    IdentityAutoencoderConfig,
    KLAutoencoderConfig,
    OptimizationConfig,
)
from diffusion.config.adversarial import DiscriminatorConfig
from pipelines import buckets
from pipelines.stage import KEEP, Input, Kind, Session, Stage, added, execution, jsonable
from pipelines.training.perceptual import HedPerceptual, PerceptualConfig

if TYPE_CHECKING:
    import torch

    from pipelines.models import SnapshotFolder
    from pipelines.training.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class TrainAutoencoder(Stage):
    """Trains an autoencoder on the train split, anew or from another's weights; its averaged weights are the
    snapshot."""

    version: ClassVar[int] = 1
    output: ClassVar[Kind] = "snapshot"
    accelerated: ClassVar[bool] = True

    images: Annotated[str, Input("dataset", ("image",))]
    keep: Annotated[str | None, Input("dataset", (KEEP,))] = added(None)
    """A filter or deduplicate stage: only images that it keeps are trained on, and validated with."""
    initial: Annotated[str | None, Input("snapshot")] = added(None)
    """An autoencoder that it begins with; `autoencoder` then says its kind alone."""
    autoencoder: AutoencoderConfig = KLAutoencoderConfig()
    """`kind: kl`, the shape of a pretrained one, or `kind: identity` for pixels as latents, untrained."""
    train: Literal["all", "decoder"] = added("all")
    """`decoder` leaves the encoder of `initial` as it is, to the bit: its latents stay good."""
    images_seen: int = 40_000
    """Images that training sees, each as often as it takes. A larger number continues the shorter run."""
    batch: int = 32
    """Images a step, over all workers."""
    optimization: OptimizationConfig = OptimizationConfig(lr=1e-3, warmup=2_000, cooldown=10_000)
    pixels: Literal["l1", "l2"] = added("l1")
    """Error of pixels in [-1, 1] that all other losses stand beside: mean absolute, or mean squared."""
    kl_weight: float = 1e-4
    """Of the divergence from a standard normal in nats a latent element; deterministic autoencoders have
    none."""
    perceptual_weight: float = 0.0
    """Of the distance of a network's features."""
    perceptual: PerceptualConfig = added(HedPerceptual())
    """The network: `hed` (edges), `lpips_hed`, `efficientnet_lite0`, or `transformers` from a folder. None of
    them can judge this autoencoder afterwards."""
    discriminator: DiscriminatorConfig | None = added(None)
    """What tells patches of reconstructions from patches of images, for details as sharp as theirs."""
    flips: bool = True
    """Mirrors half of the images left to right."""
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic; its weights stay float32."""
    accumulate: int = added(1)
    """Pieces of a worker's share of the batch, of which one at a time is in memory."""
    compile: bool = added(False)
    """Compiles the network's blocks in the first minutes: for a GPU, or a CPU that trains for hours."""

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
        check_training(self.images_seen, self.batch, self.optimization, self.resources)
        if self.kl_weight < 0 or self.perceptual_weight < 0:
            raise ValueError("kl_weight and perceptual_weight must be 0 or more.")
        if not 1 <= self.accumulate <= self.batch:
            raise ValueError(f"accumulate is {self.accumulate}; it must be 1 to the batch of {self.batch}.")
        if self.train == "decoder" and self.initial is None:
            raise ValueError(
                "`train: decoder` keeps an encoder: name the autoencoder that has it as `initial`."
            )
        if isinstance(self.autoencoder, IdentityAutoencoderConfig) and self.initial is not None:
            raise ValueError("Pixels as latents take no training, and so no `initial`: leave it out.")

    def external(self) -> dict[str, str]:
        return self.perceptual.networks() if self.perceptual_weight else {}

    def summary(self) -> str:
        if isinstance(self.autoencoder, IdentityAutoencoderConfig):
            return "pixels as latents"
        return f"{self.images_seen:,} images seen, {self.autoencoder.factor}x smaller"

    def run(self, session: Session) -> dict[str, Any]:
        from pipelines.training.job import trained

        images, initial = session.inputs["images"], session.inputs.get("initial")
        config = starting(self, initial) if initial is not None else self.autoencoder
        networks = {*self.external(), *(networks_in_loss(initial) if initial is not None else ())}
        if isinstance(self.autoencoder, IdentityAutoencoderConfig):
            result = self._untrained(session)
        else:
            result = trained(
                self,
                session,
                functools.partial(self.task, dict(session.inputs)),
                file="autoencoder.safetensors",
                accumulate=self.accumulate,
                compile=self.compile,
            )
        return {
            "task": "autoencoder",
            "autoencoder": jsonable(config),
            "resolution": resolution(images),
            "loss": {"pixels": self.pixels, "networks": sorted(networks)},
            **result,
        }

    def task(self, inputs: dict[str, Any], device: torch.device, workers: int) -> Task:
        from pipelines.training.tasks.autoencoder import AutoencoderTask

        return AutoencoderTask(
            self,
            inputs["images"],
            keep=inputs.get("keep"),
            initial=inputs.get("initial"),
            device=device,
            workers=workers,
        )

    def _untrained(self, session: Session) -> dict[str, Any]:
        import hashlib

        from safetensors.torch import save

        data = save({})
        session.output.replace("autoencoder.safetensors", data)
        files = {"autoencoder.safetensors": hashlib.sha256(data).hexdigest()}
        return {"images_seen": 0, "curve": [], "skipped": 0, "parameters": 0, "files": files}


def starting(stage: TrainAutoencoder, initial: SnapshotFolder) -> AutoencoderConfig:
    """What `initial` is. `ValueError` where that is something else than the stage says."""
    from pipelines.models import autoencoder_config

    record = initial.record.get("autoencoder")
    if record is None:
        raise ValueError(f"{stage.initial} holds no autoencoder: name a train_autoencoder stage.")
    config, wanted = autoencoder_config(record), stage.autoencoder
    if config.kind != wanted.kind:
        raise ValueError(
            f"{stage.initial} is an autoencoder of kind {config.kind} and `autoencoder` says {wanted.kind}: "
            f"write `autoencoder: {{kind: {config.kind}}}`."
        )
    if wanted not in (config, type(wanted)()):
        raise ValueError(
            f"`autoencoder` describes another {config.kind} than {stage.initial} is: "
            f"write `autoencoder: {{kind: {config.kind}}}` alone, and its shape is taken."
        )
    return config


def networks_in_loss(snapshot: SnapshotFolder) -> list[str]:
    """Names of the networks that an autoencoder was trained to please; as far as its record says."""
    if "loss" in snapshot.record:
        return list(snapshot.record["loss"]["networks"])
    # Of a training from before records said it.
    return ["hed"] if snapshot.manifest.get("meaning", {}).get("perceptual_weight") else []


def check_training(
    images_seen: int, batch: int, optimization: OptimizationConfig, resources: Resources | None = None
) -> None:
    """`ValueError` where a training cannot be what its fields say; `resources`: of workers that share a
    batch."""
    if images_seen < 1 or batch < 1:
        raise ValueError(f"images_seen is {images_seen} and batch {batch}; both must be at least 1.")
    if resources is not None and (resources.workers or 1) > batch:
        raise ValueError(
            f"A batch of {batch} leaves some of {resources.workers} workers without an image: "
            "raise `batch`, or lower `resources.workers`."
        )
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
