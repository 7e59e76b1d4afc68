"""Training a denoiser on stored moments, captions' embeddings and classes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion import randomness
from diffusion.conditioning import Conditioning
from diffusion.config import DiTConfig
from diffusion.denoiser import Denoiser
from diffusion.losses import plain_loss, regression
from diffusion.networks.routing import kept_tokens
from diffusion.upscaling import Upscaling, low_latents, residual_scale, shrink
from pipelines import pictures, sampling
from pipelines.buckets import listed
from pipelines.dataset import Dataset
from pipelines.embedders.embedding import TextEmbedding
from pipelines.embedders.storing import empty
from pipelines.encoding.columns import statistics_at
from pipelines.pretrained.denoiser import adapters_of, denoiser_of, times_of, weights_of
from pipelines.prompts import formatted
from pipelines.sampling import Drawing, LatentModel, normalised
from pipelines.stage import KEEP
from pipelines.stream import TrainingStream
from pipelines.training.kid import FEWEST, Kid
from pipelines.training.tasks.aligned import Features, aligned, plain, wanted
from pipelines.training.tasks.aligned import losses as aligning
from pipelines.training.tasks.initial import begin
from pipelines.training.tasks.mixture import Mixture
from pipelines.training.tasks.rows import memory_budget
from pipelines.training.tasks.samples import Samples, rows_of
from pipelines.training.tasks.small_images import SmallImages, SmallShare
from pipelines.training.tasks.texts import Texts
from pipelines.training.work import DenoiserWork

if TYPE_CHECKING:
    from pipelines.stages.train import Train

PICTURE_COLUMNS = 8
MEASURED = 64
"""Training samples from which the scale of an upscaler's residuals is taken."""
UPSCALED = ("small", "bicubic", "upscaled", "original")
MEMORY_SHARE = 0.4
TOKENS = 8
"""Captions of a training batch are padded to a multiple of it."""


@dataclass(frozen=True, eq=False)
class LatentShare:
    latents: Tensor
    """Drawn and whitened, [b, c, h, w]."""
    noise: Tensor
    t: Tensor
    """[b]."""
    conditioning: Conditioning
    small: SmallShare | None = None
    """For an upscaler."""
    features: Tensor | None = None
    """Of the clean images, [b, c, rows, columns], where they are aligned with."""

    def to(self, device: torch.device) -> LatentShare:
        return LatentShare(
            latents=self.latents.to(device, non_blocking=True),
            noise=self.noise.to(device, non_blocking=True),
            t=self.t.to(device, non_blocking=True),
            conditioning=self.conditioning.to(device, non_blocking=True),
            small=self.small.to(device) if self.small is not None else None,
            features=None if self.features is None else self.features.to(device, non_blocking=True),
        )


class DenoiserTask:
    """Rectified-flow velocity with text and class dropped at load (Lipman et al., 2023; Ho and Salimans,
    2022); of residuals, where a small image is among the conditions (`diffusion.upscaling`)."""

    def __init__(self, stage: Train, inputs: dict[str, Any], *, device: torch.device, workers: int) -> None:
        self.stage, self.device = stage, device
        names = ("latents", "text", "images", "originals", "features", KEEP)
        datasets: dict[str, Dataset] = {n: inputs[n] for n in names if inputs.get(n) is not None}
        train = rows_of(stage, datasets, split="train", workers=workers)
        held_out = rows_of(stage, datasets, split="validation", optional=True, workers=workers)
        self.classes = datasets["images"].classes if "images" in datasets else []
        count = 1 + len(stage.mix_latents)
        texts = functools.partial(Texts, workers=workers * count)
        self.texts = texts(datasets["text"]) if "text" in datasets else None
        budget = memory_budget(share=MEMORY_SHARE, workers=workers * count)
        given: dict[str, Any] = {"texts": self.texts, "classes": self.classes, "budget": budget}
        self.samples = Samples(stage, train, **given)
        parts = [self.samples]
        for others in stage.mixed(inputs):
            rows = rows_of(stage, others, split="train", workers=workers)
            given["texts"] = texts(others["text"]) if "text" in others else None
            parts.append(Samples(stage, rows, **given, statistics=self.samples.statistics))
        given["texts"] = self.texts
        self.mixture = Mixture(parts, stage.mix_weights)
        self.length, self.lines, self.shuffle = len(self.mixture), self.mixture.lines, stage.shuffle
        self.groups = tuple(self.mixture.by_size.values())
        channels, height, width = self.samples.moments.shape
        if height != width and not self.groups:
            raise ValueError(
                f"Latents of {height} x {width}: the network takes square ones; set ingest's `resize: crop`, "
                "or `buckets`."
            )
        small = self.samples.small
        if small is not None and small.config.crop is not None:
            height = width = small.config.crop // small.latent
        self.shape = (channels // 2, height, width)
        """Of what a training step sees; with several sizes, of that which most samples have."""
        told, factor = datasets["latents"].manifest["statistics"], self.samples.factor
        said = statistics_at(told, stage.resolution)["shape"]
        sides = [side // factor for size in self.mixture.by_size for side in size]
        _check_patches(stage, sides, self.samples.factor)
        self.largest = max(sides, default=height)
        """Longest side of a step's latents."""
        self.text_width = self.texts.width if self.texts else None
        self.pooled_width = self.texts.pooled_width if self.texts else None
        self.nothing = empty(self.texts.record) if self.texts and stage.null == "encoded" else None
        """What a sample without its caption sees in its place."""
        self.network = stage.begun(inputs)
        self.module: nn.Module = self.network.build(
            channels=self.shape[0],
            # Of several, the square with their area stands for all in a transformer's positions.
            size=said[1] if self.groups else height,
            classes=len(self.classes),
            text_width=self.text_width,
            pooled_width=self.pooled_width,
            low_channels=self.shape[0] if small is not None else 0,
        ).to(device)
        if inputs.get("initial") is not None:
            begin(
                self.module,
                inputs["initial"],
                name=str(stage.initial),
                channels=self.shape[0],
                classes=self.classes,
                text_width=self.text_width,
                pooled_width=self.pooled_width,
                upscales=small is not None,
            )
        self.features = Features(train, budget=budget) if stage.alignment is not None else None
        if stage.alignment is not None and self.features is not None:
            self.module = aligned(self.module, stage.alignment, self.features).to(device)
        self._work = DenoiserWork(
            self.network,
            self.module,
            text_width=self.text_width,
            pooled_width=self.pooled_width,
            low_channels=self.shape[0] if small is not None else 0,
        )
        self.times = times_of(self.network, stage.times)
        self.autoencoder = inputs["autoencoder"].autoencoder().to(device).eval()
        self.originals: list[np.ndarray] = []
        self.upscaling = self._upscaling(small) if small is not None else None
        count = min(len(held_out), stage.validation_samples)
        shown = Samples(stage, held_out, **given) if count else self.samples
        self.held_out = self._held_out(shown, count) if count else []
        self.drawings, self.titles = self._drawings(shown)
        self._unseen = shown if count else None
        if stage.kid_every is not None:
            self._judges()

    @property
    def remote(self) -> bool:
        return self.mixture.remote

    def fetch(self, indices: np.ndarray) -> None:
        self.mixture.fetch(indices)

    def share(self, positions: np.ndarray, indices: np.ndarray) -> LatentShare:
        seed = self.stage.seed
        samples = self.mixture if self.stage.mix_latents else self.samples
        share = self._share(samples, seed, positions, indices, batch=self.stage.batch)
        no_text = randomness.uniform(seed, positions, "drop text") < self.stage.drop_text
        no_label = randomness.uniform(seed, positions, "drop label") < self.stage.drop_label
        conditioning = share.conditioning.drop(text=no_text, label=no_label)
        route = self._route(positions, *share.latents.shape[-2:])
        features = None
        if self.features is not None and wanted(self.stage, positions):
            features = self.features.of(indices, self.samples.flips(seed, positions))
        return replace(share, conditioning=replace(conditioning, route=route), features=features)

    def _route(self, positions: np.ndarray, height: int, width: int) -> Tensor | None:
        """Tokens that the middle blocks see; all of them (None) in the cooldown, as in use."""
        stage, network = self.stage, self.stage.network
        start = positions[0] // stage.batch * stage.batch
        if stage.tokens == 1 or start > stage.images_seen - stage.optimization.cooldown:
            return None
        assert isinstance(network, DiTConfig)
        count = (height // network.patch) * (width // network.patch)
        return kept_tokens(stage.seed, positions, count, stage.tokens)

    def losses(self, module: nn.Module, share: LatentShare) -> Tensor:
        latents, conditioning = share.latents, share.conditioning
        if self.upscaling is not None and share.small is not None:
            low = low_latents(
                share.small.small, self.upscaling.factor, self.autoencoder, self.samples.statistics
            )
            latents = self.upscaling.residual(latents, low)
            conditioning = self.upscaling.tell(conditioning, low, share.small.noise, share.small.level)
        if self.stage.objective == "regression":
            return regression(Denoiser(module), latents, conditioning)

        def denoising(network: Any) -> Tensor:
            denoiser = denoiser_of(self.network, network)
            return plain_loss(denoiser, latents, share.noise, share.t, conditioning)

        if self.stage.alignment is not None:
            return aligning(self.stage.alignment, module, share.features, denoising)
        return denoising(module)

    def work(self, share: LatentShare) -> float | None:
        return self._work(tuple(share.latents.shape), share.conditioning)

    @torch.no_grad()
    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Mean loss over the validation split, with noise and times fixed by position."""
        if not self.held_out:
            return {}
        losses = torch.cat([self.losses(module, share.to(self.device)) for share in self.held_out])
        return {"validation_loss": losses.double().mean().item()}

    @torch.no_grad()
    def picture(self, module: nn.Module) -> bytes:
        """The same few drawings each time, from the same noise."""
        from PIL import Image

        images = sampling.draw(
            self._model(module),
            self.drawings,
            seed=self.stage.seed,
            sampler=self.stage.sampler,
            guidance=self.stage.guidance,
            micro_batch=len(self.drawings),
        )
        rows = [images]
        if self.upscaling is not None:
            given = [drawing.small for drawing in self.drawings if drawing.small is not None]
            rows = [given, sampling.enlarged(given, self.upscaling.factor), images, self.originals]
        labels = UPSCALED if self.upscaling is not None else ()
        grid = [[Image.fromarray(image) for image in row] for row in rows]
        return pictures.grid(grid, row_labels=labels, column_labels=self.titles)

    def judge(self, module: nn.Module) -> dict[str, float]:
        stage = self.stage
        return self._kid(self._model(module), seed=stage.seed, sampler=stage.sampler, guidance=stage.guidance)

    def about(self) -> dict[str, Any]:
        return self._kid.about()

    def _judges(self) -> Samples:
        """The held-out samples. `ValueError` where they are too few to judge by."""
        count = 0 if self._unseen is None else len(self._unseen.rows)
        if self._unseen is None or count < FEWEST:
            raise ValueError(
                f"`kid_every` judges by held-out samples, at least {FEWEST}, and there are {count}: raise "
                "ingest's `split.validation`, or leave it out."
            )
        return self._unseen

    @functools.cached_property
    def _kid(self) -> Kid:
        held_out, seed = self._judges(), self.stage.seed
        count = min(self.stage.kid_samples, len(held_out.rows))
        indices = np.arange(count)
        texts, labels = held_out.captions(seed, indices, indices), held_out.labels(indices)
        drawings = [
            Drawing(index=n, text=text, label=label)
            for n, (text, label) in enumerate(zip(texts, labels, strict=True))
        ]
        moments = [held_out.moments[[n]][0] for n in range(count)]
        return Kid(moments, drawings, self.autoencoder, device=self.device)

    def _model(self, module: nn.Module) -> LatentModel:
        return LatentModel(
            denoiser=denoiser_of(self.network, plain(module)),
            autoencoder=self.autoencoder,
            statistics=self.samples.statistics,
            shape=self.shape,
            classes=len(self.classes),
            text_width=self.text_width,
            pooled_width=self.pooled_width,
            nothing=self.nothing,
            device=self.device,
            tile=sampling.tile(self.network, self.largest),
            upscaling=self.upscaling,
            regression=self.stage.objective == "regression",
        )

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = {"mixture": self.mixture.facts()} if self.stage.mix_latents else {}
        if self.groups:
            return {"sizes": listed({size: len(n) for size, n in self.mixture.by_size.items()}), **found}
        if self.upscaling is None:
            return found
        _, size, _ = self.shape
        return {"upscaling": {**self.upscaling.to_json(), "size": size}, "objective": self.stage.objective}

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        return weights_of(self.network, plain(module))

    def beside(self, module: nn.Module) -> dict[str, dict[str, Tensor]]:
        return adapters_of(self.network, plain(module))

    def _share(
        self, samples: Samples | Mixture, seed: int, positions: np.ndarray, indices: np.ndarray, *, batch: int
    ) -> LatentShare:
        texts = samples.captions(seed, positions, indices)
        seen = [text for text in (*texts, self.nothing) if text is not None]
        longest = max((len(text.states) for text in seen), default=1)
        latents, small = samples.latents(seed, positions, indices), None
        if samples.small is not None:
            flips = samples.flips(seed, positions)
            latents, small = samples.small.cut(latents, seed, positions, indices, flip=flips)
        return LatentShare(
            latents=latents,
            small=small,
            noise=randomness.normal(seed, positions, latents.shape[1:], "noise"),
            t=self.times(randomness.stratified(seed, positions, batch)),
            conditioning=sampling.conditioning(
                texts,
                samples.labels(indices),
                classes=len(self.classes),
                text_width=self.text_width,
                pooled_width=self.pooled_width,
                nothing=self.nothing,
                length=-(-longest // TOKENS) * TOKENS,
            ),
        )

    def _upscaling(self, small: SmallImages) -> Upscaling:
        """Measured on the same samples by every rank, and again when a training is resumed."""
        seed = self.stage.seed
        chosen = TrainingStream(self.length, seed, MEASURED, lines=self.lines, shuffle=self.shuffle).indices(
            np.arange(min(MEASURED, self.length))
        )
        latents = self.samples.latents(seed, np.arange(len(chosen)), chosen)
        images = normalised(torch.from_numpy(small.images[chosen]).permute(0, 3, 1, 2))
        if self.samples.flipped is not None:
            flip = torch.from_numpy(self.samples.flips(seed, np.arange(len(chosen))))
            images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        config = small.config
        shrunk = shrink(images, config.factor).to(self.device)
        low = low_latents(shrunk, config.factor, self.autoencoder, self.samples.statistics).cpu()
        return Upscaling(factor=config.factor, noise=config.noise, scale=residual_scale(latents, low))

    def _held_out(self, samples: Samples, count: int) -> list[LatentShare]:
        # A seed of its own: the noise of a held-out sample is not that of a training sample.
        seed = self.stage.seed + 1
        alike = [rows[rows < count] for rows in samples.by_size.values()] or [np.arange(count)]
        batch = self.stage.batch
        runs = [rows[n : n + batch] for rows in alike for n in range(0, len(rows), batch)]
        return [self._share(samples, seed, run, run, batch=count) for run in runs]

    def _drawings(self, samples: Samples) -> tuple[list[Drawing], list[str]]:
        """The live row: the stage's prompts, else captions of held-out samples, else classes."""
        if self.stage.prompts:
            texts, titles = self._prompts(self.stage.prompts), list(self.stage.prompts)
            return [Drawing(index=n, text=text) for n, text in enumerate(texts)], titles
        indices = np.arange(min(PICTURE_COLUMNS, len(samples.rows)))
        if samples.small is not None:
            large, small = samples.small.whole(indices)
            self.originals = list(large)
            return [Drawing(index=n, small=image) for n, image in enumerate(small)], []
        if self.texts is not None:
            texts = samples.captions(self.stage.seed, indices, indices)
            return [Drawing(index=n, text=text) for n, text in enumerate(texts)], []
        if self.classes:
            shown = [n % len(self.classes) for n in range(PICTURE_COLUMNS)]
            return [Drawing(index=n, label=c) for n, c in enumerate(shown)], [self.classes[c] for c in shown]
        return [Drawing(index=n) for n in range(PICTURE_COLUMNS)], []

    def _prompts(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        if self.texts is None:
            raise ValueError(
                "`prompts` needs a `text` input (a finished embed stage): set one, or leave prompts out."
            )
        template = self.texts.template
        return self.texts.encoder.encode([formatted(template, prompt) for prompt in prompts])


def _check_patches(stage: Train, sides: Sequence[int], factor: int) -> None:
    """`ValueError` where a transformer's patches do not tile the latents of some size."""
    network = stage.network
    if (
        stage.denoiser is None
        and isinstance(network, DiTConfig)
        and any(side % network.patch for side in sides)
    ):
        raise ValueError(
            f"Patches of {network.patch} do not tile latents of all sizes: set ingest's `buckets.step` to a "
            f"multiple of {network.patch * factor}."
        )
