"""Bytes and hours of each stage of a plan, before it runs: sizes followed from stage to stage.

What is finished says what it holds and how long it took. What is not is reckoned from its configuration, from
the sizes of what it reads, and from rates that are named (`pipelines.costs.rates`). A source that is not
there yet is taken to have a stated number of images. Expect a factor of two, either way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.resources import Capacity, Resources
from pipelines.costs import rates
from pipelines.costs.arithmetic import Work, autoencoder, latent_shape, network
from pipelines.costs.captioning import captioning
from pipelines.costs.rates import CORE, Device, Kind
from pipelines.runner.artifacts import Source
from pipelines.runner.plan import MISSING, Plan, PlannedStage

ASSUMED = 1_000_000
"""Images of a source that is not there and of which nothing is said."""
RECORD = 1200
"""Bytes of a sample beside its members: tar headers, padding, its row in the index."""
CHECKPOINT = 16
"""Bytes of a parameter in a checkpoint: weights, two moments and an average, float32."""
KEPT = 2
"""Checkpoints that are kept."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is known of an output: only what later stages need."""

    samples: int = 0
    side: int = 0
    """Of its images, px."""
    image_bytes: float = 0.0
    """Of one image."""
    captions: int = 0
    """Distinct ones."""
    text_width: int | None = None
    classes: int = 0
    latents: tuple[int, int] | None = None
    """Channels and side."""
    encoder: Work = Work()
    decoder: Work = Work()
    denoiser: Work = Work()


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one stage."""

    bytes: float | None = None
    """That its output takes in the store, with the checkpoints that are kept."""
    seconds: float | None = None
    gpus: float = 0.0
    """That it holds meanwhile."""
    flops: float = 0.0
    price: float = 0.0
    """That endpoints ask, in the currency of their prices."""
    measured: bool = False
    """Whether it is done, and these are the figures of its run."""

    @property
    def gpu_hours(self) -> float:
        return self.gpus * (self.seconds or 0.0) / 3600


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of a recipe."""

    stages: Mapping[str, Cost]
    assumptions: tuple[str, ...]
    """One line each: images that are supposed, rates and who says so."""

    @property
    def total(self) -> Cost:
        """Of what is still to run."""
        left = [cost for cost in self.stages.values() if not cost.measured]
        return Cost(
            bytes=sum(cost.bytes or 0 for cost in left),
            seconds=sum(cost.seconds or 0 for cost in left),
            flops=sum(cost.flops for cost in left),
            price=sum(cost.price for cost in left),
        )

    @property
    def gpu_hours(self) -> float:
        return sum(cost.gpu_hours for cost in self.stages.values() if not cost.measured)


def estimate(
    plan: Plan, *, images: int | None = None, gpu: str = "h100", cores: float | None = None
) -> Costs:
    """What the stages of a plan take.

    Args:
        images: of a source that is not there; `ASSUMED` if None.
        gpu: name of the kind, where stages ask for GPUs.
        cores: of this machine, where they do not say how many they take.
    """
    found = _Estimate(images=images, gpu=rates.GPUS[gpu], cores=cores or Capacity.here().cpus)
    costs = {stage.name: found.stage(stage) for stage in plan.stages}
    return Costs(stages=costs, assumptions=tuple(dict.fromkeys(found.assumptions)))


@dataclass
class _Estimate:
    images: int | None
    gpu: Device
    cores: float
    sizes: dict[str, Size] = field(default_factory=dict)
    """By stage name, or reference."""
    assumptions: list[str] = field(default_factory=list)
    done: bool = False
    """Of the stage that is looked at."""

    def stage(self, planned: PlannedStage) -> Cost:
        for source in planned.sources.values():
            if source is not None and source.reference not in self.sizes:
                self.sizes[source.reference] = known(Size(), source.open().manifest)
        kind, supposed = planned.stage.name(), len(self.assumptions)
        self.done = planned.state == "done"
        reckon: Callable[[Any], tuple[Size, Cost]] | None = getattr(self, f"_{kind}", None)
        size, cost = reckon(planned.stage) if reckon else (Size(), Cost())
        if planned.state == "done" and planned.folder is not None:
            artifact = Source(kind=planned.stage.output, url=planned.folder.url, reference="").open()
            size, cost = known(size, artifact.manifest), spent(artifact, cost)
            del self.assumptions[supposed:]
        self.sizes[planned.name] = size
        return cost

    def _of(self, reference: str | None) -> Size:
        """The size of an input: a stage's, or that of a finished artifact elsewhere."""
        if reference is None:
            return Size()
        return self.sizes.get(reference, Size())

    def _count(self, stage: Any) -> int:
        if self.done:  # its manifest says; to list a source may take long
            return 0
        try:
            return stage.survey.count
        except MISSING:
            count, path = self.images or ASSUMED, re.sub(r"^(\w+):/+", r"\1://", str(stage.source.path))
            self.assumptions.append(f"{count:,} images at {path}, which cannot be read (--images)")
            return count

    def _ingest(self, stage: Any) -> tuple[Size, Cost]:
        count, sized = self._count(stage), getattr(stage, "buckets", None)
        side = sized.area if sized else stage.size
        size = Size(samples=count, side=side, image_bytes=rates.PIXEL * side * side)
        looked = rates.LOOK if stage.source.pictures else rates.RAW
        look = 1 / looked + side * side / rates.WRITE
        self.assumptions.append(
            f"{rates.PIXEL:g} bytes a pixel, lossless; {1 / look:.0f} images/s a core at {side} px"
        )
        return size, self._pool(stage, count * look, taken=count * (size.image_bytes + RECORD))

    def _score(self, stage: Any) -> tuple[Size, Cost]:
        of = self._of(stage.images)
        seconds = of.samples * sum(1 / rates.SCORED[scorer.kind] for scorer in stage.scorers)
        return of, self._pool(stage, seconds, taken=of.samples * (RECORD + 600))

    def _filter(self, stage: Any) -> tuple[Size, Cost]:
        """What it keeps shows only then: the stages behind it are reckoned with all."""
        of = self._of(stage.scores[0])
        return of, self._pool(stage, of.samples / rates.FILTERED, taken=of.samples * RECORD)

    def _deduplicate(self, stage: Any) -> tuple[Size, Cost]:
        """As with a filter, what it keeps shows only then."""
        of, by = self._of(stage.images), stage.by.kind
        each, flops = 1 / rates.FILTERED, 0.0
        if by != "exact":
            each += of.side * of.side / rates.READ + 1 / rates.COMPARED[by]
        if by == "semantic" and stage.features is None:
            flops = of.samples * rates.FEATURES
        return of, self._pool(stage, of.samples * each, flops, kind="draw", taken=of.samples * (RECORD + 100))

    def _caption(self, stage: Any) -> tuple[Size, Cost]:
        """With `only_missing`, too, all images are reckoned with: what is missing shows only then."""
        of = self._of(stage.images)
        earlier = [self._of(name).captions for name in stage.captions]
        works = [captioning(one, side=of.side) for one in stage.captioners]
        self.assumptions += [work.told for work in works if work.told and of.samples and not self.done]
        cost = self._pool(
            stage,
            of.samples * (sum(work.core_seconds for work in works) + 1 / rates.CAPTIONS * bool(earlier)),
            of.samples * sum(work.flops for work in works),
            waiting=of.samples * sum(work.waiting for work in works),
            taken=of.samples * (RECORD + 200),
        )
        size = replace(of, captions=sum(earlier) + of.samples * len(works))
        return size, replace(cost, price=of.samples * sum(work.price for work in works))

    def _train_autoencoder(self, stage: Any) -> tuple[Size, Cost]:
        of = self._of(stage.images)
        encoder, decoder = autoencoder(stage.autoencoder, side=of.side)
        size = Size(encoder=encoder, decoder=decoder, latents=latent_shape(stage.autoencoder, of.side))
        return size, self._training(stage, encoder + decoder)

    def _encode(self, stage: Any) -> tuple[Size, Cost]:
        of, through = self._of(stage.images), self._of(stage.autoencoder)
        channels, side = through.latents or (0, 0)
        views = 2 if stage.flips else 1
        moments = views * (2 * channels * side * side * 2 + 128)
        flops = of.samples * views * through.encoder.flops
        cost = self._pool(stage, 0, flops, kind="convolve", taken=of.samples * (moments + RECORD))
        return Size(samples=of.samples, side=of.side, latents=through.latents), cost

    def _embed(self, stage: Any) -> tuple[Size, Cost]:
        of = self._of(stage.captions)
        work, width = rates.EMBEDDERS[stage.text.kind]
        one = (rates.TOKENS + 1) * width * 2 + 2 * RECORD
        self.assumptions.append(
            f"{rates.TOKENS} tokens a caption, {work / 1e9:.2g} GFLOP each ({stage.text.kind})"
        )
        taken = of.captions * one + of.samples * RECORD
        cost = self._pool(stage, 0, of.captions * work, kind="draw", taken=taken)
        return Size(samples=of.samples, captions=of.captions, text_width=width), cost

    def _train(self, stage: Any) -> tuple[Size, Cost]:
        latents, text = self._of(stage.latents), self._of(stage.text)
        through, images = self._of(stage.autoencoder), self._of(stage.images)
        channels, side = latents.latents or (1, stage.network.patch if stage.network.kind == "dit" else 2)
        low = getattr(stage, "low_resolution", None)
        size = low.crop if low and getattr(low, "crop", None) else side
        work = network(
            stage.network,
            channels=channels,
            size=size,
            classes=images.classes,
            text_width=text.text_width,
            tokens=rates.TOKENS if text.text_width else 0,
            low_channels=channels if low else 0,
        )
        own = replace(through, side=latents.side, denoiser=work, latents=latents.latents)
        return own, self._training(stage, work)

    def _generate(self, stage: Any) -> tuple[Size, Cost]:
        of = self._of(stage.model)
        calls = stage.sampler.calls * (2 if stage.guidance.scale != 1 else 1)
        each = calls * of.denoiser.flops + of.decoder.flops
        one = rates.PIXEL * of.side * of.side + RECORD
        cost = self._pool(stage, 0, stage.count * each, kind="draw", taken=stage.count * one)
        return Size(samples=stage.count, side=of.side, image_bytes=rates.PIXEL * of.side**2), cost

    def _augment(self, stage: Any) -> tuple[Size, Cost]:
        real, drawn = self._of(stage.real), self._of(stage.generated)
        samples = real.samples + drawn.samples
        return replace(real, samples=samples), Cost(bytes=200.0 * samples, seconds=samples / 50_000)

    def _evaluate(self, stage: Any) -> tuple[Size, Cost]:
        of = self._of(stage.model)
        images, drawn = self._of(stage.images).samples, min(stage.count, self._of(stage.generated).samples)
        held_out = min(stage.count, images // 10)
        seen = min(stage.count, images) + drawn + 2 * held_out + stage.untrained
        # Images that drawings are compared with pass through the autoencoder first.
        through = min(max(stage.references, stage.count), images) + 2 * held_out if stage.model else 0
        flops = seen * rates.FEATURES + through * (of.encoder.flops + of.decoder.flops)
        flops += (4 * stage.untrained + 2 * stage.losses * stage.draws) * of.denoiser.flops
        return Size(), self._pool(stage, 0, flops, kind="draw", taken=1e6)

    def _promote(self, stage: Any) -> tuple[Size, Cost]:
        of = self._of(stage.candidate)
        calls = stage.sampler.calls * 2
        each = calls * of.denoiser.flops + of.decoder.flops + rates.FEATURES
        flops = 2 * (stage.count * each + stage.losses * stage.draws * of.denoiser.flops)
        return Size(), self._pool(stage, 0, flops, kind="draw", taken=1e6)

    def _training(self, stage: Any, work: Work) -> Cost:
        if not work.parameters:
            return Cost(bytes=1000.0, seconds=rates.START)
        kind: Kind = "train bfloat16" if stage.precision == "bfloat16" else "train float32"
        flops = 3 * work.flops * stage.images_seen  # forward, and twice that backward
        taken = work.parameters * (2 + KEPT * CHECKPOINT)
        return self._timed(stage.resources, 0, flops, kind, taken)

    def _pool(
        self,
        stage: Any,
        core_seconds: float,
        flops: float = 0.0,
        *,
        kind: Kind = "draw",
        taken: float = 0.0,
        waiting: float = 0.0,
    ) -> Cost:
        cost = self._timed(stage.resources, core_seconds, flops, kind, taken)
        return replace(cost, seconds=(cost.seconds or 0.0) + waiting / (stage.resources.workers or 1))

    def _timed(self, asked: Resources, core_seconds: float, flops: float, kind: Kind, taken: float) -> Cost:
        """Seconds of work that falls evenly on the workers, on what each asks for."""
        workers = asked.workers or 1
        gpus = (asked.gpus or 0.0) * workers
        cores = (
            asked.cpus * workers if asked.cpus else max(self.cores, workers) if asked.workers else self.cores
        )
        device, units = (self.gpu, gpus) if gpus else (CORE, cores)
        seconds = rates.START + core_seconds / cores
        if flops:
            rate = device.rates[kind]
            seconds += flops / (rate.flops * units)
            told = f"{rate.flops / 1e12:.3g} TFLOP/s" if gpus else f"{rate.flops / 1e9:.3g} GFLOP/s"
            self.assumptions.append(f"{told} of a {device.name}, {kind} ({rate.source})")
        return Cost(bytes=taken, seconds=seconds, gpus=gpus, flops=flops)


def known(size: Size, manifest: Mapping[str, Any]) -> Size:
    """What was reckoned, as far as the finished output does not say better."""
    counts = manifest.get("counts") or {}
    if "snapshot" in manifest:
        return learned(manifest["snapshot"])
    if counts.get("committed"):
        size = replace(size, samples=int(counts["committed"]))
    if manifest.get("classes"):
        size = replace(size, classes=len(manifest["classes"]))
    said = manifest.get("statistics") or {}
    if "shape" in said:
        size = replace(size, latents=(said["shape"][0], said["shape"][1]), side=said["resolution"])
    if "width" in (said.get("text") or {}):
        size = replace(size, text_width=said["text"]["width"], captions=said["text"].get("captions", 0))
    return size


def learned(record: Mapping[str, Any]) -> Size:
    """What a snapshot says of its networks."""
    from pipelines.models import autoencoder_config, network_config

    side = int(record["resolution"])
    config = autoencoder_config(record["autoencoder"])
    encoder, decoder = autoencoder(config, side=side)
    size = Size(side=side, encoder=encoder, decoder=decoder, latents=latent_shape(config, side))
    if "network" not in record:
        return size
    channels, of_latents, _ = record["latent_shape"]
    text, upscaling = record.get("text") or {}, record.get("upscaling")
    work = network(
        network_config(record["network"]),
        channels=channels,
        size=upscaling["size"] if upscaling else of_latents,
        classes=len(record.get("classes") or ()),
        text_width=text.get("width"),
        tokens=rates.TOKENS if text else 0,
        low_channels=channels if upscaling else 0,
    )
    return replace(size, denoiser=work, latents=(channels, of_latents))


def spent(artifact: Any, cost: Cost) -> Cost:
    """What a finished stage holds and took."""
    manifest = artifact.manifest
    shards, files = manifest.get("shards"), (manifest.get("snapshot") or {}).get("files")
    execution = manifest.get("execution") or {}
    taken = cost.bytes
    if shards:
        taken = float(sum(shard.get("bytes", 0) for shard in shards))
    elif files:
        taken = float(sum(artifact.storage.size(name) for name in files))
    return Cost(
        bytes=taken,
        seconds=execution.get("seconds"),
        measured=True,
    )
