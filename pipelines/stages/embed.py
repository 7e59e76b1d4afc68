"""Captions, and images if asked for, to vectors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pipelines.arrays import from_npy
from pipelines.embedders import ImageEmbedderConfig, MiniLM, TextEmbedderConfig, load_text
from pipelines.embedders.embedding import LENGTHS, settings_digest
from pipelines.embedders.making import SIMILARITY, EmbedShard
from pipelines.embedders.placing import located, of_clip, stated
from pipelines.embedders.storing import Store, assembled, kept_empty, suffixes
from pipelines.shards import canonical
from pipelines.stage import KEEP, Input, Inputs, Row, Sample, ShardPlan, ShardStage, added, jsonable


@dataclass(frozen=True, kw_only=True)
class Embed(ShardStage):
    """Writes each distinct caption's vectors once a shard, and which captions a sample has.

    `<caption digest>.text.npy` holds fp16 token states [tokens, width] without padding, `<caption
    digest>.pooled.npy` the pooled vector; a sample's `text.json` lists its captions as
    [{"digest", "weight"}]. Of several encoders the states are `text.0.npy`, `text.1.npy` and so on. With an
    image encoder a sample also has `image.npy`, fp16 [width].
    """

    version: ClassVar[int] = 1
    primary: ClassVar[str] = "captions"
    accelerated: ClassVar[bool] = True

    captions: Annotated[str, Input("dataset", ("captions.json",))]
    images: Annotated[str | None, Input("dataset", ("image",))] = None
    """Needed where `image` names an encoder."""
    keep: Annotated[str | None, Input("dataset", (KEEP,))] = added(None)
    """A filter or deduplicate stage: only samples that it keeps are embedded."""
    clip: Annotated[str | None, Input("snapshot")] = added(None)
    """A train_clip stage or another CLIP's snapshot: the weights of `open_clip` encoders without a `path`."""
    text: TextEmbedderConfig = MiniLM()
    image: ImageEmbedderConfig | None = None
    store: Store = added("cached")
    """What is kept of captions: token states and pooled vectors; pooled vectors alone, which a network
    then sees as their only token; or their words, which training embeds batch by batch (`online`)."""
    empty: bool = added(False)
    """Whether the manifest keeps the empty caption's vectors, for training with `null: encoded`."""
    similarity: bool = added(False)
    """Whether a sample gets the cosine of its image and its first caption as a score, `similarity`, which a
    filter takes; both encoders must be of the same open_clip model."""
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
        lacking = of_clip(self.text) or of_clip(self.image)
        if lacking and self.clip is None:
            raise ValueError(
                "An open_clip encoder has no weights: name a `path`, or a `clip` that they are taken from."
            )
        if self.clip is not None and not lacking:
            raise ValueError(
                "embed has a `clip` that no encoder uses: set `text` or `image` to {kind: open_clip}."
            )
        if self.similarity and (
            self.store == "online"
            or self.image is None
            or (self.text.kind, self.image.kind) != ("open_clip", "open_clip")
        ):
            raise ValueError(
                "`similarity` needs `text` and `image` of one open_clip model, and vectors: no `online`."
            )

    def external(self) -> dict[str, str]:
        """Digests of the encoders; `clip` stands for its own."""
        found = {"text": stated(self.text), "image": None if self.image is None else stated(self.image)}
        return {name: digest for name, digest in found.items() if digest}

    def work(self) -> dict[str, Any]:
        meaning = {name: value for name, value in self.meaning().items() if name != "empty"}
        return {"meaning": meaning, "external": self.external()}

    def summary(self) -> str:
        kept = {"cached": "", "pooled": ", pooled vectors alone", "online": ", kept as words"}[self.store]
        image = "" if self.image is None else f", images by {self.image.kind}"
        return f"captions by {self.text.kind}{kept}{image}"

    def shared(self, members: Mapping[str, bytes]) -> Sequence[str]:
        digests = [caption["digest"] for caption in json.loads(members["text.json"])]
        return [f"{digest}.{part}" for digest in digests for part in suffixes(self.text, self.store)]

    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        folder = "" if inputs.get("clip") is None else str(inputs["clip"].local())
        return EmbedShard(
            captions=inputs["captions"],
            images=inputs.get("images"),
            text=located(self.text, folder),
            image=located(self.image, folder),
            store=self.store,
            tag=self._tag(inputs),
            similarity=self.similarity,
            micro_batch=self.micro_batch,
        )

    def finish(self, inputs: Inputs, dataset: Any) -> dict[str, Any]:
        """What it takes to embed a prompt the same way, and what a network must take in."""
        folder = "" if inputs.get("clip") is None else inputs["clip"].storage.url
        text = self._record(located(self.text, folder))
        if self.store != "cached":
            text["store"] = self.store
        found = self._found(text, dataset)
        if self.store == "online" or self.empty:
            encoder = load_text(text)
            if self.store == "online":
                longest = getattr(encoder, "longest", LENGTHS[-1])
                found = {"width": encoder.width, "pooled_width": encoder.pooled_width, "longest": longest}
            if self.empty:
                found["empty"] = kept_empty(encoder.encode([""])[0])
        if found:
            template = inputs["captions"].manifest.get("statistics", {}).get("template")
            text |= {**found, "template": template}
        statistics: dict[str, Any] = {"text": text}
        if self.image is not None:
            statistics["image"] = self._record(located(self.image, folder))
        values, retried = [], 0
        for shard in dataset.shards:
            for meta in dataset.index(shard.name).meta:
                retried += "retried" in meta
                if SIMILARITY in meta:
                    values.append(meta[SIMILARITY])
        if values:
            from pipelines.scorers.thresholds import summary

            statistics["scores"] = {SIMILARITY: summary(values)}
        if not retried:
            return {"statistics": statistics}
        text["retried"] = retried
        note = f"captions of {retried:,} samples overflowed and were embedded once more in float32"
        return {"statistics": statistics, "notes": [note]}

    def _found(self, record: Mapping[str, Any], dataset: Any) -> dict[str, Any]:
        """Widths, number and length of the captions whose vectors there are."""
        kept = suffixes(self.text, self.store)
        spans = {
            suffix: [
                (shard.name, name, span[1])
                for shard in dataset.shards
                for name, span in dataset.index(shard.name).shared.items()
                if name.partition(".")[2] == suffix
            ]
            for suffix in kept
        }
        if not kept or not spans[kept[0]]:
            return {}
        longest = 0
        shard, name, _ = spans[kept[0]][0]
        digest = name.partition(".")[0]
        first = assembled(record, lambda suffix: dataset.read_shared(shard, f"{digest}.{suffix}"))
        each = []
        for suffix in kept:
            where, name, _ = max(spans[suffix], key=lambda span: span[2])
            array = from_npy(dataset.read_shared(where, name))
            each += [len(array)] if array.ndim == 2 else []
        if self.store == "cached":
            # Of tokens behind one another at most so many, as the longest may be of different captions.
            behind = self.text.kind == "several" and self.text.join == "tokens"
            longest = max(each[:-1]) + each[-1] if behind else max(each)
        return {
            "width": first.states.shape[1],
            "pooled_width": len(first.pooled),
            "captions": len({name for _, name, _ in spans[kept[0]]}),
            "longest": longest or 1,
        }

    def _tag(self, inputs: Inputs) -> str:
        """Stands in `text.json` for an encoder whose vectors no column that training reads would show."""
        joined = self.text.kind == "several" and self.text.join != "last"
        if self.store != "online" and not (self.store == "cached" and joined):
            return ""
        clip = inputs["clip"].digest() if inputs.get("clip") is not None else ""
        said = [jsonable(self.text), self.external().get("text", ""), clip, self.micro_batch]
        return settings_digest(canonical(said).decode())[:20]

    def _record(self, config: Any) -> dict[str, Any]:
        return {**dataclasses.asdict(config), "digest": config.identity(), "micro_batch": self.micro_batch}
