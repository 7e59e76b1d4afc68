"""Images and their captions to a model that captions images."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from diffusion.config import OptimizationConfig
from pipelines.coca.config import CoCaConfig, SmallCoCa, TrainedCoCa
from pipelines.stage import KEEP, Input, Kind, Session, Stage, execution
from pipelines.stages.train_autoencoder import check_training

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from pipelines.training.tasks.task import Task

WEIGHTS = "open_clip_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainCaptioner(Stage):
    """Trains a CoCa of open_clip (Yu et al., 2022) on the train split; averaged weights are its snapshot.

    The snapshot's folder is in open_clip's format: its `create_model_and_transforms("local-dir:FOLDER")`
    loads it, and `caption` speaks by it, as `model` of a captioner of `kind: coca`.
    """

    version: ClassVar[int] = 1
    output: ClassVar[Kind] = "snapshot"
    accelerated: ClassVar[bool] = True

    images: Annotated[str, Input("dataset", ("image",))]
    captions: Annotated[str, Input("dataset", ("captions.json",))]
    """Of which training draws one by weight each time that it sees an image."""
    keep: Annotated[str | None, Input("dataset", (KEEP,))] = None
    """A filter or deduplicate stage: only images that it keeps are trained on, and validated with."""
    initial: Annotated[str | None, Input("snapshot")] = None
    """A captioner that training begins with, for a `network` of `kind: folder` without a path."""
    network: CoCaConfig = SmallCoCa()
    """`small`, a config of open_clip's (`kind: open_clip`), or a folder of open_clip's with weights."""
    images_seen: int = 40_000
    """Images that training sees, each as often as it takes. A larger number continues the shorter run."""
    batch: int = 64
    """Images a step, over all workers; the contrastive loss is among them."""
    optimization: OptimizationConfig = OptimizationConfig(
        lr=1e-3, weight_decay=0.1, decayed="matrices", warmup=2_000, cooldown=20_000
    )
    caption_weight: float = 2.0
    """Of the cross-entropy of a caption's tokens, their mean, in nats."""
    contrastive_weight: float = 1.0
    """Of picking each image's caption, and each caption's image, out of the batch."""
    flips: bool = False
    """Mirrors half of the images left to right; captions that say left or right are then wrong."""
    shift: float = 0.1
    """Share of an image's side that it is moved by at most, both ways; what comes in repeats the edge."""
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic; its weights stay float32."""

    max_tokens: int = execution(30)
    """Word pieces of what it says of held-out images, for the curve."""
    validation_samples: int = execution(256)
    """Held-out images that the curve is measured on, at most."""
    validate_every: int | None = execution(None)
    """Images between two points of the held-out curve; a tenth of the run if None."""
    samples_every: int | None = execution(None)
    """Images between two pictures of what is said of held-out images; an eighth of the run if None."""
    checkpoint_every: int | None = execution(None)
    """Images between two checkpoints, beside those by time."""
    checkpoint_seconds: float | None = execution(60.0)
    """Seconds between two checkpoints; what a killed run loses at most."""

    def __post_init__(self) -> None:
        check_training(self.images_seen, self.batch, self.optimization, self.resources)
        if min(self.caption_weight, self.contrastive_weight) < 0 or self.caption_weight == 0:
            raise ValueError("caption_weight must be above 0, and contrastive_weight 0 or more.")
        if not 0 <= self.shift < 0.5:
            raise ValueError(f"shift is {self.shift:g}; it must be at least 0 and below 0.5.")
        lacking = isinstance(self.network, TrainedCoCa) and not self.network.path
        if lacking != (self.initial is not None):
            raise ValueError(
                "train_captioner begins with `initial` where `network` is {kind: folder} without a path: "
                "give both, or neither."
            )

    def external(self) -> dict[str, str]:
        return self.network.external()

    def summary(self) -> str:
        return f"CoCa {self.network.summary}, {self.images_seen:,} images seen"

    def run(self, session: Session) -> dict[str, Any]:
        from pipelines.coca.making import files_of
        from pipelines.training.job import trained

        stage = self._with(session.inputs.get("initial"))
        files = files_of(stage.network, self._texts(session.inputs))
        task = functools.partial(stage.task, dict(session.inputs), files)
        result = trained(self, session, task, file=WEIGHTS)
        for name, data in files.items():
            session.output.replace(name, data)
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        return {"task": "captioner", **result, "files": {**result["files"], **digests}}

    def task(
        self, inputs: dict[str, Any], files: dict[str, bytes], device: torch.device, workers: int
    ) -> Task:
        from pipelines.training.tasks.captioner import CaptionerTask

        names = ("images", "captions", KEEP)
        datasets = {name: inputs[name] for name in names if inputs.get(name) is not None}
        return CaptionerTask(self, datasets, files, device=device, workers=workers)

    def _with(self, initial: Any) -> TrainCaptioner:
        """With the folder of `initial` in place of none."""
        if initial is None:
            return self
        if initial.record.get("task") != "captioner":
            raise ValueError(
                f"{initial.storage.url} is a snapshot of kind {initial.record.get('task')}: "
                "give `initial` one of train_captioner."
            )
        return dataclasses.replace(self, initial=None, network=TrainedCoCa(path=str(initial.local())))

    def _texts(self, inputs: Any) -> Iterator[str]:
        """Captions that are trained on."""
        import json

        captions = inputs["captions"]
        for shard in captions.shards:
            if shard.split == "train":
                for record in captions.read(shard.name, columns=("captions.json",)):
                    for one in json.loads(record.members["captions.json"]):
                        yield str(one["text"])
