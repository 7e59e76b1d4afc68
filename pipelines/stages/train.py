"""Latents, embeddings and classes to a denoiser."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from diffusion.config import (
    AlignmentConfig,
    DiTConfig,
    GuidanceConfig,
    HeunConfig,
    LogitNormalConfig,
    LowResolutionConfig,
    NetworkConfig,
    OptimizationConfig,
    SamplerConfig,
    TimesConfig,
)
from pipelines.encoding.columns import column, statistics_at
from pipelines.pretrained.config import DiffusersConfig, check_pretrained
from pipelines.shard_cache import CacheConfig
from pipelines.shuffling import ShuffleConfig
from pipelines.stage import KEEP, Input, Inputs, Kind, Session, Stage, added, execution, jsonable
from pipelines.stages.fitting import check_inputs, unsuited
from pipelines.stages.mixing import check_mixed, check_mixing, mixed_with
from pipelines.stages.train_autoencoder import check_training
from pipelines.training.config import DDPConfig, GuardConfig, ParallelConfig, check_parallel

if TYPE_CHECKING:
    import torch

    from pipelines.pretrained.begun import Begun
    from pipelines.training.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Train(Stage):
    """Trains a denoiser of latents; the snapshot holds its averaged weights and all that drawing takes.

    With `text` it follows prompts, with `images` that have classes it follows those; with neither it is
    unconditional. With `low_resolution` it is an upscaler: told an image shrunk, it draws it large.
    """

    version: ClassVar[int] = 1
    output: ClassVar[Kind] = "snapshot"
    accelerated: ClassVar[bool] = True
    length: ClassVar[tuple[str, ...]] = ("images_seen", "ema_width")

    latents: Annotated[str, Input("dataset", ("moments.npy",))]
    autoencoder: Annotated[str, Input("snapshot")]
    """The one that made the latents; a copy of it goes into the snapshot."""
    initial: Annotated[str | None, Input("snapshot")] = added(None)
    """A train stage, or any snapshot of a denoiser, whose weights this training begins with: one of a smaller
    resolution, or one that skipped tokens."""
    resolution: int | None = added(None)
    """Which of encode's resolutions it is trained at, px: one of its `also`; the images' own if None."""
    text: Annotated[str | None, Input("dataset", ("text.json", "text.npy", "pooled.npy"))] = None
    """An embed stage."""
    images: Annotated[str | None, Input("dataset", ("cls",))] = None
    """The images' classes."""
    keep: Annotated[str | None, Input("dataset", (KEEP,))] = added(None)
    """A filter or deduplicate stage: only samples that it keeps are trained on, and validated with."""
    originals: Annotated[str | None, Input("dataset", ("image",))] = added(None)
    """The images that the latents were made of; an upscaler's small images are shrunk from them at load."""
    features: Annotated[str | None, Input("dataset", ("features.npy",))] = added(None)
    """An extract stage on the same images; goes with `alignment`."""
    alignment: AlignmentConfig | None = added(None)
    """Learns from `features` what a trained network sees; the snapshot is the same without them."""
    low_resolution: LowResolutionConfig | None = added(None)
    """What an upscaler is told; None for a model that draws from nothing."""
    objective: Literal["flow", "regression"] = added("flow")
    """`flow` learns to denoise. `regression` learns an upscaler that answers at once with the mean absolute
    error's minimum: blurred, the baseline that one by diffusion is judged beside."""
    mix_latents: Annotated[tuple[str, ...], Input("dataset", ("moments.npy",))] = added(())
    """Encode stages of other images that it is trained on as well, by the same autoencoder. Whitened as
    `latents` are; held-out figures are of `latents` alone."""
    mix_text: Annotated[tuple[str, ...], Input("dataset", ("text.json", "text.npy", "pooled.npy"))] = added(
        ()
    )
    """An embed stage for each of them, by the encoder of `text`; empty: they are trained on without."""
    mix_images: Annotated[tuple[str, ...], Input("dataset", ("cls",))] = added(())
    """The images of each of them, for their classes, which go by name; those that `images` has not are
    trained on without one. Empty: all are."""
    mix_keep: Annotated[tuple[str, ...], Input("dataset", (KEEP,))] = added(())
    """A filter or deduplicate stage for each of them, or none."""
    mix_weights: tuple[float, ...] = added(())
    """Share in the training of `latents` and of each of `mix_latents`, by their sum; empty: by samples. Each
    has epochs of its own."""
    shuffle: ShuffleConfig = added(ShuffleConfig())
    """Of epochs that are too long to be drawn as a whole."""
    denoiser: Annotated[DiffusersConfig | None, Input("snapshot", part="denoiser")] = added(None)
    """A pretrained denoiser whose weights it begins with, in place of a new `network`."""
    network: NetworkConfig = DiTConfig()
    images_seen: int = 100_000
    """Images that training sees, each as often as it takes. A larger number continues the shorter run."""
    batch: int = 64
    """Images a step, over all workers."""
    optimization: OptimizationConfig = OptimizationConfig(lr=1e-3, warmup=5_000, cooldown=20_000)
    times: TimesConfig = LogitNormalConfig()
    drop_text: float = 0.1
    """Share of samples that are trained without their caption, so that guidance has something to leave."""
    null: Literal["learned", "encoded"] = added("learned")
    """What stands in for a caption that is dropped or missing, in training and in use: a token that the
    network learns, or what the encoder makes of an empty caption; embed then needs `empty: true`."""
    drop_label: float = 0.1
    """The same for the class, independently."""
    flips: bool = False
    """Uses the mirrored moments for half of the samples; encode must have been told `flips: true`."""
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic; its weights stay float32, but for those beside a pretrained denoiser's
    adapters, which are not trained."""
    tokens: float = added(1.0)
    """Share of a transformer's tokens that its middle blocks see until the cooldown; the others pass by
    (Krause et al., 2025, "TREAD"), which is faster, and better for the time."""
    accumulate: int = added(1)
    """Pieces of a worker's share of the batch, of which one at a time is in memory."""
    compile: bool = added(False)
    """Compiles the network's blocks in the first minutes: for a GPU, or a CPU that trains for hours."""
    guard: GuardConfig = added(GuardConfig())
    """When it goes back to a checkpoint, and leaves out what did harm."""
    ema_width: float | None = added(None)
    """Width of the snapshot's average, made after training of those that `optimization.ema_others` kept;
    `optimization.ema` if None. Another width takes seconds, not another training."""

    parallel: ParallelConfig = execution(DDPConfig())
    """How several workers share the training."""
    recompute: bool = execution(False)
    """Makes the blocks' activations again in the backward pass instead of keeping them: about a third slower,
    in a fraction of the memory, to the same result."""
    cache: CacheConfig = execution(CacheConfig())
    """Of what is read from s3, gs or az, on each machine."""
    loaders: int = execution(2)
    """Threads of each worker that make its batches, ahead of the step; the order is the same for any."""
    sampler: SamplerConfig = execution(HeunConfig())
    """Of the live pictures, and the snapshot's own choice when it is asked to draw."""
    guidance: GuidanceConfig = execution(GuidanceConfig())
    """The same."""
    prompts: tuple[str, ...] = execution(())
    """Of the live pictures; captions of the validation split, or classes, if empty."""
    validation_samples: int = execution(256)
    """Held-out samples that the curve is measured on, at most."""
    validate_every: int | None = execution(None)
    """Images between two points of the held-out curve; a twentieth of the run if None."""
    samples_every: int | None = execution(None)
    """Images between two rows of pictures; an eighth of the run if None."""
    kid_every: int | None = execution(None)
    """Images between two figures of KID against held-out samples, as `evaluate` measures it; none if None."""
    kid_samples: int = execution(256)
    """Held-out samples, and as many drawings, that each is measured on, at most."""
    beside: bool | None = execution(None)
    """Makes pictures and KID in a worker beside, while training goes on; it leaves some out where it cannot
    keep up. If None: on Ray where a CPU is free, and a GPU for a training on GPUs; else between two steps."""
    checkpoint_every: int | None = execution(None)
    """Images between two checkpoints, beside those by time."""
    checkpoint_seconds: float | None = execution(60.0)
    """Seconds between two checkpoints; what a killed run loses at most."""

    def __post_init__(self) -> None:
        check_training(self.images_seen, self.batch, self.optimization, self.resources)
        check_parallel(self.parallel, self.resources)
        if not 0 < self.tokens <= 1:
            raise ValueError(f"tokens is {self.tokens}; it is a share, above 0 and at most 1.")
        if self.tokens < 1 and not isinstance(self.network, DiTConfig):
            raise ValueError("`tokens` are a transformer's: set `network: {kind: dit}`, or leave them out.")
        if (self.features is None) != (self.alignment is None):
            raise ValueError(
                "`alignment` and `features` (an extract stage) go together: set both or neither."
            )
        if self.alignment is not None and (self.tokens < 1 or not isinstance(self.network, DiTConfig)):
            raise ValueError(
                "`alignment` needs all tokens of a transformer: `network: {kind: dit}`, `tokens: 1`."
            )
        if self.alignment is not None and self.low_resolution is not None:
            raise ValueError("`alignment` is not for upscalers: leave it or `low_resolution` out.")
        if not 1 <= self.accumulate <= self.batch:
            raise ValueError(f"accumulate is {self.accumulate}; it must be 1 to the batch of {self.batch}.")
        if self.ema_width is not None and not self.optimization.ema_others:
            raise ValueError(
                "`ema_width` needs stored averages: set `optimization.ema_others`, to [0.05] say."
            )
        if self.ema_width is not None and not 0 < self.ema_width <= 0.28:
            raise ValueError(f"ema_width is {self.ema_width}; it must be above 0 and at most 0.28.")
        for name in ("drop_text", "drop_label"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share, 0 to 1.")
        if self.null == "encoded" and self.text is None:
            raise ValueError("`null: encoded` needs `text`: name an embed stage, or leave it out.")
        if self.prompts and self.text is None:
            raise ValueError("`prompts` need `text`: name an embed stage, or leave them out.")
        if (self.low_resolution is None) != (self.originals is None):
            raise ValueError(
                "An upscaler needs both `low_resolution` and `originals` (the stage that made the images)."
            )
        if self.objective == "regression" and self.low_resolution is None:
            raise ValueError("`objective: regression` trains upscalers only: set `low_resolution`.")
        if self.resolution is not None and self.low_resolution is not None:
            raise ValueError("An upscaler is trained at its images' own size: leave `resolution` out.")
        if self.kid_every is not None and (self.kid_every < 1 or self.kid_samples < 8):
            raise ValueError("kid_every is at least 1, and kid_samples at least 8.")
        if self.kid_every is not None and self.low_resolution is not None:
            raise ValueError(
                "`kid_every` is not for upscalers: leave it out, and let evaluate_upscaler judge."
            )
        if self.prompts and self.low_resolution is not None:
            raise ValueError("An upscaler's pictures are of held-out images: leave `prompts` out.")

        check_mixing(self)
        if self.loaders < 1:
            raise ValueError(f"loaders is {self.loaders}; it must be at least 1.")

        check_pretrained(self)

    def unsuited(self, made: Mapping[str, Any]) -> dict[str, str]:
        return unsuited(self, made)

    def named(self) -> dict[str, str | None]:
        found = super().named()
        return {**found, "denoiser": None if self.denoiser is None else self.denoiser.path}

    def meaning(self) -> dict[str, Any]:
        if self.denoiser is None:
            return super().meaning()
        # Its weights stand for the path, and for the network that it takes the place of.
        said = {k: v for k, v in jsonable(self.denoiser).items() if k != "path"}
        return {**{k: v for k, v in super().meaning().items() if k != "network"}, "denoiser": said}

    def columns(self, name: str) -> tuple[str, ...]:
        if name in ("latents", "mix_latents"):
            return tuple(column(self.resolution, flipped=flip) for flip in (False, True)[: 1 + self.flips])
        return super().columns(name)

    def summary(self) -> str:
        given = [word for word, name in (("text", self.text), ("class", self.images)) if name]
        if self.low_resolution is not None:
            given = [f"{self.low_resolution.factor}x larger", *given]
        by = " by regression" if self.objective == "regression" else ""
        return f"{self.images_seen:,} images seen, {' and '.join(given) if given else 'unconditional'}{by}"

    def run(self, session: Session) -> dict[str, Any]:
        from pipelines.training.job import trained
        from pipelines.training.kid import check_judge

        inputs = self.given(session.inputs)
        check_inputs(self, inputs)
        if self.kid_every is not None:
            check_judge(session.inputs)
        check_mixed(self, session.inputs)
        self.begun(session.inputs)
        said = statistics_at(inputs["latents"].manifest["statistics"], self.resolution)
        images = session.inputs.get("images")
        text, autoencoder = session.inputs.get("text"), session.inputs["autoencoder"]
        result = trained(
            self,
            session,
            functools.partial(self.task, inputs),
            file="denoiser.safetensors",
            points=20,
            accumulate=self.accumulate,
            compile=self.compile,
            ema_width=self.ema_width,
            parallel=self.parallel,
            guard=self.guard,
            recompute=self.recompute,
            kid_every=self.kid_every,
            beside=self.beside,
            loaders=self.loaders,
        )
        name = "autoencoder.safetensors"
        session.output.replace(name, autoencoder.read(name))
        embedded = text.manifest["statistics"]["text"] if text else None
        result["files"][name] = autoencoder.record["files"][name]
        return {
            "task": "denoiser",
            "network": jsonable(self.begun(inputs)),
            "autoencoder": autoencoder.record["autoencoder"],
            "statistics": said["latents"],
            "latent_shape": said["shape"],
            "resolution": said["resolution"],
            "classes": images.classes if images else [],
            "text": embedded,
            "caption": embedded.get("template") if embedded else None,
            **({"null": self.null} if self.null != "learned" else {}),
            "sampling": {"sampler": jsonable(self.sampler), "guidance": jsonable(self.guidance)},
            **result,
        }

    def begun(self, inputs: Inputs) -> NetworkConfig | Begun:
        """`network`, as `initial` has it where there is one. `ValueError` where that is another."""
        if self.denoiser is not None:
            from pipelines.pretrained.begun import begun

            return begun(self.denoiser, inputs, null=self.null, half=self.precision == "bfloat16")
        from pipelines.training.tasks.initial import carried

        initial = inputs.get("initial")
        return self.network if initial is None else carried(self.network, initial, name=str(self.initial))

    def given(self, inputs: Inputs) -> dict[str, Any]:
        """The inputs, with latents scaled as a pretrained denoiser knows them."""
        if self.denoiser is None:
            return dict(inputs)
        from pipelines.pretrained.begun import scaled

        return scaled(inputs)

    def mixed(self, inputs: Inputs) -> list[dict[str, Any]]:
        """Datasets of each of `mix_latents`, by the names that the first one's have."""
        return mixed_with(inputs, len(self.mix_latents))

    def task(self, inputs: dict[str, Any], device: torch.device, workers: int) -> Task:
        from pipelines.training.tasks.denoiser import DenoiserTask

        return DenoiserTask(self, inputs, device=device, workers=workers)
