"""What an evaluation measures in workers: features of images, of reconstructions and of noise, and losses.

Jobs are small and data only; every forward call has exactly `micro_batch` rows, so that results do not depend
on how jobs fall on workers.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cluster.storage import Storage
from pipelines.encoding import columns
from pipelines.scoring.features import Cache, Extractor, FeaturesConfig

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from diffusion.autoencoders.autoencoder import Autoencoder
    from diffusion.conditioning import Conditioning
    from diffusion.config import GuidanceConfig, SamplerConfig
    from pipelines.dataset import Dataset
    from pipelines.models import Generator, SnapshotFolder
    from pipelines.sampling import LatentModel
    from pipelines.training.tasks.rows import Rows

Place = tuple[str, int]
"""Shard name and row."""
HELD_OUT = ("validation", "test")
CONDITIONED = ("latents", "text", "images")
"""Inputs whose rows are joined for losses."""
THUMBNAIL = 32
"""Side in px at which images are compared to find copies: fine enough to tell them apart."""
UNTRAINED_STEPS = 4
"""A network that starts at zero velocity leaves noise as it is, in any number of steps."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work for a worker; its answer is (number, fp32 array)."""

    number: int
    what: Literal["images", "reconstructions", "thumbnails", "untrained", "losses", "drawn", "drawings"]
    dataset: str = ""
    """Input that the places are in."""
    places: tuple[Place, ...] = ()
    partners: tuple[Place, ...] = ()
    """For losses: whose conditions each sample is given instead of its own, as a second column."""
    decoded: bool = False
    """For thumbnails: whether the images pass through the model's autoencoder first."""
    indices: tuple[int, ...] = ()
    """Of images that a model draws, and for losses the samples' positions: what their noise depends on."""
    asked: tuple[tuple[str | None, str | None], ...] = ()
    """Caption and class of each image to draw; what a model does not read is left out."""

    def __len__(self) -> int:
        return len(self.places) or len(self.indices)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Opens what jobs need, each once a worker; what `Session.map` is given."""

    features: FeaturesConfig
    datasets: Mapping[str, str]
    """Input -> URL."""
    model: str | None
    """URL of the snapshot."""
    micro_batch: int
    draws: int
    """Times and noises of each sample's loss."""
    seed: int
    sampler: SamplerConfig | None = None
    """For images to draw."""
    guidance: GuidanceConfig | None = None

    def __call__(self) -> Callable[[Job], tuple[int, np.ndarray]]:
        opened = _Opened(self)
        return lambda job: (job.number, getattr(opened, job.what)(job))


class _Opened:
    """What a worker holds."""

    def __init__(self, measure: Measure) -> None:
        self.config = measure
        self.cache = Cache(extractor=f"{measure.features.identity()}/{measure.micro_batch}")

    @functools.cached_property
    def extractor(self) -> Extractor:
        return self.config.features.build()

    @functools.cached_property
    def snapshot(self) -> SnapshotFolder:
        from pipelines.models import SnapshotFolder

        assert self.config.model is not None
        return SnapshotFolder.open(Storage.at(self.config.model))

    @functools.cached_property
    def generator(self) -> Generator:
        from pipelines.models import Generator

        return Generator(self.snapshot)

    @property
    def model(self) -> LatentModel:
        return self.generator.model

    @functools.cached_property
    def autoencoder(self) -> Autoencoder:
        return self.snapshot.autoencoder()

    @functools.cache  # noqa: B019
    def dataset(self, name: str) -> Dataset:
        from pipelines.dataset import Dataset

        return Dataset.open(Storage.at(self.config.datasets[name]))

    def images(self, job: Job) -> np.ndarray:
        dataset = self.dataset(job.dataset)

        def features(places: Sequence[Place], count: int) -> np.ndarray:
            spans = [dataset.index(shard).member(n, "image") for shard, n in places]

            def make() -> np.ndarray:
                return self.extractor(self._plain(job.dataset, places))

            return self.cache.get([span[2] for span in spans if span], make)[:count]

        return self._batched(job.places, features, of=job.dataset)

    def reconstructions(self, job: Job) -> np.ndarray:
        """Features of what the autoencoder makes of images: the best that its latents can give."""

        def features(places: Sequence[Place], count: int) -> np.ndarray:
            return self.extractor(self._reconstructed(job.dataset, places))[:count]

        return self._batched(job.places, features, of=job.dataset)

    def thumbnails(self, job: Job) -> np.ndarray:
        """[n, 3 * THUMBNAIL**2] pixels in [0, 1]; real images as the autoencoder gives them back."""
        import numpy as np
        from PIL import Image

        def small(places: Sequence[Place], count: int) -> np.ndarray:
            images = (
                self._reconstructed(job.dataset, places) if job.decoded else self._plain(job.dataset, places)
            )
            resized = [image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX) for image in images[:count]]
            return np.stack([np.asarray(image, dtype=np.float32).ravel() / 255 for image in resized])

        return self._batched(job.places, small, of=job.dataset)

    def _plain(self, dataset: str, places: Sequence[Place]) -> list[Image]:
        from pipelines import pictures

        opened = self.dataset(dataset)
        return [pictures.decode(opened.read_member(shard, n, "image")) for shard, n in places]

    def _reconstructed(self, dataset: str, places: Sequence[Place]) -> list[Image]:
        import numpy as np
        import torch
        from PIL import Image

        from pipelines.arrays import pixels
        from pipelines.sampling import to_pixels

        opened, autoencoder = self.dataset(dataset), self.autoencoder
        images = np.stack([pixels(opened.read_member(shard, n, "image")) for shard, n in places])
        with torch.inference_mode():
            levels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
            decoded = to_pixels(autoencoder.decode(autoencoder.encode(levels / 127.5 - 1).mean))
        return [Image.fromarray(image) for image in decoded]

    def untrained(self, job: Job) -> np.ndarray:
        """Features of what the same network draws before it has learned anything."""
        import torch
        from PIL import Image

        from diffusion.config import EulerConfig, GuidanceConfig
        from pipelines import sampling
        from pipelines.models import network_config
        from pipelines.pretrained.denoiser import denoiser_of

        channels, size, _ = self.model.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            config = network_config(self.snapshot.record["network"])
            network = config.build(
                channels=channels,
                size=size,
                classes=self.model.classes,
                text_width=self.model.text_width,
                pooled_width=self.model.pooled_width,
            )
        fresh = denoiser_of(config, network.to(self.model.device).eval())
        model = dataclasses.replace(self.model, denoiser=fresh)
        drawn = sampling.draw(
            model,
            [sampling.Drawing(index=n) for n in job.indices],
            seed=self.config.seed,
            sampler=EulerConfig(steps=UNTRAINED_STEPS),
            guidance=GuidanceConfig(scale=1.0),
            micro_batch=self.config.micro_batch,
        )
        images = [Image.fromarray(image) for image in drawn]

        def features(numbers: Sequence[int], count: int) -> np.ndarray:
            return self.extractor([images[n] for n in numbers])[:count]

        return self._batched(range(len(images)), features)

    def drawn(self, job: Job) -> np.ndarray:
        """Features of what the model draws for `asked`; an image depends on seed, index and what is asked."""
        from PIL import Image

        images = [Image.fromarray(image) for image in self._drawn(job)]

        def features(numbers: Sequence[int], count: int) -> np.ndarray:
            return self.extractor([images[n] for n in numbers])[:count]

        return self._batched(range(len(images)), features)

    def drawings(self, job: Job) -> np.ndarray:
        """The same images themselves, uint8 [n, h, w, 3]."""
        import numpy as np

        return np.stack(self._drawn(job))

    def _drawn(self, job: Job) -> list[np.ndarray]:
        from diffusion.config import GuidanceConfig, HeunConfig
        from pipelines import sampling
        from pipelines.prompts import class_id

        reads, classes = self.model.text_width is not None, self.generator.classes
        embeddings = (
            self.generator.embed([text for text, _ in job.asked if text is not None]) if reads else {}
        )
        drawings = [
            sampling.Drawing(
                index=index,
                text=embeddings.get(text) if text is not None else None,
                label=class_id(label, classes) if label in classes else None,
            )
            for index, (text, label) in zip(job.indices, job.asked, strict=True)
        ]
        return sampling.draw(
            self.model,
            drawings,
            seed=self.config.seed,
            sampler=self.config.sampler or HeunConfig(),
            guidance=self.config.guidance or GuidanceConfig(),
            micro_batch=self.config.micro_batch,
        )

    def losses(self, job: Job) -> np.ndarray:
        """Mean loss of each sample with its own conditions, and with its partner's: [n, 2], or [n, 1]."""
        import numpy as np
        import torch

        from diffusion import randomness
        from diffusion.latents import Moments
        from diffusion.losses import flow_matching

        model, config = self.model, self.config
        held_out = _HeldOut(self)

        def losses(chosen: Sequence[int], count: int) -> np.ndarray:
            conditions = [[of[n] for n in chosen] for of in (job.places, job.partners) if of]
            positions = np.array([job.indices[n] for n in chosen], dtype=np.int64)
            moments = torch.from_numpy(np.stack([held_out.moments(place) for place in conditions[0]])).float()
            mean, std = moments.chunk(2, dim=1)
            noise = randomness.normal(config.seed, positions, mean.shape[1:], "evaluate posterior")
            latents = model.statistics.whiten(Moments(mean=mean, std=std).sample(noise)).to(model.device)
            given = [held_out.conditioning(of).to(model.device) for of in conditions]
            total = np.zeros((len(chosen), len(given)))
            for draw in range(config.draws):
                # the same noise and times for both: what differs is the condition alone
                noise = randomness.normal(config.seed, positions, mean.shape[1:], f"evaluate noise {draw}")
                u = randomness.uniform(config.seed, positions, f"evaluate times {draw}")
                t = ((u + draw) / config.draws).to(model.device)
                for column, condition in enumerate(given):
                    with torch.inference_mode():
                        found = flow_matching(model.denoiser, latents, noise.to(model.device), t, condition)
                    total[:, column] += found.double().cpu().numpy()
            return total[:count] / config.draws

        return self._batched(range(len(job.places)), losses, of="latents", places=job.places)

    def _batched(
        self,
        items: Sequence[Any],
        call: Callable[[Any, int], np.ndarray],
        *,
        of: str = "",
        places: Sequence[Place] = (),
    ) -> np.ndarray:
        """What `call` makes of runs of `micro_batch` items, row by row in their order. Where dataset `of` has
        several sizes, a run has one; an item's place in it is the item itself unless `places` says."""
        import numpy as np

        from pipelines.embedders.embedding import batches

        alike: dict[Any, list[int]] = {}
        for n in range(len(items)):
            alike.setdefault(self._size(of, (places or items)[n]) if of else None, []).append(n)
        found: dict[int, np.ndarray] = {}
        for numbers in alike.values():
            for run, count in batches(numbers, self.config.micro_batch):
                found |= zip(run[:count], call([items[n] for n in run], count), strict=True)
        return np.stack([found[n] for n in range(len(items))])

    def _size(self, name: str, place: Place) -> tuple[int, int] | None:
        """Width and height of a dataset's image; None where all have one size."""
        from pipelines import buckets

        dataset, (shard, n) = self.dataset(name), place
        if not buckets.known(dataset.manifest.get("statistics", {})):
            return None
        meta = dataset.index(shard).meta[n]
        return meta["width"], meta["height"]


class _HeldOut:
    """Moments and conditions of held-out samples by place."""

    def __init__(self, opened: _Opened) -> None:
        from pipelines.training.tasks.texts import Texts

        self.model, self.seed = opened.model, opened.config.seed
        self.datasets = {name: opened.dataset(name) for name in CONDITIONED if name in opened.config.datasets}
        self.rows = held_out(self.datasets)
        said = self.datasets["latents"].manifest.get("statistics", {})
        stored = columns.stored_resolution(said, opened.snapshot.record.get("resolution"))
        self.column = columns.column(stored)
        self.number = {place: (rows, n) for rows in self.rows for n, place in enumerate(rows.places())}
        self.texts = Texts(self.datasets["text"]) if self.model.text_width is not None else None

    def moments(self, place: Place) -> np.ndarray:
        """[2c, h, w]."""
        from pipelines.arrays import from_npy

        rows, n = self.number[place]
        return from_npy(rows.read(n, "latents", self.column))

    def conditioning(self, places: Sequence[Place]) -> Conditioning:
        """Padded to the longest caption of all, so that company changes nothing."""
        from pipelines import sampling

        longest = int(self.texts.record.get("longest", 1)) if self.texts else 1
        return sampling.conditioning(
            [self._text(place) for place in places],
            [self._label(place) for place in places],
            classes=self.model.classes,
            text_width=self.model.text_width,
            pooled_width=self.model.pooled_width,
            nothing=self.model.nothing,
            length=-(-longest // 8) * 8,
        )

    def _text(self, place: Place) -> Any:
        if self.texts is None:
            return None
        rows, n = self.number[place]
        digest = hashlib.sha256(f"{self.seed}/{place}".encode()).digest()
        return self.texts.choose(rows, n, (digest[0] + 0.5) / 256)

    def _label(self, place: Place) -> int | None:
        rows, n = self.number[place]
        if not self.model.classes or not rows.has(n, "images", "cls"):
            return None
        return int(rows.read(n, "images", "cls"))


def held_out(datasets: Mapping[str, Dataset], splits: Sequence[str] = HELD_OUT) -> list[Rows]:
    """Rows of each split that have moments, and a caption where captions are embedded."""
    from pipelines.training.tasks.rows import Rows

    required = {"latents": "moments.npy"} | ({"text": "text.json"} if "text" in datasets else {})
    return [Rows(datasets, split=split, required=required, optional=True) for split in splits]
