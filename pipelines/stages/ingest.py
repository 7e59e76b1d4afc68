"""From a pile of images to shards: each is decoded, checked, brought to one size, and put into a split."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pipelines.buckets import Buckets, listed
from pipelines.shards import canonical, read_index
from pipelines.sources import Source
from pipelines.sources.fit import Format, Resize
from pipelines.sources.long_tail import LongTail
from pipelines.sources.split import Split
from pipelines.stage import Inputs, Row, Sample, ShardPlan, ShardStage, Tell, TooMany, added

if TYPE_CHECKING:
    from cluster.mapping import Executor
    from cluster.storage import Storage
    from pipelines.sources.arrangement import Arrangement
    from pipelines.sources.source import Reader
    from pipelines.sources.survey import Survey


@dataclass(frozen=True, kw_only=True)
class Ingest(ShardStage):
    """Images from a folder, a zip archive or IDX files, with what is known of them, as a dataset.

    Members: the image (jpg, png or webp), `json` with the text, label and whatever else the source says, and
    `cls`, the label's id, where there is a label. Every input becomes a sample or a reject with its reason;
    what a long tail leaves out is counted, by class, in the manifest's `left_out`.
    """

    version: ClassVar[int] = 2

    source: Source
    """Where the images are."""
    size: int = 64
    """Side of the samples, in px."""
    resize: Resize = "crop"
    """crop to the middle square, fit with background around, pad (fit, never enlarged), none (sizes stay)."""
    background: str = "#ffffff"
    """Colour that shows through transparency and fills up, as #rrggbb."""
    format: Format = "webp"
    """Lossless format of images that change; those that stay as they are keep their bytes."""
    split: Split = Split()
    """Shares of validation and test."""
    seed: int = 0
    """Which images are held out."""
    long_tail: LongTail | None = added(None)
    """Keeps few of the training images, fewer from class to class; all if None."""
    unseen: tuple[str, ...] = added(())
    """Classes of which the test split alone keeps images: unknown to a model, for `detect` to find."""
    buckets: Buckets | None = added(None)
    """Sizes of several aspect ratios in place of one: each image is brought to the one nearest its shape, so
    that little is lost. All have one size if None."""
    resample: Literal["lanczos", "area"] = added("lanczos")
    """lanczos, or area: the mean of what each pixel covers, faster, and what peers' ingests do."""
    quality: int = added(95)
    """Of jpg."""
    validate: Literal["full", "header"] = added("full")
    """header: images that keep their bytes are judged by their container alone, many times faster; what is
    broken behind it shows where they are read. Only with `resize: none`."""
    samples_per_shard: int = 1000
    """At most about so many; a split has a power of two of shards."""
    max_bytes: int = 64_000_000
    """Files above this are rejected unread."""
    max_pixels: int = 64_000_000
    """Images above this are rejected by their header, before they are decoded."""

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 4096:
            raise ValueError(f"size is {self.size} px; it must be 8 to 4096.")
        if not re.fullmatch("#[0-9a-fA-F]{6}", self.background):
            raise ValueError(f'background is "{self.background}"; it must be a colour like "#ffffff".')
        for name in ("samples_per_shard", "max_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.buckets and self.resize not in ("crop", "fit"):
            raise ValueError(f"buckets need resize crop or fit, and it is {self.resize}.")
        if self.validate == "header" and self.resize != "none":
            raise ValueError(
                f"validate is header, and resize {self.resize} decodes all images: leave validate out."
            )
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; it must be 1 to 100.")

    def prepared(
        self, store: Storage | None = None, executor: Executor | None = None, tell: Tell | None = None
    ) -> Ingest:
        """With the source read through; without an executor `TooMany` is raised of one that is large.

        Raises:
            ValueError: the source is not there or holds no images.
        """
        from pipelines.sources.sightings import Question
        from pipelines.sources.survey import SMALL, survey

        question = Question(
            max_bytes=self.max_bytes,
            max_pixels=self.max_pixels,
            background=self.background,
            near=self.looks,
            features=self.source.pictures and self.split.near is not None,
            retry=self.retry,
        )
        read = functools.partial(survey, self.source, question, store=store)
        try:
            found = read(most=None if store is None else SMALL)
        except TooMany:
            if executor is None:
                raise
            found = read(executor=executor, tell=tell or (lambda done, of: None))
        if not found.count:
            raise ValueError(f"{self.source.path} holds no images.")
        ready = dataclasses.replace(self)
        # No field: it is found out, and neither decides what the stage is called nor stands in a recipe.
        object.__setattr__(ready, "_survey", found)
        return ready

    @property
    def side(self) -> int:
        """Of a sample, px; with buckets that of the square of their area."""
        return self.buckets.area if self.buckets else self.size

    @property
    def looks(self) -> bool:
        """Whether each picture is decoded while the source is read through, to tell near-duplicates."""
        split = self.split
        return self.source.pictures and (split.distance is not None or split.near is not None)

    @property
    def survey(self) -> Survey:
        """What the source holds; of a stage that was not prepared, as it is now, found by this machine."""
        return self.__dict__.get("_survey") or self.prepared().survey

    @property
    def arrangement(self) -> Arrangement:
        from pipelines.sources.arrangement import Wish, arrange

        wish = Wish(
            split=self.split,
            seed=self.seed,
            samples_per_shard=self.samples_per_shard,
            pictures=self.source.pictures,
            long_tail=self.long_tail,
            unseen=self.unseen,
            buckets=self.buckets,
        )
        return arrange(self.survey, wish)

    def external(self) -> dict[str, str]:
        found = {"source": self.survey.digest}
        if self.source.pictures and self.split.near is not None:
            from pipelines.duplicates.features import identity

            found["features"] = identity()
        return found

    def work(self) -> dict[str, Any]:
        # Which images there are, and how they are split and sharded, changes none of them.
        arranging = {"split", "seed", "samples_per_shard", "long_tail", "unseen", "retry", "buckets"}
        return {"meaning": {k: v for k, v in self.meaning().items() if k not in arranging}}

    def bytes_needed(self, inputs: Inputs) -> int:
        # What is not resized stays as it is; three bytes a pixel is what lossless formats take of noise.
        return self.survey.bytes if self.resize == "none" else self.survey.count * 3 * self.side**2

    def summary(self) -> str:
        way = {"crop": "cropped to", "fit": "fitted into", "pad": "padded to"}
        size = f"{self.buckets.area}^2 px in several shapes" if self.buckets else f"{self.size} px"
        shown = "as they are" if self.resize == "none" else f"{way[self.resize]} {size}"
        said = f"images of {self.source.path.name}, {shown}"
        if self.long_tail:
            last = max(1, round(self.long_tail.head / self.long_tail.ratio))
            said += f", {self.long_tail.head:,} to {last:,} a class"
        if self.unseen:
            said += f", {' and '.join(self.unseen)} for the test alone"
        return said

    def plan(self, inputs: Inputs) -> list[ShardPlan]:
        found, blobs = self.arrangement, self.survey.place.url
        return [
            ShardPlan(
                name=shard.name,
                split=shard.split,
                count=shard.count,
                data={
                    "rows": {"files": shard.files, "low": shard.low, "high": shard.high},
                    "place": found.place.url,
                    "blobs": blobs,
                    "sizes": [[*shape, *size] for shape, size in found.sizes.items()],
                },
            )
            for shard in found.shards
        ]

    def rows(self, inputs: Inputs, shard: ShardPlan) -> list[Row]:
        from cluster.storage import Storage
        from pipelines.buckets import named
        from pipelines.sources import arrangement
        from pipelines.sources.listing import printable

        rows, ids = [], self.survey.ids
        sizes = {(a, b): (width, height) for a, b, width, height in shard.data["sizes"]}
        for row in arrangement.rows(Storage.at(shard.data["place"]), shard.data["rows"], shard.split):
            reject = row["reject"] or row["fault"]
            cls = None if row["label"] is None else ids[row["label"]]
            said = hashlib.sha256(canonical([row["name"], row["facts"], cls])).hexdigest()
            size = None
            if self.buckets and not reject:
                size = sizes[self.buckets.nearest(row["width"], row["height"])]
            # A size is decided by all images together, so it stands beside the bytes.
            reads = () if reject else (row["digest"], said, *([named(size)] if size else []))
            data = {k: row[k] for k in ("name", "where", "stamp", "digest", "facts", "sound")} | {
                "cls": cls,
                "size": size,
            }
            meta = {"file_name": printable(row["name"])} if reject else {}
            rows.append(Row(key=row["key"], reads=reads, data=data, reject=reject, meta=meta))
        return rows

    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        return functools.partial(_make, self)

    def finish(self, inputs: Inputs, dataset: Any) -> dict[str, Any]:
        from pipelines.sources.fit import codecs

        found = self.arrangement
        left_out = {"left_out": found.left_out} if found.left_out else {}
        return {
            **left_out,
            **({"warnings": [found.warning]} if found.warning else {}),
            "classes": self.survey.classes,
            "statistics": {
                "resolution": None if self.resize == "none" else self.side,
                **found.statistics,
                **self._sizes(dataset),
                "codecs": codecs(),
            },
        }

    def _sizes(self, dataset: Any) -> dict[str, Any]:
        """Sizes and how many training samples have each, as they came out."""
        if not self.buckets:
            return {}
        counts: Counter[tuple[int, int]] = Counter()
        for shard in dataset.shards:
            if shard.split == "train":
                index = read_index(dataset.storage, shard.name)
                rows = zip(index.meta, index.reasons, strict=True)
                counts.update((meta["width"], meta["height"]) for meta, reason in rows if reason is None)
        return {"sizes": listed(counts)}


def _make(stage: Ingest, shard: ShardPlan, rows: Sequence[Row]) -> Iterator[Sample]:
    """Samples in the order of the rows."""
    from cluster.storage import Storage
    from pipelines.sources.blobs import Blobs
    from pipelines.sources.source import Reader
    from pipelines.sources.untrusted import Item, Task, made

    task = Task(
        background=stage.background,
        max_bytes=stage.max_bytes,
        max_pixels=stage.max_pixels,
        size=stage.size,
        resize=stage.resize,
        form=stage.format,
        resample=stage.resample,
        quality=stage.quality,
        validate=stage.validate,
        threads=stage.resources.threads,
    )
    reader = stage.source.reader(Blobs(Storage.at(shard.data["blobs"]).folder("blobs")))
    plain = type(reader).digest is Reader.digest
    waiting: deque[tuple[Row, bytes | None]] = deque()

    def images() -> Iterator[Item]:
        for row in rows:
            try:
                data = None if row.reject else reader.read(row.data["where"], stage.max_bytes)
            except OSError:
                data = None
            waiting.append((row, data))
            if data is None:
                continue
            if (
                not _unchanged(reader, row.data)
                and reader.digest(row.data["where"], data) != row.data["digest"]
            ):
                raise ValueError(_changed(stage, row))
            yield Item(data, row.data["size"], sound=bool(row.data["sound"]))

    for one in made(task, images()):
        while waiting[0][1] is None:
            yield _rejected(waiting.popleft()[0])
        row, data = waiting.popleft()
        digest = None
        if plain and data is not None and one.get("image") is data:
            # Kept as it is: the digest that its member needs says that it is the file that was read before.
            digest = reader.digest(row.data["where"], data)
            if digest != row.data["digest"]:
                raise ValueError(_changed(stage, row))
        yield _sample(row, one, digest)
    for row, _ in waiting:
        yield _rejected(row)


def _unchanged(reader: Reader, row: Mapping[str, Any]) -> bool:
    """Whether a file says of itself that it is as it was; asked after it was read."""
    return bool(row["stamp"]) and reader.stamp(row["where"]) == row["stamp"]


def _changed(stage: Ingest, row: Row) -> str:
    return f"{row.data['name']} of {stage.source.path} changed while it was read; run again."


def _rejected(row: Row) -> Sample:
    return Sample(key=row.key, reject=row.reject or "unreadable", meta=_named(row))


def _named(row: Row) -> dict[str, Any]:
    from pipelines.sources.listing import printable

    return {"file_name": printable(row.data["name"])}


def _sample(row: Row, made: Mapping[str, Any], digest: str | None) -> Sample:
    from pipelines.sources.metadata import scalars

    if "reject" in made:
        return Sample(key=row.key, reject=made["reject"], meta=_named(row))
    sizes = {name: made[name] for name in ("width", "height", "original_width", "original_height")}
    facts = {**row.data["facts"], **_named(row), **sizes}
    members = {made["suffix"]: made["image"], "json": canonical(facts)}
    if row.data["cls"] is not None:
        members["cls"] = str(row.data["cls"]).encode()
    digests = {made["suffix"]: digest} if digest else {}
    return Sample(key=row.key, members=members, digests=digests, meta=scalars(facts))
