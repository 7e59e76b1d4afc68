"""Images to edited ones, by a model that draws."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from diffusion.config import GuidanceConfig, HeunConfig, SamplerConfig
from pipelines.editing import Denoise, EditConfig, Inpaint
from pipelines.shards import canonical
from pipelines.stage import Input, Inputs, Row, Sample, ShardPlan, ShardStage, jsonable

if TYPE_CHECKING:
    from pipelines.dataset import Record
    from pipelines.editing import Editor, Picture

_PIXEL_BYTES = 3


@dataclass(frozen=True, kw_only=True)
class Edit(ShardStage):
    """Edits each image: takes noise of a known level out of it, fills in a part of it, or draws it again.

    Members: png or webp, the same as `given`, which is what the model was shown, json (what the image said,
    and how it was edited), and txt and cls where the image has them. An image depends on the snapshot,
    `seed`, its key, its bytes and the settings alone.
    """

    version: ClassVar[int] = 1
    primary: ClassVar[str] = "images"
    accelerated: ClassVar[bool] = True

    images: Annotated[str, Input("dataset", ("image", "json", "txt", "cls"))]
    model: Annotated[str, Input("snapshot", part="pipeline")]
    """A train stage's, that draws by itself, or a whole pipeline of diffusers."""
    masks: Annotated[str | None, Input("dataset", ("image",))] = None
    """For `inpaint`: masks under the names of their images; what is bright is filled in."""
    edit: EditConfig = Inpaint()
    """What is done: `denoise`, `inpaint` or `image_to_image`."""
    splits: tuple[str, ...] = ()
    """Of the images: those of these splits alone; all if empty."""
    prompt: str | None = None
    """What the images show; each image's own caption or text if None."""
    seed: int = 0
    sampler: SamplerConfig = HeunConfig()
    guidance: GuidanceConfig = GuidanceConfig(scale=1.5)
    micro_batch: int = 8
    """Images a forward call, which the last is padded to: float results depend on it."""
    format: Literal["png", "webp"] = "png"
    """Of the files; both without loss."""

    def __post_init__(self) -> None:
        if self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}; it must be at least 1.")
        given = isinstance(self.edit, Inpaint) and self.edit.mask == "masks"
        if given and self.masks is None:
            raise ValueError("inpaint needs `masks` (a dataset of them), or a part, as `mask: center`.")
        if self.masks is not None and not given:
            raise ValueError("`masks` are for `edit: {kind: inpaint, mask: masks}`: leave them out.")

    def summary(self) -> str:
        if isinstance(self.edit, Denoise):
            return f"noise of {self.edit.noise:g} taken out"
        if isinstance(self.edit, Inpaint):
            return f"{self.masks or self.edit.mask} filled in"
        return f"drawn again at strength {self.edit.strength:g}"

    def bytes_needed(self, inputs: Inputs) -> int:
        return 2 * super().bytes_needed(inputs) * _PIXEL_BYTES

    def plan(self, inputs: Inputs) -> list[ShardPlan]:
        unknown = sorted(set(self.splits) - set(inputs["images"].splits))
        if unknown:
            there = ", ".join(inputs["images"].splits)
            raise ValueError(f"{self.images} has no split {unknown[0]!r}; there are {there}.")
        return [shard for shard in super().plan(inputs) if not self.splits or shard.split in self.splits]

    def work(self) -> dict[str, Any]:
        # Which images are edited changes none of them.
        return {"meaning": {k: v for k, v in self.meaning().items() if k != "splits"}}

    def rows(self, inputs: Inputs, shard: ShardPlan) -> list[Row]:
        masks = inputs.get("masks")
        index, places = inputs["images"].index(shard.name), _places(masks) if masks else {}
        rows = []
        for n, key in enumerate(index.keys):
            reject = index.reasons[n] or ("no_mask" if masks and key not in places else None)
            reads = () if reject else tuple(index.digests(n, self.columns("images")))
            data: dict[str, Any] = {}
            if masks and not reject:
                name, place = places[key]
                reads += tuple(masks.index(name).digests(place, self.columns("masks")))
                data = {"mask": [name, place]}
            rows.append(Row(key=key, reads=reads, data=data, reject=reject))
        return rows

    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        from pipelines import pictures
        from pipelines.editing import Editor
        from pipelines.stages.upscale import images_columns

        editor, images = Editor(inputs["model"]), inputs["images"]
        columns = images_columns(images)
        provenance = {
            "edit": jsonable(self.edit),
            "seed": self.seed,
            "sampler": jsonable(self.sampler),
            "guidance": jsonable(self.guidance),
            "micro_batch": self.micro_batch,
            "snapshot": inputs["model"].digest(),
        }

        def edit(shard: ShardPlan, rows: Sequence[Row]) -> Iterator[Sample]:
            wanted = {row.key: row for row in rows if not row.reject}
            made = {row.key: Sample(key=row.key, reject=row.reject) for row in rows if row.reject}
            # a few at a time: large images of a whole shard need not fit into memory
            for start in range(0, len(wanted), self.micro_batch):
                some = [*wanted][start : start + self.micro_batch]
                records = {record.key: record for record in images.read(shard.name, some, columns)}
                given = {key: self._picture(editor, inputs, wanted[key], records[key]) for key in records}
                for key in some:
                    reason = self._unfit(editor, given[key]) if key in given else "no_image"
                    if reason:
                        made[key] = Sample(key=key, reject=reason)
                fit = [key for key in given if key not in made]
                edited = editor.draw(
                    [given[key] for key in fit],
                    self.edit,
                    seed=self.seed,
                    sampler=self.sampler,
                    guidance=self.guidance,
                    micro_batch=self.micro_batch,
                )
                for key, result in zip(fit, edited, strict=True):
                    kept = records[key].members
                    said = json.loads(kept["json"]) if "json" in kept else {}
                    members = {
                        self.format: pictures.encode(result.image, self.format),
                        f"given.{self.format}": pictures.encode(result.given, self.format),
                        "json": canonical({**said, "edited": provenance}),
                    }
                    members |= {c: kept[c] for c in ("txt", "cls") if c in kept}
                    made[key] = Sample(key=key, members=members)
            for row in rows:
                yield made[row.key]

        return edit

    def _picture(self, editor: Editor, inputs: Inputs, row: Row, record: Record) -> Picture:
        from pipelines.arrays import pixels
        from pipelines.editing import BRIGHT, Picture
        from pipelines.prompts import formatted
        from pipelines.stages.upscale import place

        mask = prompt = label = None
        if "mask" in row.data:
            mask = pixels(inputs["masks"].read_member(*row.data["mask"], "image")).max(axis=2) >= BRIGHT
        if editor.model.text_width is not None:
            template = inputs["model"].record.get("caption")
            said = json.loads(record.members["json"]).get("text") if "json" in record.members else None
            if self.prompt is not None:
                prompt = formatted(template, self.prompt)
            elif "txt" in record.members:
                prompt = record.members["txt"].decode()
            elif said:
                prompt = formatted(template, str(said))
        if "cls" in record.members:
            label = inputs["images"].classes[int(record.members["cls"])]
        known = editor.generator.classes
        return Picture(
            index=place(record.key),
            image=pixels(record.members["image"]),
            mask=mask,
            text=editor.text(prompt) if prompt is not None else None,
            label=known.index(label) if label in known else None,
        )

    def _unfit(self, editor: Editor, picture: Picture) -> str | None:
        """Why an image is rejected, if it is."""
        if min(picture.image.shape[:2]) < editor.least:
            return "too_small"
        if picture.mask is not None and picture.mask.shape != picture.image.shape[:2]:
            return "mask_of_another_size"
        return None

    def finish(self, inputs: Inputs, dataset: Any) -> dict[str, Any]:
        return {"classes": inputs["images"].classes}


@functools.lru_cache(maxsize=2)
def _places(masks: Any) -> dict[str, tuple[str, int]]:
    """Key -> (shard, row) of every mask: masks are of another source, and may lie in other shards."""
    found = {}
    for shard in masks.shards:
        index = masks.index(shard.name)
        for n, key in enumerate(index.keys):
            if index.reasons[n] is None and index.member(n, "image"):
                found[key] = (shard.name, n)
    return found
