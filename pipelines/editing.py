"""Editing images with a model that draws: what is noisy is denoised, what is hidden is filled in, what is
there is drawn again.

from pipelines.editing import Inpaint, load
editor = load("emoji3d")
editor.edit([photo], Inpaint(mask="center"))[0].image
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipelines import models
from pipelines.sampling import transformer

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion.conditioning import Conditioning
    from diffusion.config import GuidanceConfig, SamplerConfig
    from diffusion.denoiser import AnyDenoiser
    from diffusion.randomness import Draws
    from diffusion.samplers.sampler import Sampler
    from pipelines.embedders.embedding import TextEmbedding
    from pipelines.models import SnapshotFolder

MaskName = Literal["masks", "center", "left", "right", "top", "bottom"]
BRIGHT = 128
"""Of a mask image: what is at least as bright is to be filled in."""
STRETCHES = 10
"""Into which inpainting cuts its way."""
GREY = 64
"""Side of the images on which noise is measured, px."""
KEPT = 4096
"""Captions whose embeddings are kept."""


@dataclass(frozen=True, kw_only=True)
class Denoise:
    """Takes Gaussian noise of a known level out of an image."""

    kind: Literal["denoise"] = "denoise"
    noise: float = 0.1
    """Its standard deviation, as a share of the range from black to white."""
    add: bool = False
    """Adds the noise first: to see, on clean images, what comes back."""
    sharp: bool = False
    """Draws one of the images that it could be, instead of their mean, which is nearer and softer."""

    def __post_init__(self) -> None:
        if not 0 < self.noise <= 2:
            raise ValueError(f"noise is {self.noise}; it must be above 0 and at most 2.")


@dataclass(frozen=True, kw_only=True)
class Inpaint:
    """Fills in a part of an image; the rest keeps its very pixels."""

    kind: Literal["inpaint"] = "inpaint"
    mask: MaskName = "masks"
    """Where: the stage's `masks` (bright is filled in), a half of each image, or its middle."""
    resamplings: int = 3
    """Times that each stretch of the way is drawn, so that what is new fits what is there."""

    def __post_init__(self) -> None:
        if self.resamplings < 1:
            raise ValueError(f"resamplings is {self.resamplings}; it must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class ImageToImage:
    """Draws an image again, from itself with noise mixed in."""

    kind: Literal["image_to_image"] = "image_to_image"
    strength: float = 0.5
    """How much may change: 0 nothing, 1 everything."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}; it must be 0 to 1.")


EditConfig = Denoise | Inpaint | ImageToImage


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One image to edit, and what is known of it."""

    index: int
    """Its noise is f(seed, index)."""
    image: np.ndarray
    """uint8 [h, w, 3]."""
    mask: np.ndarray | None = None
    """bool [h, w], True where it is to be filled in."""
    text: TextEmbedding | None = None
    label: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """What an edit of a batch is done with."""

    denoiser: AnyDenoiser
    sampler: Sampler
    condition: Conditioning
    seed: int
    positions: np.ndarray
    stream: str

    def noise(self, like: Tensor, use: str) -> Tensor:
        from diffusion.randomness import normal

        shape = tuple(like.shape[1:])
        return normal(self.seed, self.positions, shape, f"{self.stream}, {use}").to(like.device)

    def draws(self, like: Tensor) -> Draws:
        from diffusion.randomness import Draws

        stream = f"{self.stream}, on the way"
        return Draws(self.seed, self.positions, tuple(like.shape[1:]), like.device, stream)


@dataclass(frozen=True, kw_only=True, eq=False)
class Edited:
    """What the model was shown, and what it made of it; uint8 [h, w, 3]."""

    given: np.ndarray
    image: np.ndarray


def load(reference: str | Path, *, store: str | Path | None = None, device: str | None = None) -> Editor:
    """An editor by path, URL, name or registry; see `pipelines.models.load`."""
    return Editor(models.find(reference, store=store), device=device)


class Editor:
    """Edits images of the size that the model draws, or larger. `ValueError` for a snapshot that draws
    nothing by itself."""

    def __init__(self, folder: SnapshotFolder, *, device: str | None = None) -> None:
        self.generator = models.Generator(folder, device=device)
        self.model = self.generator.model
        whole = transformer(models.network_config(folder.record["network"]))
        self.least = self.model.tile * self.model.autoencoder.factor if whole else 1
        """Shortest side that the network takes, px."""
        self._texts: dict[str, TextEmbedding] = {}

    def edit(
        self,
        images: Sequence[Any],
        edit: EditConfig,
        *,
        masks: Sequence[Any] = (),
        prompts: Sequence[str | None] = (),
        seed: int = 0,
        sampler: SamplerConfig | None = None,
        guidance: GuidanceConfig | None = None,
        micro_batch: int = 1,
    ) -> list[Edited]:
        """Pillow images, each with its mask and prompt where there are any."""
        pictures = [
            Picture(
                index=n,
                image=np.asarray(image.convert("RGB")),
                mask=np.asarray(masks[n].convert("L")) >= BRIGHT if masks else None,
                text=self.text(prompt) if prompts and (prompt := prompts[n]) is not None else None,
            )
            for n, image in enumerate(images)
        ]
        return self.draw(
            pictures, edit, seed=seed, sampler=sampler, guidance=guidance, micro_batch=micro_batch
        )

    def text(self, prompt: str) -> TextEmbedding:
        """Of a prompt as it stands; kept, as many images of a dataset have the same."""
        if prompt not in self._texts:
            if len(self._texts) >= KEPT:
                self._texts.clear()
            self._texts |= self.generator.embed([prompt])
        return self._texts[prompt]

    def draw(
        self,
        pictures: Sequence[Picture],
        edit: EditConfig,
        *,
        seed: int,
        sampler: SamplerConfig | None = None,
        guidance: GuidanceConfig | None = None,
        micro_batch: int,
    ) -> list[Edited]:
        """Each picture edited, in the order given. It depends on seed, its index, itself and `micro_batch`.

        Raises:
            ValueError: a picture smaller than the network takes, or without the mask that the edit needs.
        """
        from pipelines.embedders.embedding import LENGTHS, batches, by_length

        for picture in pictures:
            self._check(picture, edit)
        lengths = [0 if p.text is None else len(p.text.states) for p in pictures]
        done: dict[int, Edited] = {}
        for length, positions in by_length(lengths, max(LENGTHS[-1], *lengths, 1) if lengths else 1).items():
            sizes: dict[tuple[int, ...], list[int]] = {}
            for position in positions:
                sizes.setdefault(pictures[position].image.shape, []).append(position)
            for alike in sizes.values():
                for rows, count in batches(alike, micro_batch):
                    chosen = [pictures[row] for row in rows]
                    made = self._draw(chosen, edit, length, seed, sampler, guidance)
                    done |= zip(rows[:count], made[:count], strict=True)
        return [done[n] for n in range(len(pictures))]

    def _draw(
        self,
        pictures: Sequence[Picture],
        edit: EditConfig,
        length: int,
        seed: int,
        sampler: SamplerConfig | None,
        guidance: GuidanceConfig | None,
    ) -> list[Edited]:
        """Pictures of one size, as many as a forward call takes."""
        import torch

        from diffusion.tiling import Tiled
        from pipelines import sampling

        model = self.model
        height, width = pictures[0].image.shape[:2]
        pixels = np.stack([filled(p.image, model.autoencoder.factor) for p in pictures])
        clean = sampling.normalised(torch.from_numpy(pixels).permute(0, 3, 1, 2)).to(model.device)
        condition = sampling.conditioning(
            [p.text for p in pictures],
            [p.label for p in pictures],
            classes=model.classes,
            text_width=model.text_width,
            pooled_width=model.pooled_width,
            nothing=model.nothing,
            length=length,
        ).to(model.device)
        guided = (guidance or self.generator.guidance).build(model.denoiser)
        work = _Work(
            denoiser=Tiled(guided, size=model.tile, overlap=model.tile // 4),
            sampler=(sampler or self.generator.sampler).build(),
            condition=condition,
            seed=seed,
            positions=np.array([p.index for p in pictures], dtype=np.int64),
            stream=f"edit: {edit.kind}",
        )
        with torch.no_grad():
            if isinstance(edit, Denoise):
                given, images = self._denoised(edit, work, clean)
            elif isinstance(edit, Inpaint):
                parts = np.stack([filled(_hidden(p, edit), model.autoencoder.factor) for p in pictures])
                given, images = self._inpainted(
                    edit, work, clean, torch.from_numpy(parts).to(model.device)[:, None]
                )
            else:
                given, images = self._redrawn(edit, work, clean)
        shown, made = sampling.to_pixels(given), sampling.to_pixels(images)
        return [
            Edited(given=shown[n, :height, :width], image=made[n, :height, :width])
            for n in range(len(pictures))
        ]

    def _denoised(self, edit: Denoise, work: _Work, clean: Tensor) -> tuple[Tensor, Tensor]:
        from diffusion.editing.denoising import denoise, draw_denoised

        given = clean + 2 * edit.noise * work.noise(clean, "added") if edit.add else clean
        latents, level = self._encode(given), self._level(edit.noise)
        if edit.sharp:
            answer = draw_denoised(
                work.sampler, work.denoiser, latents, level, work.condition, work.draws(latents)
            )
        else:
            answer = denoise(work.denoiser, latents, level, work.condition)
        return given, self._decode(answer)

    def _inpainted(self, edit: Inpaint, work: _Work, clean: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        from diffusion.editing.inpainting import RePaint

        # What is hidden is given the mean of the rest: the encoder is to see no edge where there is none.
        seen = (~hidden).sum((2, 3), keepdim=True).clamp(min=1)
        given = torch.where(hidden, torch.where(hidden, 0, clean).sum((2, 3), keepdim=True) / seen, clean)
        latents, known = self._encode(given), _known(hidden, self.model.autoencoder.factor)
        steps = work.sampler.steps
        paint = RePaint(
            sampler=work.sampler,
            resamplings=edit.resamplings if steps > 1 else 1,
            jump=max(1, steps // STRETCHES),
        )
        noise, draws = work.noise(latents, "noise"), work.draws(latents)
        answer = paint(work.denoiser, noise, latents, known, work.condition, draws)
        return given, torch.where(hidden, self._decode(answer), clean)

    def _redrawn(self, edit: ImageToImage, work: _Work, clean: Tensor) -> tuple[Tensor, Tensor]:
        from diffusion.editing.image_to_image import SDEdit

        latents = self._encode(clean)
        answer = SDEdit(sampler=work.sampler, strength=edit.strength)(
            work.denoiser, work.noise(latents, "noise"), latents, work.condition, work.draws(latents)
        )
        return clean, self._decode(answer)

    def _encode(self, images: Tensor) -> Tensor:
        return self.model.statistics.whiten(self.model.tiled.encode(images).mean)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.model.tiled.decode(self.model.statistics.unwhiten(latents))

    @functools.cache  # noqa: B019  # an editor lives as long as its process
    def _level(self, noise: float) -> float:
        """What noise of the pixels is in whitened latents: measured on grey images, as an autoencoder is no
        linear map."""
        import torch

        from diffusion.randomness import normal

        factor = self.model.autoencoder.factor
        side = factor * max(1, GREY // factor)
        grain = normal(0, np.arange(4), (3, side, side), "edit: level").to(self.model.device)
        difference = self._encode(2 * noise * grain) - self._encode(torch.zeros_like(grain))
        return float(difference.square().mean().sqrt())

    def _check(self, picture: Picture, edit: EditConfig) -> None:
        height, width = picture.image.shape[:2]
        if min(height, width) < self.least:
            raise ValueError(
                f"an image has {width} x {height} px; "
                f"this model edits images of {self.least} px and more a side."
            )
        if isinstance(edit, Inpaint) and edit.mask == "masks":
            if picture.mask is None:
                raise ValueError("an image has no mask: give one, or choose a part, as `mask: center`.")
            if picture.mask.shape != (height, width):
                raise ValueError(
                    f"an image of {width} x {height} px has a mask of "
                    f"{picture.mask.shape[1]} x {picture.mask.shape[0]}: they must be alike."
                )


def filled(image: np.ndarray, multiple: int) -> np.ndarray:
    """Sides brought to a multiple by repeating the border."""
    missing = [(0, -side % multiple) for side in image.shape[:2]]
    return np.pad(image, [*missing, *[(0, 0)] * (image.ndim - 2)], mode="edge")


def part(name: MaskName, height: int, width: int) -> np.ndarray:
    """A fixed part of an image, True there: a half, or the middle half of both sides."""
    mask = np.zeros((height, width), bool)
    rows = {"top": slice(0, height // 2), "bottom": slice(height // 2, None)}
    columns = {"left": slice(0, width // 2), "right": slice(width // 2, None)}
    middle = (slice(height // 4, height - height // 4), slice(width // 4, width - width // 4))
    mask[middle if name == "center" else (rows.get(name, slice(None)), columns.get(name, slice(None)))] = True
    return mask


def _hidden(picture: Picture, edit: Inpaint) -> np.ndarray:
    if edit.mask != "masks":
        return part(edit.mask, *picture.image.shape[:2])
    assert picture.mask is not None
    return picture.mask


def _known(hidden: Tensor, factor: int) -> Tensor:
    """Latents all of whose pixels are known."""
    import torch.nn.functional as F

    return F.max_pool2d(hidden.float(), factor) == 0
