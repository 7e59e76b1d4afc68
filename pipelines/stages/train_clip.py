"""Images and captions to a model that puts both into one space."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from diffusion.config import OptimizationConfig
from pipelines.clip.config import ClipConfig, Towers
from pipelines.stage import KEEP, Input, Kind, Session, Stage, execution, jsonable
from pipelines.stages.train_autoencoder import check_training

if TYPE_CHECKING:
    import torch

    from pipelines.training.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class TrainClip(Stage):
    """Trains a CLIP on the train split (Radford et al., 2021); the snapshot is a folder that open_clip opens.

    For lines that have no CLIP weights: `embed`, `similarity` and `open_clip` tags can name it.
    """

    version: ClassVar[int] = 1
    output: ClassVar[Kind] = "snapshot"
    accelerated: ClassVar[bool] = True

    images: Annotated[str, Input("dataset", ("image",))]
    captions: Annotated[str, Input("dataset", ("captions.json",))]
    """All captions of an image are trained on, by weight; the first is what held-out ones are found by."""
    keep: Annotated[str | None, Input("dataset", (KEEP,))] = None
    """A filter or deduplicate stage: only images that it keeps are trained on, and validated with."""
    model: ClipConfig = Towers()
    """`kind: towers`, frozen ones with trained projections; `kind: open_clip`, any of its architectures."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: CLIP's, over the batch of all workers; sigmoid: SigLIP's (Zhai et al., 2023)."""
    temperature: float = 0.07
    """At the beginning; it is learned. Of a checkpoint, its own is taken."""
    images_seen: int = 80_000
    """Pairs that training sees, each as often as it takes. A larger number continues the shorter run."""
    batch: int = 512
    """Pairs a step, over all workers: each is told from all the others."""
    optimization: OptimizationConfig = OptimizationConfig(
        lr=1e-3, weight_decay=0.1, decayed="matrices", warmup=10_000, cooldown=48_000
    )
    flips: bool = True
    """Mirrors half of the images left to right."""
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic; its weights stay float32."""

    micro_batch: int = execution(64)
    """Held-out pairs a forward call."""
    validation_samples: int = execution(200)
    """Held-out pairs that the curve is measured on, at most; recall falls as they become more."""
    validate_every: int | None = execution(None)
    """Pairs between two points of the held-out curve; a tenth of the run if None."""
    samples_every: int | None = execution(None)
    """Pairs between two pictures; a quarter of the run if None."""
    checkpoint_every: int | None = execution(None)
    """Pairs between two checkpoints, beside those by time."""
    checkpoint_seconds: float | None = execution(60.0)
    """Seconds between two checkpoints; what a killed run loses at most."""

    def __post_init__(self) -> None:
        check_training(self.images_seen, self.batch, self.optimization, self.resources)
        if self.batch < 2:
            raise ValueError("A batch of 1 has no other pair to tell it from: set `batch` to 2 or more.")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature:g}; it must be above 0.")

    def external(self) -> dict[str, str]:
        return self.model.external()

    def summary(self) -> str:
        return f"{self.images_seen:,} pairs seen, {self.model.summary}"

    def run(self, session: Session) -> dict[str, Any]:
        from pipelines.training.job import trained

        task = functools.partial(self.task, dict(session.inputs))
        result = trained(self, session, task, file="open_clip_model.safetensors", pictures=4)
        return {"task": "clip", "model": jsonable(self.model), **self._folder(session, result)}

    def task(self, inputs: dict[str, Any], device: torch.device, workers: int) -> Task:
        from pipelines.training.tasks.clip import ClipTask

        return ClipTask(self, inputs["images"], inputs["captions"], keep=inputs.get("keep"), device=device)

    def _folder(self, session: Session, result: dict[str, Any]) -> dict[str, Any]:
        """Puts the files beside the weights that make it a folder of open_clip's."""
        import base64
        import hashlib

        for name, text in result.pop("beside").items():
            data = base64.b64decode(text)
            session.output.replace(name, data)
            result["files"][name] = hashlib.sha256(data).hexdigest()
        return result
