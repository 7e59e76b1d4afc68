"""Training a CLIP on images and their captions."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion import randomness
from pipelines import pictures
from pipelines.arrays import pixels
from pipelines.clip.contrastive import sigmoid_loss, softmax_loss
from pipelines.dataset import Dataset
from pipelines.scoring import retrieval
from pipelines.stage import KEEP
from pipelines.training.tasks.rows import Rows

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipelines.stages.train_clip import TrainClip

PICTURE_COLUMNS = 8


@dataclass(frozen=True, eq=False)
class PairShare:
    images: Tensor
    """The network's input [b, ...]."""
    texts: Tensor
    same: Tensor
    """int64 [b, 2]: numbers of the image and of the caption."""

    def to(self, device: torch.device) -> PairShare:
        return PairShare(*(t.to(device, non_blocking=True) for t in (self.images, self.texts, self.same)))


class ClipTask:
    """A pair is told from all others of the global batch; those that share image or caption are left out."""

    def __init__(
        self,
        stage: TrainClip,
        images: Dataset,
        captions: Dataset,
        *,
        keep: Dataset | None,
        device: torch.device,
    ) -> None:
        self.stage, self.device = stage, device
        datasets = {"images": images, "captions": captions}
        required = {"images": "image", "captions": "captions.json"}
        if keep is not None:
            datasets, required = {**datasets, KEEP: keep}, {**required, KEEP: KEEP}
        self._rows = Rows(datasets, split="train", required=required)
        self._held_out = Rows(datasets, split="validation", required=required, optional=True)
        self.length, self.groups = len(self._rows), ()
        listed = [_listed(self._rows, n) for n in range(self.length)]
        numbers: dict[str, int] = {}
        for captions_ in listed:
            for text, _ in captions_:
                numbers.setdefault(text, len(numbers))
        # Of each row its captions, and where each ends when they are laid side by side by weight.
        self._captions = [np.array([numbers[text] for text, _ in one], np.int64) for one in listed]
        self._edges = [np.cumsum([weight for _, weight in one]) for one in listed]
        self.model = stage.model.build(
            device, loss=stage.loss, temperature=stage.temperature, seed=stage.seed
        )
        self.module = self.model.module
        self._texts = self.model.texts(list(numbers))
        self._images = self.model.images(lambda n: _image(self._rows, n), self.length, flips=stage.flips)

        count = min(len(self._held_out), stage.validation_samples)
        # Evenly over the split: neighbours in it can be of one kind.
        self._chosen = (np.arange(count) * len(self._held_out) // max(1, count)).tolist()
        self._said = [_listed(self._held_out, n)[0][0] for n in self._chosen]
        if count:
            self._held_texts = self.model.texts(self._said)
            self._held_images = self.model.images(
                lambda n: _image(self._held_out, self._chosen[n]), count, flips=False
            )

    def share(self, positions: np.ndarray, indices: np.ndarray) -> PairShare:
        mirrored = np.zeros(len(indices), bool)
        if self.stage.flips:
            mirrored = (randomness.uniform(self.stage.seed, positions, "flip") < 0.5).numpy()
        u = randomness.uniform(self.stage.seed, positions, "caption").tolist()
        chosen = np.array([self._choose(n, x) for n, x in zip(indices.tolist(), u, strict=True)], np.int64)
        same = torch.from_numpy(np.stack([indices, chosen], 1))
        return PairShare(self._images(positions, indices, mirrored), self._texts[chosen], same)

    def losses(self, module: nn.Module, share: PairShare) -> Tensor:
        images, texts, scale, bias = module(share.images, share.texts)
        if self.stage.loss == "sigmoid":
            return sigmoid_loss(images, texts, share.same, scale=scale, bias=bias)
        return softmax_loss(images, texts, share.same, scale=scale)

    @torch.no_grad()
    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """How well held-out images and their first captions find one another."""
        if not self._chosen:
            return {}
        images, texts = self._vectors(module)
        found = retrieval.figures(images, texts, self._said)
        return {f"validation_{name}": value for name, value in found.items()}

    @torch.no_grad()
    def picture(self, module: nn.Module) -> bytes | None:
        """Held-out images over the caption that is nearest to each."""
        from PIL import Image as Pillow

        if not self._chosen:
            return None
        images, texts = self._vectors(module)
        nearest = (images @ texts.T).argmax(1)
        count = min(PICTURE_COLUMNS, len(self._chosen))
        places = [n * len(self._chosen) // count for n in range(count)]
        shown = [
            Pillow.fromarray(pixels(self._held_out.read(self._chosen[n], "images", "image"))) for n in places
        ]
        return pictures.grid([shown], column_labels=[self._said[nearest[n]] for n in places])

    def facts(self) -> dict[str, Any]:
        """`beside` is for the stage: files of the snapshot, as base64."""
        return {
            "pairs": self.length,
            "captions": len(self._texts),
            "held_out": {"split": "validation", "count": len(self._chosen)},
            "beside": {name: base64.b64encode(data).decode() for name, data in self.model.files().items()},
        }

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        return self.model.weights(module)

    def _choose(self, row: int, u: float) -> int:
        edges = self._edges[row]
        place = min(int(np.searchsorted(edges, u * edges[-1], side="right")), len(edges) - 1)
        return int(self._captions[row][place])

    def _vectors(self, module: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        images, texts = [], []
        none = np.empty(0, np.int64)
        for start in range(0, len(self._chosen), self.stage.micro_batch):
            rows = np.arange(start, min(start + self.stage.micro_batch, len(self._chosen)))
            given = self._held_images(none, rows, np.zeros(len(rows), bool)).to(self.device)
            one, other, *_ = module(given, self._held_texts[rows].to(self.device))
            images.append(one.float().cpu().numpy())
            texts.append(other.float().cpu().numpy())
        return np.concatenate(images), np.concatenate(texts)


def _listed(rows: Rows, number: int) -> list[tuple[str, float]]:
    """Words and weight of a row's captions, the first one first."""
    return [
        (c["text"], float(c["weight"])) for c in json.loads(rows.read(number, "captions", "captions.json"))
    ]


def _image(rows: Rows, number: int) -> Image:
    from PIL import Image as Pillow

    return Pillow.fromarray(pixels(rows.read(number, "images", "image")))
