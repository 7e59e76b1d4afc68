"""Images to how strange each is to a model that was trained on normal ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pipelines.scoring.features import EfficientNetFeatures, FeaturesConfig
from pipelines.shards import canonical
from pipelines.stage import Input, Inputs, Row, Sample, ShardPlan, ShardStage

if TYPE_CHECKING:
    import numpy as np

    from pipelines.detection import Detector
    from pipelines.scoring.measure import Place

MEANINGS = {
    "denoising": "error of the image denoised at several levels",
    "score_norm": "how far the model moves the image at several levels",
    "likelihood": "-log p by the probability flow",
    "neighbours": "distance to the nearest training image in features, no diffusion",
}


@dataclass(frozen=True, kw_only=True)
class Detect(ShardStage):
    """Scores images by how strange they are to a model, with a percentile among held-out normal images and a
    heat map each. Members: json (each score and its percentile) and heat.png.

    Four scores: the error of denoising at several levels, the norm of the model's score there, the negative
    log-likelihood, and, as a baseline without diffusion, the distance to the nearest training image in
    features. All grow with strangeness. The model is asked without caption or class. An image's scores
    depend on the snapshot, `seed`, its key, its bytes and the normal images.
    """

    version: ClassVar[int] = 1
    primary: ClassVar[str] = "images"
    accelerated: ClassVar[bool] = True

    images: Annotated[str, Input("dataset", ("image", "cls"))]
    """Those that are scored, and in other splits those that are known to be normal."""
    model: Annotated[str, Input("snapshot")]
    """A train stage's, of normal images."""
    splits: tuple[str, ...] = ("test",)
    """Whose images are scored."""
    count: int | None = None
    """Images of these splits that are scored, drawn by their keys; all if None."""
    normal: Literal["validation", "test"] = "validation"
    """Split of the normal images that scores are calibrated on: held out, or all would look strange."""
    normals: int = 256
    """Of them, at most."""
    anomalous: tuple[str, ...] = ()
    """Classes that are strange: how well each score tells them from the others is reported."""
    levels: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Noise over signal, in whitened latents, at which images are looked at: small ones see texture, large
    ones content."""
    likelihood_steps: int = 16
    """Of the solver of the probability flow, by far the dearest look; 0 leaves it out."""
    bank: int = 2_000
    """Training images among which the nearest is looked for; 0 leaves that out."""
    features: FeaturesConfig = EfficientNetFeatures()
    seed: int = 0
    micro_batch: int = 32
    """Images a forward call, which the last is padded to: float results depend on it."""
    bootstrap: int = 1_000
    """Resamples of every interval."""

    def __post_init__(self) -> None:
        for name in ("normals", "micro_batch", "bootstrap"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 2.")
        if not self.levels or min(self.levels) <= 0:
            raise ValueError("levels are noise over signal: give some above 0.")
        if self.likelihood_steps < 0 or self.bank < 0 or (self.count is not None and self.count < 1):
            raise ValueError("likelihood_steps and bank must be at least 0, and count at least 1.")
        if self.normal in self.splits:
            raise ValueError(f"{self.normal} is both scored and calibrated on: take two splits.")

    def external(self) -> dict[str, str]:
        return {"features": self.features.identity()} if self.bank else {}

    def summary(self) -> str:
        told = f", {' and '.join(self.anomalous)} to be found" if self.anomalous else ""
        return f"{' and '.join(self.splits)} images beside normal ones{told}"

    def work(self) -> dict[str, Any]:
        # Which images are scored changes none of them; which are normal does.
        arranging = {"splits", "count", "anomalous", "bootstrap"}
        meaning = {k: v for k, v in self.meaning().items() if k not in arranging}
        return {"meaning": meaning, "external": self.external()}

    def plan(self, inputs: Inputs) -> list[ShardPlan]:
        images = inputs["images"]
        missing = [name for name in (*self.splits, self.normal) if name not in images.splits]
        if missing:
            there = ", ".join(images.splits)
            raise ValueError(f"{self.images} has no split {missing[0]!r}; there are {there}.")
        unknown = [name for name in self.anomalous if name not in images.classes]
        if unknown:
            there = ", ".join(images.classes) or "none"
            raise ValueError(f"anomalous names {unknown[0]!r}; the classes are {there}.")
        chosen = self._chosen(images)
        return [
            ShardPlan(name=s.name, split=s.split, count=len(chosen[s.name]) if chosen else s.samples)
            for s in images.shards
            if s.split in self.splits and (chosen is None or chosen[s.name])
        ]

    def rows(self, inputs: Inputs, shard: ShardPlan) -> list[Row]:
        images = inputs["images"]
        normal = self._normal_digest(images)
        chosen = self._chosen(images)
        places = {key: n for n, key in enumerate(images.index(shard.name).keys)}
        rows = []
        for row in super().rows(inputs, shard):
            if chosen is None or row.key in chosen[shard.name]:
                reads = () if row.reject else (*row.reads, normal)
                data = {"row": places[row.key]}
                rows.append(Row(key=row.key, reads=reads, data=data, reject=row.reject))
        return rows

    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        images = inputs["images"]
        detector = self._detector(inputs)

        def detect(shard: ShardPlan, rows: Sequence[Row]) -> Iterator[Sample]:
            from pipelines import pictures
            from pipelines.detection import overlay

            for start in range(0, len(rows), self.micro_batch):
                part = rows[start : start + self.micro_batch]
                given = self._read(images, [(shard.name, row.data["row"]) for row in part if not row.reject])
                judged = iter(zip(given, detector.judge(given) if given else (), strict=True))
                for row in part:
                    if row.reject:
                        yield Sample(key=row.key, reject=row.reject)
                        continue
                    (_, image), found = next(judged)
                    said = {
                        name: {"score": found.scores[name], "percentile": found.percentiles[name]}
                        for name in found.scores
                    }
                    label = self._label(images, shard.name, row.data["row"])
                    percentile = found.percentiles["denoising"]
                    yield Sample(
                        key=row.key,
                        members={
                            "json": canonical({"scores": said, "levels": list(self.levels), "label": label}),
                            "heat.png": pictures.encode(overlay(image, found.heat), "png"),
                        },
                        meta={
                            **found.scores,
                            "label": label,
                            "title": f"{label + ': ' if label else ''}{percentile:.0f} %",
                            "place": -found.scores["denoising"],
                        },
                    )

        return detect

    def finish(self, inputs: Inputs, dataset: Any) -> dict[str, Any]:
        """How well each score tells anomalous classes from the others, where some are named."""
        classes = inputs["images"].classes
        if not self.anomalous:
            return {"classes": classes}
        import torch

        from diffusion.metrics.auroc import auroc

        rows = [
            index.meta[n]
            for shard in dataset.shards
            for index in [dataset.index(shard.name)]
            for n in range(len(index.keys))
            if index.reasons[n] is None
        ]
        groups = {
            strange: [m for m in rows if (m.get("label") in self.anomalous) == strange]
            for strange in (True, False)
        }
        if not all(groups.values()):
            return {"classes": classes}
        found = {}
        for name in MEANINGS:
            if name in rows[0]:
                strange, normal = (torch.tensor([m[name] for m in groups[g]]).double() for g in (True, False))
                found[name] = auroc(normal, strange, resamples=self.bootstrap, seed=self.seed)
        counts = {"anomalous": len(groups[True]), "normal": len(groups[False])}
        table = {
            "title": "Strange images",
            "says": (
                f"{counts['anomalous']:,} images of {' and '.join(self.anomalous)} among "
                f"{counts['normal']:,} others. AUROC: how often the stranger of a pair has the higher score; "
                ".5 is chance."
            ),
            "columns": ["score", "AUROC (95 %)", "what it is"],
            "rows": [
                [name, f"{e.value:.3f} ({e.low:.3f} to {e.high:.3f})", MEANINGS[name]]
                for name, e in found.items()
            ],
        }
        areas = {n: {"value": e.value, "low": e.low, "high": e.high} for n, e in found.items()}
        return {"classes": classes, "detection": {**counts, "auroc": areas}, "report": {"table": table}}

    def _detector(self, inputs: Inputs) -> Detector:
        from pipelines.detection import Detector, Looks

        looks = Looks(
            levels=self.levels,
            likelihood_steps=self.likelihood_steps,
            seed=self.seed,
            micro_batch=self.micro_batch,
        )
        detector = Detector(inputs["model"], looks, features=self.features if self.bank else None)
        images = inputs["images"]
        normal, bank = self._normals(images)
        if len(normal) < 2:
            raise ValueError(
                f"{self.images} has {len(normal)} {self.normal} images: calibration takes two or more."
            )
        detector.calibrate(self._read(images, normal), self._read(images, bank))
        return detector

    def _normals(self, images: Any) -> tuple[list[Place], list[Place]]:
        """Where the images lie that scores are calibrated on, and the training images of the bank."""
        return (
            _places(images, (self.normal,), self.seed)[: self.normals],
            _places(images, ("train",), self.seed)[: self.bank],
        )

    @functools.cache  # noqa: B019  # a stage lives as long as its run
    def _normal_digest(self, images: Any) -> str:
        """Of the images that decide what is normal: every score depends on them."""
        import hashlib

        read = [
            images.index(shard).digests(n, ("image",)) for part in self._normals(images) for shard, n in part
        ]
        return hashlib.sha256(canonical([list(digests) for digests in read])).hexdigest()

    @functools.cache  # noqa: B019
    def _chosen(self, images: Any) -> Mapping[str, set[str]] | None:
        """Shard -> keys of the images that are scored; None for all."""
        if self.count is None:
            return None
        chosen: dict[str, set[str]] = {shard.name: set() for shard in images.shards}
        for shard, n in _places(images, self.splits, self.seed)[: self.count]:
            chosen[shard].add(images.index(shard).keys[n])
        return chosen

    def _read(self, images: Any, places: Sequence[Place]) -> list[tuple[int, np.ndarray]]:
        from pipelines.arrays import pixels
        from pipelines.stages.upscale import place

        return [
            (place(images.index(shard).keys[n]), pixels(images.read_member(shard, n, "image")))
            for shard, n in places
        ]

    def _label(self, images: Any, shard: str, n: int) -> str | None:
        if not images.classes or images.index(shard).member(n, "cls") is None:
            return None
        return images.classes[int(images.read_member(shard, n, "cls"))]


@functools.lru_cache(maxsize=8)
def _places(images: Any, splits: tuple[str, ...], seed: int) -> list[Place]:
    from pipelines.scoring.jobs import places

    return places(images, splits, "detect", seed=seed)
