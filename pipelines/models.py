"""Snapshots: weights to use and share, found by path, URL, name or registry, and turned into pictures.

from pipelines.models import load
model = load("emoji3d")
model.generate(["a rocket"])[0].save("rocket.png")
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage import Storage
from pipelines.buckets import Size, known, main, named
from pipelines.dataset import MANIFEST
from pipelines.pretrained.folder import PIPELINE
from pipelines.pretrained.reference import SCHEME
from pipelines.prompts import asks
from pipelines.snapshot import (
    SnapshotFolder,
    autoencoder_config,
    guidance_config,
    network_config,
    sampler_config,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffusion.config import GuidanceConfig, SamplerConfig
    from pipelines.embedders import TextEmbedder
    from pipelines.sampling import LatentModel

__all__ = [
    "MICRO_BATCH",
    "Generator",
    "SnapshotFolder",
    "autoencoder_config",
    "find",
    "guidance_config",
    "latent_model",
    "latent_shape",
    "latent_sides",
    "load",
    "network_config",
    "registered",
    "sampler_config",
    "shipped",
]

SHIPPED = Path(__file__).parent / "snapshots"
OWN = (MANIFEST, PIPELINE)
"""What tells that a folder is a model's."""
MICRO_BATCH = 4


def load(reference: str | Path, *, store: str | Path | None = None, device: str | None = None) -> Generator:
    """A model that draws.

    Args:
        reference: a snapshot's folder (path or URL), the name of one that ships with the project, a
            registered model, `models:/name@alias` or `models:/name/3`, or a whole pipeline of diffusers: a
            folder, or `org/name@COMMIT` of the hub.
        store: whose registry is asked, and into which a pipeline is taken; `LATENTMILL_STORE` or ./store if
            None.
        device: of torch; a GPU if None and there is one.

    Raises:
        ValueError: nothing of that name, not a denoiser, or damaged.
    """
    folder = find(reference, store=store)
    return Generator(folder, device=device)


def latent_model(folder: SnapshotFolder, *, device: str | None = None) -> LatentModel:
    """A snapshot's network and autoencoder, ready to draw; on a GPU if `device` is None and there is one.

    `ValueError` for an autoencoder's snapshot.
    """
    import torch

    from diffusion.latents import LatentStatistics
    from diffusion.upscaling import Upscaling
    from pipelines.embedders.storing import empty
    from pipelines.pretrained.denoiser import denoiser_of
    from pipelines.sampling import LatentModel, tile

    record = folder.record
    if record.get("task") != "denoiser":
        told = "a snapshot of an autoencoder, which draws nothing; give one of a train stage."
        if record.get("task") == "pretrained":
            told = "a pretrained denoiser without autoencoder and texts: train with it as `denoiser`."
        raise ValueError(f"{folder.storage.url} is {told}")
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    channels, size, _ = record["latent_shape"]
    told = record.get("upscaling")
    upscaling = Upscaling.from_json(told) if told else None
    config = network_config(record["network"])
    text = record.get("text") or {}
    text_width, pooled_width = text.get("width"), text.get("pooled_width")
    if "adopted" in folder.manifest:
        from pipelines.pretrained.denoiser_folder import module_of

        network = config.around(module_of(folder), classes=len(folder.classes))
    else:
        network = config.build(
            channels=channels,
            size=told["size"] if told else size,
            classes=len(folder.classes),
            text_width=text_width,
            pooled_width=pooled_width,
            low_channels=channels if told else 0,
        )
        inner = network.model if config.kind == "diffusers" else network
        inner.load_state_dict(folder.tensors("denoiser.safetensors"))
    network = network.to(chosen).eval().requires_grad_(False)
    return LatentModel(
        denoiser=denoiser_of(config, network),
        autoencoder=folder.autoencoder().to(chosen).requires_grad_(False),
        statistics=LatentStatistics.from_json(record["statistics"]),
        shape=latent_shape(record),
        classes=len(folder.classes),
        text_width=text_width,
        pooled_width=pooled_width,
        nothing=empty(text) if record.get("null") == "encoded" else None,
        device=chosen,
        tile=tile(config, told["size"] if told else max(latent_sides(record))),
        upscaling=upscaling,
        regression=record.get("objective") == "regression",
    )


def latent_shape(record: Mapping[str, Any], size: Size | None = None) -> tuple[int, int, int]:
    """[c, h, w] of the latents of an image of `size`, px; by default of the size that most training images
    had.

    `ValueError` where the model was not trained on that size.
    """
    (channels, height, width), sizes = record["latent_shape"], known(record)
    if not sizes and size in (None, (record.get("resolution"),) * 2):
        return channels, height, width
    if size is not None and size not in sizes:
        learned = ", ".join(map(named, sizes)) or f"{record.get('resolution')} px squares alone"
        raise ValueError(f"The model was not trained on images of {named(size)}: it draws {learned}.")
    factor, (across, down) = record["resolution"] // height, size or main(sizes)
    return channels, down // factor, across // factor


def latent_sides(record: Mapping[str, Any]) -> list[int]:
    """Sides of all latents that a model was trained on."""
    return [side for size in [*known(record)] or [None] for side in latent_shape(record, size)[1:]]


def find(reference: str | Path, *, store: str | Path | None = None) -> SnapshotFolder:
    """The snapshot that a reference names; see `load`."""
    text = os.fspath(reference)
    if text.startswith("models:/"):
        return SnapshotFolder.open(Storage.at(registered(text, store=store)))
    bare = "/" not in text and "@" not in text and not any((Path(text) / n).exists() for n in OWN)
    if bare and text in shipped():
        return SnapshotFolder.open(Storage.at(SHIPPED / text))
    if bare:
        names = ", ".join(shipped()) or "none"
        raise ValueError(
            f"There is no snapshot {text!r}: give a folder, models:/name@alias, or one that ships ({names})."
        )
    storage = None if text.startswith(SCHEME) else Storage.at(text)
    if storage is None or not storage.exists(MANIFEST):
        from pipelines.pretrained.adoption import adopted

        here = Storage.at(store or os.environ.get("LATENTMILL_STORE", "store"))
        storage = adopted(text, here, part="pipeline", fetch=lambda done, of: None, ask=True)
    if storage is None:
        raise ValueError(f"There is no finished snapshot at {text}, and no pipeline of diffusers.")
    return SnapshotFolder.open(storage)


def shipped() -> list[str]:
    """Names of the snapshots that come with the project."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{MANIFEST}"))


def registered(reference: str, *, store: str | Path | None = None) -> str:
    """URL of the snapshot that a registered model stands for.

    Raises:
        ValueError: the registry has no such model, alias or version, or cannot be reached.
    """
    from pipelines.registry import Registry

    registry = Registry.of(Storage.at(store or os.environ.get("LATENTMILL_STORE", "store")))
    return registry.place(registry.resolve(reference)).url


class Generator:
    """Draws images. Loads weights at once and the text encoder with the first prompt."""

    def __init__(self, folder: SnapshotFolder, *, device: str | None = None) -> None:
        """`ValueError` for a snapshot that does not draw from nothing."""
        self.folder = folder
        self.classes = folder.classes
        """Names of the classes that can be asked for."""
        self.model: LatentModel = latent_model(folder, device=device)
        if self.model.upscaling is not None:
            raise ValueError(
                f"{folder.storage.url} is an upscaler: name it beside a model that draws, "
                "or apply it to images with `latentmill apply upscale`."
            )

    @functools.cached_property
    def embedder(self) -> TextEmbedder:
        """The text encoder that the model was trained with. `ValueError` if another one is installed."""
        from pipelines import embedders

        if not self.folder.record.get("text"):
            raise ValueError("This model reads no text.")
        return embedders.load_text(self.folder.text())

    @property
    def sampler(self) -> SamplerConfig:
        """The sampler that the training drew its own pictures with."""
        return sampler_config(self.folder.record["sampling"]["sampler"])

    @property
    def guidance(self) -> GuidanceConfig:
        return guidance_config(self.folder.record["sampling"]["guidance"])

    def generate(
        self,
        prompts: Sequence[str] | None = None,
        *,
        classes: Sequence[str | int] | None = None,
        count: int | None = None,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | GuidanceConfig | None = None,
        sampler: SamplerConfig | None = None,
        size: Size | None = None,
        micro_batch: int = MICRO_BATCH,
    ) -> list[Image]:
        """Images for prompts, for classes (names or ids), for both side by side, or for nothing in
        particular.

        An image depends on seed, its index, its prompt and class, and on `micro_batch`; not on the others.

        Args:
            prompts: put into the caption template that the model was trained with: "a red fox" is enough.
            count: how many images; prompts and classes are repeated in turn. As many as there are of them if
            None.
            indices: one an image; 0, 1, 2, ... if None.
            steps: of the sampler; as in training if None.
            guidance: scale, 1 being none; as in training if None.
            size: width and height, px, one of those that it was trained on; the most frequent one if None.

        Raises:
            ValueError: the model knows no such class or size, or does not read text.
        """

        from PIL import Image

        from pipelines import sampling

        wanted = asks(
            prompts,
            classes,
            known=self.classes,
            text=self.model.text_width is not None,
            template=self.folder.record.get("caption"),
        )
        if count is None:
            count = len(indices) if indices is not None else len(wanted) or 1
        places = list(range(count) if indices is None else indices)
        if len(places) != count:
            raise ValueError(f"{count} images and {len(places)} indices: give as many.")
        chosen = sampler or self.sampler
        if steps is not None:
            chosen = dataclasses.replace(chosen, steps=steps)
        if isinstance(guidance, (int, float)):
            guidance = dataclasses.replace(self.guidance, scale=float(guidance))
        embeddings = self.embed([ask.prompt for ask in wanted if ask.prompt is not None])
        drawings = []
        for n, index in enumerate(places):
            ask = wanted[n % len(wanted)] if wanted else None
            text = embeddings[ask.prompt] if ask and ask.prompt is not None else None
            drawings.append(sampling.Drawing(index=index, text=text, label=ask.label if ask else None))
        images = sampling.draw(
            self.sized(size),
            drawings,
            seed=seed,
            sampler=chosen,
            guidance=guidance or self.guidance,
            micro_batch=micro_batch,
        )
        return [Image.fromarray(image) for image in images]

    def sized(self, size: Size | None) -> LatentModel:
        """The model as it draws images of a width and height, px; `ValueError` for one it was not trained
        on."""
        return dataclasses.replace(self.model, shape=latent_shape(self.folder.record, size))

    def embed(self, texts: Sequence[str]) -> dict[str, Any]:
        """Each distinct text's embedding; the encoder is not loaded without any."""
        distinct = list(dict.fromkeys(texts))
        return dict(zip(distinct, self.embedder.encode(distinct), strict=True)) if distinct else {}
