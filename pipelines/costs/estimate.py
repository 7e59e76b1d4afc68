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
from pipelines.costs import columns, encoders, history, rates
from pipelines.costs.arithmetic import Work, autoencoder, latent_shape, network, share_seen
from pipelines.costs.captioning import captioning
from pipelines.costs.columns import array, member
from pipelines.costs.cost import Cost, Costs, Size
from pipelines.costs.known import foreign, known, named, spent
from pipelines.costs.measuring import Measuring, What
from pipelines.costs.rates import CORE, Device, Kind
from pipelines.runner.artifacts import Source
from pipelines.runner.plan import MISSING, Plan, PlannedStage

ASSUMED = 1_000_000
"""Images of a source that is not there and of which nothing is said."""
JSON = 400
"""Bytes of what is known of an image, as text."""
CHECKPOINT = 16
"""Bytes of a parameter in a checkpoint: weights, two moments and an average, float32."""
KEPT = 2
"""Checkpoints that are kept."""


def estimate(
    plan: Plan,
    *,
    images: int | None = None,
    gpu: str = "h100",
    cores: float | None = None,
    measure: bool = False,
) -> Costs:
    """What the stages of a plan take.

    Args:
        images: of a source that is not there; `ASSUMED` if None.
        gpu: name of the kind, where stages ask for GPUs.
        cores: of this machine, where they do not say how many they take.
        measure: runs each network here for some seconds, where it can, instead of going by its operations.
    """
    found = _Estimate(
        images=images,
        gpu=rates.GPUS[gpu],
        cores=cores or Capacity.here().cpus,
        measuring=Measuring() if measure else None,
    )
    costs = {stage.name: found.stage(stage) for stage in plan.stages}
    return Costs(stages=costs, assumptions=tuple(dict.fromkeys(found.assumptions)))


@dataclass
class _Estimate:
    images: int | None
    gpu: Device
    cores: float
    measuring: Measuring | None = None
    sizes: dict[str, Size] = field(default_factory=dict)
    """By stage name, or reference."""
    assumptions: list[str] = field(default_factory=list)
    done: bool = False
    """Of the stage that is looked at."""
    name: str = ""
    """The same."""

    def stage(self, planned: PlannedStage) -> Cost:
        for name, source in planned.sources.items():
            if source is not None and (reference := named(name, source.reference)) not in self.sizes:
                self.sizes[reference] = known(Size(), source.open().manifest)
        kind, supposed = planned.stage.name(), len(self.assumptions)
        self.done, self.name = planned.state == "done", planned.name
        reckon: Callable[[Any], tuple[Size, Cost]] | None = getattr(self, f"_{kind}", None)
        size, cost = reckon(planned.stage) if reckon else (Size(), Cost())
        if not self.done and (earlier := history.seconds(planned, cost.samples)) is not None:
            cost = replace(cost, seconds=earlier)
            self.assumptions.append(f"{planned.name} as fast as when it ran before")
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
        if reference not in self.sizes:
            self.sizes[reference] = foreign(reference)
        return self.sizes[reference]

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
        held = {"webp": member(size.image_bytes), "json": member(JSON)}
        return size, self._pool(stage, count * look, samples=count, held=held)

    def _score(self, stage: Any) -> tuple[Size, Cost]:
        of = self._of(stage.images)
        seconds = of.samples * sum(1 / rates.SCORED[scorer.kind] for scorer in stage.scorers)
        return of, self._pool(stage, seconds, samples=of.samples, held={"scores.json": member(JSON)})

    def _filter(self, stage: Any) -> tuple[Size, Cost]:
        """What it keeps shows only then: the stages behind it are reckoned with all."""
        of = self._of(stage.scores[0])
        held = {"keep": member(1)}
        return of, self._pool(stage, of.samples / rates.FILTERED, samples=of.samples, held=held)

    def _deduplicate(self, stage: Any) -> tuple[Size, Cost]:
        """As with a filter, what it keeps shows only then."""
        of, by = self._of(stage.images), stage.by.kind
        each, flops = 1 / rates.FILTERED, 0.0
        if by != "exact":
            each += of.side * of.side / rates.READ + 1 / rates.COMPARED[by]
        if by == "semantic" and stage.features is None:
            flops = of.samples * rates.FEATURES
        held = {"keep": member(1)}
        return of, self._pool(stage, of.samples * each, flops, kind="draw", samples=of.samples, held=held)

    def _caption(self, stage: Any) -> tuple[Size, Cost]:
        """With `only_missing`, too, all images are reckoned with: what is missing shows only then."""
        of = self._of(stage.images)
        earlier = [self._of(name).captions for name in stage.captions]
        own = self._of(getattr(stage, "model", None)).denoiser.flops
        works = [captioning(one, side=of.side, own=own) for one in stage.captioners]
        self.assumptions += [work.told for work in works if work.told and of.samples and not self.done]
        cost = self._pool(
            stage,
            of.samples * (sum(work.core_seconds for work in works) + 1 / rates.CAPTIONS * bool(earlier)),
            of.samples * sum(work.flops for work in works),
            waiting=of.samples * sum(work.waiting for work in works),
            samples=of.samples,
            held={"captions.json": member(JSON), "txt": member(100)},
        )
        size = replace(of, captions=sum(earlier) + of.samples * len(works))
        return size, replace(cost, price=of.samples * sum(work.price for work in works))

    def _train_autoencoder(self, stage: Any) -> tuple[Size, Cost]:
        of = self._of(stage.images)
        encoder, decoder = autoencoder(stage.autoencoder, side=of.side)
        shape = latent_shape(stage.autoencoder, of.side)
        size = Size(coder=stage.autoencoder, encoder=encoder, decoder=decoder, latents=shape)
        seconds = self._measured(stage, "coding", stage.autoencoder, side=of.side, batch=stage.batch)
        return size, self._training(stage, encoder + decoder, seconds)

    def _encode(self, stage: Any) -> tuple[Size, Cost]:
        of, through = self._of(stage.images), self._of(stage.autoencoder)
        held: dict[str, float] = {}
        flops, seconds, latents = 0.0, 0.0, None
        for side in (of.side, *getattr(stage, "also", ())):
            name = "moments.npy" if side == of.side else f"at{side}.moments.npy"
            if through.coder is None:
                continue
            channels, small = latent_shape(through.coder, side)
            latents = latents or (channels, small)
            for column in (name, f"flipped.{name}")[: 2 if stage.flips else 1]:
                held[column] = array(2 * channels, small, small)
            views = 2 if stage.flips else 1
            flops += views * autoencoder(through.coder, side=side)[0].flops
            seconds += views * self._measured(
                stage, "encoding", through.coder, side=side, batch=stage.micro_batch
            )
        cost = self._pool(
            stage,
            0,
            of.samples * flops,
            kind="convolve",
            samples=of.samples,
            held=held,
            measured=of.samples * seconds,
        )
        size = Size(samples=of.samples, side=of.side, coder=through.coder, latents=latents)
        return size, cost

    def _embed(self, stage: Any) -> tuple[Size, Cost]:
        of, mode = self._of(stage.captions), getattr(stage, "store", "cached")
        told, each = encoders.texts(stage.text), of.captions / max(1, of.samples)
        trained = self._of(getattr(stage, "clip", None)).coder
        if trained is not None and not getattr(stage.text, "path", "-"):
            told = encoders.texts(trained)
        self.assumptions.append(f"{rates.TOKENS} tokens a caption, {told.told} each")
        held = {"text.json": member(60 * each)}
        if mode == "cached":
            held["text.npy"] = each * sum(array(rates.TOKENS, width) for width in told.widths)
        if mode != "online":
            held["pooled.npy"] = each * array(told.pooled)
        flops = 0.0 if mode == "online" else of.captions * told.flops
        seconds = 0.0
        if mode != "online":
            batch = stage.micro_batch
            seconds = of.captions * self._measured(
                stage, "captions", stage.text, tokens=rates.TOKENS, batch=batch
            )
        if stage.image is not None:
            own = trained is not None and not getattr(stage.image, "path", "-")
            seen = encoders.images(trained if own else stage.image)
            held["image.npy"] = array(seen.pooled)
            flops += of.samples * seen.flops
            side, batch = self._of(stage.images).side, stage.micro_batch
            seconds += of.samples * self._measured(stage, "pictures", stage.image, side=side, batch=batch)
        cost = self._pool(stage, 0, flops, kind="draw", samples=of.samples, held=held, measured=seconds)
        size = Size(samples=of.samples, captions=of.captions, text_width=max(told.widths))
        return size, cost

    def _extract(self, stage: Any) -> tuple[Size, Cost]:
        of = self._of(stage.images)
        flops, shape, told = encoders.maps(stage.network)
        if stage.grid is not None and len(shape) > 1:
            shape = (shape[0], stage.grid, stage.grid)
        self.assumptions.append(f"{flops / 1e9:.2g} GFLOP an image ({told})")
        held = {"features.npy": array(*shape)}
        return of, self._pool(stage, 0, of.samples * flops, kind="draw", samples=of.samples, held=held)

    def _train_clip(self, stage: Any) -> tuple[Size, Cost]:
        of, captions = self._of(stage.images), self._of(stage.captions)
        if stage.model.kind == "towers":
            # Frozen halves see each image, its mirror image and each caption once.
            views = of.samples * (2 if stage.flips else 1)
            flops = views * rates.FEATURES + captions.captions * rates.EMBEDDERS["minilm"][0]
            cost = replace(self._timed(stage.resources, 0, flops, "draw", 0.0), bytes=110e6)
            return Size(coder=stage.model), cost
        return Size(), self._pairs(stage, getattr(stage.model, "settings", dict))

    def _train_captioner(self, stage: Any) -> tuple[Size, Cost]:
        cost = self._pairs(stage, getattr(stage.network, "settings", dict))
        return Size(denoiser=Work(flops=cost.flops / 3 / stage.images_seen)), cost

    def _pairs(self, stage: Any, settings: Callable[[], Any]) -> Cost:
        """Training an open_clip model on images with captions; as ViT-B/32 where its config is not here."""
        try:
            flops = encoders.pairs(settings())
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            flops = 2 * rates.CLIP
        self.assumptions.append(f"{flops / 1e9:.2g} GFLOP an image and caption ({self.name})")
        return self._training(stage, Work(flops=flops, parameters=flops / 100))

    def _evaluate_autoencoder(self, stage: Any) -> tuple[Size, Cost]:
        images, each = min(stage.count, self._of(stage.images).samples // 10), 3 * rates.FEATURES
        models = [self._of(name) for name in stage.models]
        flops = images * sum(of.encoder.flops + of.decoder.flops + each for of in models)
        return Size(), self._pool(stage, 0, flops, kind="draw", taken=1e6)

    def _evaluate_clip(self, stage: Any) -> tuple[Size, Cost]:
        flops = self._of(stage.images).samples // 10 * 2 * rates.FEATURES
        return Size(), self._pool(stage, 0, flops, kind="draw", taken=1e6)

    def _train(self, stage: Any) -> tuple[Size, Cost]:
        latents, text = self._of(stage.latents), self._of(stage.text)
        through, images = self._of(stage.autoencoder), self._of(stage.images)
        channels, side = latents.latents or (1, stage.network.patch if stage.network.kind == "dit" else 2)
        low = getattr(stage, "low_resolution", None)
        if stage.resolution and latents.latents:
            side = side * stage.resolution // latents.side
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
        if stage.denoiser is not None:
            of = self._of(named("denoiser", stage.denoiser.path)).denoiser
            work = replace(of, flops=of.flops * size * size)
        shown = latents.latents and (channels, side)
        own = replace(through, side=stage.resolution or latents.side, denoiser=work, latents=shown)
        seconds = 0.0
        if not low and stage.denoiser is None:
            given = {"channels": channels, "size": size, "classes": images.classes, "tokens": rates.TOKENS}
            given |= {"text_width": text.text_width, "batch": stage.batch, "precision": stage.precision}
            seconds = self._measured(stage, "denoising", stage.network, train=True, **given)
        seen = share_seen(stage.network, stage.tokens)
        return own, self._training(stage, replace(work, flops=seen * work.flops), seen * seconds)

    def _generate(self, stage: Any) -> tuple[Size, Cost]:
        of = self._of(stage.model)
        calls = stage.sampler.calls * (2 if stage.guidance.scale != 1 else 1)
        each = calls * of.denoiser.flops + of.decoder.flops
        held = {"png": member(rates.PIXEL * of.side * of.side), "json": member(JSON)}
        cost = self._pool(stage, 0, stage.count * each, kind="draw", samples=stage.count, held=held)
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

    def _training(self, stage: Any, work: Work, measured: float = 0.0) -> Cost:
        if not work.parameters:
            return Cost(bytes=1000.0, seconds=rates.START)
        kind: Kind = "train bfloat16" if stage.precision == "bfloat16" else "train float32"
        flops = 3 * work.flops * stage.images_seen  # forward, and twice that backward
        taken = work.parameters * (2 + KEPT * CHECKPOINT)
        cost = self._timed(stage.resources, 0, flops, kind, measured * stage.images_seen)
        return replace(cost, bytes=taken)

    def _pool(
        self,
        stage: Any,
        core_seconds: float,
        flops: float = 0.0,
        *,
        kind: Kind = "draw",
        taken: float = 0.0,
        waiting: float = 0.0,
        samples: int = 0,
        held: Mapping[str, float] | None = None,
        measured: float = 0.0,
    ) -> Cost:
        """`held`: bytes an image of each column of a dataset, less its index; `taken`: of anything else."""
        cost = self._timed(stage.resources, core_seconds, flops, kind, measured)
        seconds = (cost.seconds or 0.0) + waiting / (stage.resources.workers or 1)
        if held is None:
            return replace(cost, seconds=seconds, bytes=taken)
        held = {**held, columns.INDEX: columns.ROW}
        taken = columns.total(held, samples)
        return replace(cost, seconds=seconds, bytes=taken, samples=samples, columns=held)

    def _timed(
        self, asked: Resources, core_seconds: float, flops: float, kind: Kind, measured: float
    ) -> Cost:
        """Seconds of work that falls evenly on the workers, on what each asks for; `measured` seconds of a
        core or GPU, where there are any, stand for what `flops` are reckoned to take."""
        workers = asked.workers or 1
        gpus = (asked.gpus or 0.0) * workers
        cores = (
            asked.cpus * workers if asked.cpus else max(self.cores, workers) if asked.workers else self.cores
        )
        device, units = (self.gpu, gpus) if gpus else (CORE, cores)
        seconds = rates.START + core_seconds / cores
        if measured:
            seconds += measured / units
        elif flops:
            rate = device.rates[kind]
            seconds += flops / (rate.flops * units)
            told = f"{rate.flops / 1e12:.3g} TFLOP/s" if gpus else f"{rate.flops / 1e9:.3g} GFLOP/s"
            self.assumptions.append(f"{told} of a {device.name}, {kind} ({rate.source})")
        return Cost(seconds=seconds, gpus=gpus, flops=flops)

    def _measured(self, stage: Any, what: What, config: Any, **given: Any) -> float:
        """Seconds of a core, or of a GPU, a sample; 0 where nothing is measured."""
        if self.measuring is None or self.done:
            return 0.0
        gpu = bool(stage.resources.gpus)
        try:
            found = self.measuring.unit_seconds(what, config, gpu=gpu, **given)
        except (ValueError, RuntimeError, OSError) as error:
            self.assumptions.append(f"{self.name} could not be measured here: {' '.join(str(error).split())}")
            return 0.0
        unit = "GPU" if gpu else "core"
        self.assumptions.append(f"{1 / found:,.3g} a second on a {unit} ({self.name}, {what}, measured here)")
        return found
