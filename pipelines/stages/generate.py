"""A model to images, each with the record of how it came to be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from diffusion.config import GuidanceConfig, HeunConfig, SamplerConfig
from pipelines.prompts import asks, class_id, read_file
from pipelines.shards import canonical
from pipelines.stage import Input, Inputs, Row, Sample, ShardPlan, ShardStage, added, jsonable

_PIXEL_BYTES = 3


@dataclass(frozen=True, kw_only=True)
class UpscalingConfig:
    """How upscalers behind a model draw."""

    level: float = 0.1
    """Noise mixed into what is enlarged, 0 to 1: the more, the less an upscaler trusts what was drawn."""
    sampler: SamplerConfig = HeunConfig(steps=8)

    def __post_init__(self) -> None:
        if not 0 <= self.level < 1:
            raise ValueError(f"level is {self.level}; it must be at least 0 and below 1.")


@dataclass(frozen=True, kw_only=True)
class Generate(ShardStage):
    """Draws `count` images for prompts and classes, a file of them, or the captions and classes of a dataset.

    An image depends on the snapshot, `seed`, its index, its prompt and class, and the sampler's settings:
    not on how many are drawn, how they are cut into shards, or where. Members: png or webp, json, and txt
    and cls where known. With `upscalers` each image is drawn again, larger, by one after the other.
    """

    version: ClassVar[int] = 2
    accelerated: ClassVar[bool] = True

    model: Annotated[str, Input("snapshot", part="pipeline")]
    """A train stage's, or the folder of a whole pipeline of diffusers, or one of the hub at a commit."""
    upscalers: Annotated[tuple[str, ...], Input("snapshot")] = ()
    """Each enlarges what the one before drew: train stages that had `low_resolution`."""
    images: Annotated[str | None, Input("dataset", ("cls",))] = None
    """Whose classes are drawn as often as its train split has them."""
    captions: Annotated[str | None, Input("dataset", ("captions.json",))] = None
    """Whose captions of the train split are used, by weight, each image's once before any is used again."""
    prompts: tuple[str, ...] = ()
    """Used in turn; put into the caption template that the model was trained with."""
    classes: tuple[str, ...] = ()
    """Class names, used in turn beside the prompts."""
    file: Path | None = field(default=None, metadata={"execution": True})
    """Prompts, one a line, or JSON lines with `prompt` and `label`; what it says counts, not its place."""
    count: int = 256
    """Images. A larger number adds to a smaller."""
    seed: int = 0
    sampler: SamplerConfig = HeunConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    size: tuple[int, int] | None = added(None)
    """Width and height, px: one of the sizes that the model was trained on; the most frequent one if None."""
    micro_batch: int = 16
    """Images a forward call, which the last is padded to: float results depend on it."""
    upscaling: UpscalingConfig = added(UpscalingConfig())
    """How the upscalers draw."""
    format: Literal["png", "webp"] = "png"
    """Of the files; both without loss."""
    samples_per_shard: int = 256

    def __post_init__(self) -> None:
        for name in ("count", "micro_batch", "samples_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        ways = {
            "prompts or classes": bool(self.prompts or self.classes),
            "file": self.file is not None,
            "images or captions": self.images is not None or self.captions is not None,
        }
        given = [name for name, present in ways.items() if present]
        if len(given) > 1:
            raise ValueError(
                f"generate takes its prompts from one place, and {' and '.join(given)} are given: keep one."
            )

    def external(self) -> dict[str, str]:
        if self.file is None:
            return {}
        return {"file": hashlib.sha256(canonical(read_file(self.file))).hexdigest()}

    def work(self) -> dict[str, Any]:
        # What is asked of an image is in its row; how many there are and how they lie changes none.
        arranging = {"prompts", "classes", "count", "samples_per_shard"}
        return {"meaning": {k: v for k, v in self.meaning().items() if k not in arranging}}

    def summary(self) -> str:
        if self.prompts or self.classes:
            asked = " and ".join(
                f"{len(what)} {word}"
                for what, word in ((self.prompts, "prompts"), (self.classes, "classes"))
                if what
            )
        elif self.file is not None:
            asked = self.file.name
        else:
            inputs = (("captions", self.captions), ("classes", self.images))
            asked = " and ".join(word for word, given in inputs if given) or "nothing in particular"
        return f"{self.count:,} images of {asked}"

    def bytes_needed(self, inputs: Inputs) -> int:
        side = inputs["model"].record["resolution"]
        pixels = self.size[0] * self.size[1] if self.size else side**2
        for upscaler in inputs["upscalers"]:
            pixels *= upscaler.record.get("upscaling", {}).get("factor", 1) ** 2
        return self.count * (pixels * _PIXEL_BYTES + 2048)

    def plan(self, inputs: Inputs) -> list[ShardPlan]:
        starts = range(0, self.count, self.samples_per_shard)
        return [
            ShardPlan(
                name=f"{number:05d}",
                split="train",
                count=min(self.samples_per_shard, self.count - start),
                data={"start": start},
            )
            for number, start in enumerate(starts)
        ]

    def rows(self, inputs: Inputs, shard: ShardPlan) -> list[Row]:
        indices = range(shard.data["start"], shard.data["start"] + shard.count)
        model: Any = inputs["model"].digest()
        if inputs["upscalers"]:
            model = [model, *(upscaler.digest() for upscaler in inputs["upscalers"])]
        rows = []
        for index, (prompt, label) in zip(indices, self._asked(inputs, indices), strict=True):
            data = {"index": index, "prompt": prompt, "label": label}
            digest = hashlib.sha256(canonical([model, self.seed, data])).hexdigest()
            rows.append(Row(key=digest[:20], reads=(digest,), data=data))
        return sorted(rows, key=lambda row: row.key)

    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        from pipelines import pictures, sampling
        from pipelines.models import Generator
        from pipelines.upscaler import Upscaler

        snapshot = inputs["model"]
        generator = Generator(snapshot)
        model = generator.sized(self.size)
        upscalers = [Upscaler(one) for one in inputs["upscalers"]]
        classes = self._classes(inputs)
        provenance = {
            "generated": True,
            "seed": self.seed,
            "sampler": jsonable(self.sampler),
            "steps": self.sampler.steps,
            "guidance": jsonable(self.guidance),
            "micro_batch": self.micro_batch,
            "snapshot": snapshot.digest(),
            "images_seen": snapshot.record["images_seen"],
        }
        if upscalers:
            provenance |= {
                "upscalers": [one.digest() for one in inputs["upscalers"]],
                "upscaling": jsonable(self.upscaling),
            }

        def generate(shard: ShardPlan, rows: Sequence[Row]) -> Iterator[Sample]:
            embeddings = generator.embed([r.data["prompt"] for r in rows if r.data["prompt"] is not None])
            drawings = [
                sampling.Drawing(
                    index=row.data["index"],
                    text=embeddings.get(row.data["prompt"]),
                    label=_known(row.data["label"], generator.classes),
                )
                for row in rows
            ]
            images = sampling.draw(
                model,
                drawings,
                seed=self.seed,
                sampler=self.sampler,
                guidance=self.guidance,
                micro_batch=self.micro_batch,
            )
            for upscaler in upscalers:
                larger = [
                    sampling.Drawing(index=row.data["index"], small=image, level=self.upscaling.level)
                    for row, image in zip(rows, images, strict=True)
                ]
                images = upscaler.draw(
                    larger, seed=self.seed, sampler=self.upscaling.sampler, micro_batch=self.micro_batch
                )
            for row, image in zip(rows, images, strict=True):
                prompt, label = row.data["prompt"], row.data["label"]
                said = {
                    "index": row.data["index"],
                    "prompt": prompt,
                    "text": prompt,
                    "label": label,
                    **provenance,
                }
                members = {self.format: pictures.encode(image, self.format), "json": canonical(said)}
                if prompt is not None:
                    members["txt"] = prompt.encode()
                if label is not None:
                    members["cls"] = str(classes.index(label)).encode()
                yield Sample(key=row.key, members=members, meta={"index": row.data["index"]})

        return generate

    def finish(self, inputs: Inputs, dataset: Any) -> dict[str, Any]:
        return {"classes": self._classes(inputs)}

    def _classes(self, inputs: Inputs) -> list[str]:
        """Names that `cls` indexes: the dataset's own where one is given, else the model's."""
        images = inputs.get("images")
        return (images.classes if images else []) or inputs["model"].classes

    def _asked(self, inputs: Inputs, indices: Sequence[int]) -> list[tuple[str | None, str | None]]:
        """Prompt and class name of each index."""
        if inputs.get("images") or inputs.get("captions"):
            return self._from_dataset(inputs, indices)
        record = inputs["model"].record
        prompts, classes = (self.prompts, self.classes) if self.file is None else read_file(self.file)
        known = inputs["model"].classes
        wanted = asks(
            prompts, classes, known=known, text=record.get("text") is not None, template=record.get("caption")
        )
        if not wanted:
            return [(None, None) for _ in indices]
        chosen = [wanted[index % len(wanted)] for index in indices]
        return [(ask.prompt, None if ask.label is None else known[ask.label]) for ask in chosen]

    def _from_dataset(self, inputs: Inputs, indices: Sequence[int]) -> list[tuple[str | None, str | None]]:
        from diffusion import randomness
        from pipelines.stream import permutation
        from pipelines.training.tasks.rows import Rows
        from pipelines.training.tasks.texts import pick

        images, captions = inputs.get("images"), inputs.get("captions")
        text, known = inputs["model"].record.get("text") is not None, inputs["model"].classes
        if captions and not text:
            raise ValueError("The model reads no text: leave `captions` out of generate.")
        names = images.classes if images else []
        required = {"images": "cls"} if names else {}
        required |= {"captions": "captions.json"} if captions else {}
        datasets = {name: inputs[name] for name in ("images", "captions") if inputs.get(name)}
        rows = Rows(datasets, split="train", required=required)
        asked: list[tuple[str | None, str | None]] = []
        for index in indices:
            number = int(permutation(self.seed, index // len(rows), len(rows))[index % len(rows)])
            prompt = label = None
            if captions:
                choices = json.loads(rows.read(number, "captions", "captions.json"))
                u = randomness.generator(self.seed, index, "caption").random()
                prompt = pick([(c["text"], float(c["weight"])) for c in choices], u)
            if names:
                label = names[int(rows.read(number, "images", "cls"))]
                # A class that the model does not know is a mistake of the recipe, and is said here.
                class_id(label, known) if known else None
            asked.append((prompt, label))
        return asked


def _known(label: str | None, classes: Sequence[str]) -> int | None:
    return class_id(label, classes) if label is not None and classes else None
