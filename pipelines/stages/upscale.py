"""Images to larger ones, by an upscaler."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from diffusion.config import HeunConfig, SamplerConfig
from pipelines.shards import canonical
from pipelines.stage import Input, Inputs, Row, Sample, ShardPlan, ShardStage, jsonable

_PIXEL_BYTES = 3


@dataclass(frozen=True, kw_only=True)
class Upscale(ShardStage):
    """Draws each image larger. Members: png or webp, json (what the image said, and how it was enlarged), and
    txt and cls where the image has them.

    An image depends on the snapshot, `seed`, its key, its bytes and the sampler's settings alone.
    """

    version: ClassVar[int] = 2
    primary: ClassVar[str] = "images"
    accelerated: ClassVar[bool] = True

    images: Annotated[str, Input("dataset", ("image", "json", "txt", "cls"))]
    model: Annotated[str, Input("snapshot")]
    """An upscaler: a train stage that had `low_resolution`."""
    level: float = 0.0
    """Noise mixed into the small images: 0 for clean ones, .1 to .3 for drawn or compressed ones, and at most
    what training saw."""
    seed: int = 0
    sampler: SamplerConfig = HeunConfig(steps=8)
    micro_batch: int = 4
    """Images a forward call, which the last is padded to: float results depend on it."""
    format: Literal["png", "webp"] = "png"
    """Of the files; both without loss."""

    def __post_init__(self) -> None:
        if self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}; it must be at least 1.")
        if not 0 <= self.level < 1:
            raise ValueError(f"level is {self.level}; it must be at least 0 and below 1.")

    def summary(self) -> str:
        return f"images enlarged, {self.sampler.steps} steps"

    def bytes_needed(self, inputs: Inputs) -> int:
        factor = inputs["model"].record.get("upscaling", {}).get("factor", 1)
        return super().bytes_needed(inputs) * factor**2 * _PIXEL_BYTES

    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        from pipelines import pictures, sampling
        from pipelines.arrays import pixels
        from pipelines.upscaler import Upscaler

        upscaler = Upscaler(inputs["model"])
        images = inputs["images"]
        provenance = {
            "factor": upscaler.factor,
            "level": self.level,
            "seed": self.seed,
            "sampler": jsonable(self.sampler),
            "micro_batch": self.micro_batch,
            "snapshot": inputs["model"].digest(),
        }

        def upscale(shard: ShardPlan, rows: Sequence[Row]) -> Iterator[Sample]:
            wanted = [row.key for row in rows if not row.reject]
            made: dict[str, Sample] = {}
            # a few at a time: large images of a whole shard need not fit into memory
            for start in range(0, len(wanted), self.micro_batch):
                records = list(
                    images.read(shard.name, wanted[start : start + self.micro_batch], images_columns(images))
                )
                drawings = [
                    sampling.Drawing(
                        index=place(record.key), small=pixels(record.members["image"]), level=self.level
                    )
                    for record in records
                ]
                drawn = upscaler.draw(
                    drawings, seed=self.seed, sampler=self.sampler, micro_batch=self.micro_batch
                )
                for record, image in zip(records, drawn, strict=True):
                    members = {self.format: pictures.encode(image, self.format)}
                    members["json"] = canonical({**_said(record.members), "upscaled": provenance})
                    members |= {c: record.members[c] for c in ("txt", "cls") if c in record.members}
                    made[record.key] = Sample(key=record.key, members=members)
            for row in rows:
                yield made.pop(row.key, Sample(key=row.key, reject=row.reject or "no_image"))

        return upscale

    def finish(self, inputs: Inputs, dataset: Any) -> dict[str, Any]:
        return {"classes": inputs["images"].classes}


def place(key: str) -> int:
    """The number that an image's noise is drawn by: it depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")


def images_columns(images: Any) -> tuple[str, ...]:
    """Those that the dataset has of what is carried over."""
    return ("image", *(c for c in ("json", "txt", "cls") if c in images.columns))


def _said(members: dict[str, bytes]) -> dict[str, Any]:
    import json

    return json.loads(members["json"]) if "json" in members else {}
