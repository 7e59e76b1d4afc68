"""Captions, and images if asked for, to vectors."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pipelines.arrays import from_npy, to_npy
from pipelines.embedders import ImageEmbedder, ImageEmbedderConfig, MiniLM, TextEmbedderConfig, caption_digest
from pipelines.embedders.embedding import batches
from pipelines.shards import canonical
from pipelines.stage import KEEP, Input, Inputs, Row, Sample, ShardPlan, ShardStage, added


@dataclass(frozen=True, kw_only=True)
class Embed(ShardStage):
    """Writes each distinct caption's vectors once a shard, and which captions a sample has.

    `<caption digest>.text.npy` holds fp16 token states [tokens, width] without padding, `<caption
    digest>.pooled.npy` the pooled vector; a sample's `text.json` lists its captions as
    [{"digest", "weight"}]. With an image encoder a sample also has `image.npy`, fp16 [width].
    """

    version: ClassVar[int] = 1
    primary: ClassVar[str] = "captions"
    accelerated: ClassVar[bool] = True

    captions: Annotated[str, Input("dataset", ("captions.json",))]
    images: Annotated[str | None, Input("dataset", ("image",))] = None
    """Needed where `image` names an encoder."""
    keep: Annotated[str | None, Input("dataset", (KEEP,))] = added(None)
    """A filter or deduplicate stage: only samples that it keeps are embedded."""
    text: TextEmbedderConfig = MiniLM()
    image: ImageEmbedderConfig | None = None
    micro_batch: int = 16
    """Captions, or images, a forward call, which the last is padded to: float results depend on it."""

    def __post_init__(self) -> None:
        if self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}; it must be at least 1.")
        if self.image is not None and self.images is None:
            raise ValueError("embed has an `image` encoder and no `images`: name the stage that makes them.")
        if self.image is None and self.images is not None:
            raise ValueError(
                "embed has `images` and no `image` encoder: add one, such as {kind: open_clip, path}."
            )

    def external(self) -> dict[str, str]:
        found = {"text": self.text.identity()}
        return found if self.image is None else {**found, "image": self.image.identity()}

    def summary(self) -> str:
        image = "" if self.image is None else f", images by {self.image.kind}"
        return f"captions by {self.text.kind}{image}"

    def shared(self, members: Mapping[str, bytes]) -> Sequence[str]:
        digests = [caption["digest"] for caption in json.loads(members["text.json"])]
        return [f"{digest}.{part}.npy" for digest in digests for part in ("text", "pooled")]

    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        text = self.text.build(micro_batch=self.micro_batch)
        image = None if self.image is None else self.image.build(micro_batch=self.micro_batch)

        def embed(shard: ShardPlan, rows: Sequence[Row]) -> Iterator[Sample]:
            wanted = [row.key for row in rows if not row.reject]
            records = inputs["captions"].read(shard.name, wanted, ("captions.json",))
            captions = {record.key: json.loads(record.members["captions.json"]) for record in records}
            vectors = dict(_images(image, inputs["images"], shard.name, list(captions))) if image else None

            distinct = sorted({caption["text"] for found in captions.values() for caption in found})
            files = {
                words: {
                    f"{caption_digest(words)}.text.npy": to_npy(embedding.states),
                    f"{caption_digest(words)}.pooled.npy": to_npy(embedding.pooled),
                }
                for words, embedding in zip(distinct, text.encode(distinct), strict=True)
            }
            for row in rows:
                found = captions.get(row.key)
                if row.reject or found is None or (vectors is not None and row.key not in vectors):
                    reason = row.reject or ("no_captions" if found is None else "no_image")
                    yield Sample(key=row.key, reject=reason)
                    continue
                chosen = [{"digest": caption_digest(c["text"]), "weight": c["weight"]} for c in found]
                members = {"text.json": canonical(chosen)}
                if vectors is not None:
                    members["image.npy"] = vectors[row.key]
                shared = {name: data for c in found for name, data in files[c["text"]].items()}
                yield Sample(key=row.key, members=members, shared=shared)

        return embed

    def finish(self, inputs: Inputs, dataset: Any) -> dict[str, Any]:
        """What it takes to embed a prompt the same way, and what a network must take in."""
        states = [
            (shard.name, name, span)
            for shard in dataset.shards
            for name, span in dataset.index(shard.name).shared.items()
            if name.endswith(".text.npy")
        ]
        statistics: dict[str, Any] = {"text": self._record(self.text)}
        if states:
            shard, name, _ = states[0]
            width = from_npy(dataset.read_shared(shard, name)).shape[1]
            pooled = from_npy(dataset.read_shared(shard, name.replace(".text.", ".pooled."))).shape[0]
            shard, name, _ = max(states, key=lambda state: state[2][1])
            statistics["text"] |= {
                "width": width,
                "pooled_width": pooled,
                "captions": len({name for _, name, _ in states}),
                "longest": len(from_npy(dataset.read_shared(shard, name))),
                "template": inputs["captions"].manifest.get("statistics", {}).get("template"),
            }
        if self.image is not None:
            statistics["image"] = self._record(self.image)
        return {"statistics": statistics}

    def _record(self, config: TextEmbedderConfig | ImageEmbedderConfig) -> dict[str, Any]:
        return {**dataclasses.asdict(config), "digest": config.identity(), "micro_batch": self.micro_batch}


def _images(
    embedder: ImageEmbedder, images: Any, shard: str, keys: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
    """Key and npy of each image's vector, a run at a time."""
    from PIL import Image

    records = list(images.read(shard, keys, ("image",)))
    for run, count in batches(records, 64):
        opened = [Image.open(io.BytesIO(record.members["image"])).convert("RGB") for record in run[:count]]
        for record, vector in zip(run, embedder.encode(opened), strict=False):
            yield record.key, to_npy(vector)
