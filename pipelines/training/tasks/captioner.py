"""Training a CoCa of open_clip on images and their captions."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion import randomness
from pipelines import pictures
from pipelines.clip.contrastive import softmax_loss
from pipelines.clip.folder import batched
from pipelines.coca.making import begun
from pipelines.coca.search import follow, likeliest
from pipelines.coca.speaking import speaker
from pipelines.dataset import Dataset
from pipelines.scoring.captions import word_f1
from pipelines.stage import KEEP
from pipelines.training.tasks.decoded import decoded
from pipelines.training.tasks.rows import Rows, memory_budget
from pipelines.training.tasks.texts import pick

if TYPE_CHECKING:
    from pipelines.stages.train_captioner import TrainCaptioner

SHOWN = 8
MEMORY_SHARE = 0.4
LARGEST_SCALE = 4.6052
"""Of the cosines' factor, ln 100 (Radford et al., 2021, section 2.5)."""


class Captioning(nn.Module):
    """A CoCa as one call, which is what DDP can see."""

    def __init__(self, coca: Any) -> None:
        super().__init__()
        self.coca: Any = coca

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Vectors of images and texts of length 1, logits of the tokens behind the first, and the cosines'
        factor."""
        said = self.coca(images, tokens)
        scale = self.coca.logit_scale.clamp(max=LARGEST_SCALE).exp()
        return said["image_features"], said["text_features"], said["logits"], scale


@dataclass(frozen=True, eq=False)
class CaptionShare:
    images: Tensor
    """uint8 [b, 3, h, w]."""
    tokens: Tensor
    """int64 [b, context], start and end among them, padded."""
    same: Tensor
    """int64 [b, 2]: numbers of each pair's image and caption."""

    def to(self, device: torch.device) -> CaptionShare:
        return CaptionShare(*(t.to(device, non_blocking=True) for t in (self.images, self.tokens, self.same)))


class CaptionerTask:
    """Captioning and contrastive loss (Yu et al., 2022, equation 4)."""

    groups: tuple[np.ndarray, ...] = ()

    def __init__(
        self,
        stage: TrainCaptioner,
        datasets: Mapping[str, Dataset],
        files: Mapping[str, bytes],
        *,
        device: torch.device,
        workers: int,
    ) -> None:
        """
        Args:
            datasets: `images`, `captions` and perhaps `keep`.
            files: of the snapshot, all but its weights.
        """
        self.stage, self.device = stage, device
        required = {"images": "image", "captions": "captions.json"}
        required |= {KEEP: KEEP} if KEEP in datasets else {}
        self.rows = Rows(datasets, split="train", required=required)
        held_out = Rows(datasets, split="validation", required=required, optional=True)
        self.length = len(self.rows)

        coca, preprocess, self.words = begun(stage.network, files)
        self.module = Captioning(coca).to(device)
        single, self.normalise = batched(preprocess)

        def image(rows: Rows, number: int) -> np.ndarray:
            from PIL import Image

            with Image.open(io.BytesIO(rows.read(number, "images", "image"))) as opened:
                return np.asarray(single(opened.convert("RGB")))

        budget = memory_budget(share=MEMORY_SHARE, workers=workers)
        self.images = decoded(lambda n: image(self.rows, n), self.length, (), dtype=np.uint8, budget=budget)
        self._captions: dict[int, list[tuple[str, float]]] = {}
        self._tokens: dict[str, np.ndarray] = {}
        count = min(len(held_out), stage.validation_samples)
        self.held_out = [image(held_out, n) for n in range(count)]
        self.references = [[text for text, _ in listed(held_out, n)] for n in range(count)]

    def share(self, positions: np.ndarray, indices: np.ndarray) -> CaptionShare:
        stage, seed = self.stage, self.stage.seed
        images = self.images[indices]
        if stage.flips:
            flip = (randomness.uniform(seed, positions, "flip") < 0.5).numpy()
            images = np.where(flip[:, None, None, None], images[..., ::-1], images)
        if stage.shift:
            images = self._shifted(images, positions)
        chances = randomness.uniform(seed, positions, "caption").tolist()
        texts = []
        for number, u in zip(indices.tolist(), chances, strict=True):
            if number not in self._captions:
                self._captions[number] = listed(self.rows, number)
            texts.append(pick(self._captions[number], u))
        same = [(number, _number(text)) for number, text in zip(indices.tolist(), texts, strict=True)]
        return CaptionShare(
            torch.from_numpy(np.ascontiguousarray(images)), self._tokenized(texts), torch.tensor(same)
        )

    def losses(self, module: nn.Module, share: CaptionShare) -> Tensor:
        images, texts, logits, scale = module(self.normalise(share.images), share.tokens)
        captioning = caption_loss(logits, share.tokens, pad=self.words.pad)
        # Not left out at a weight of 0: every parameter is to have a gradient on every rank.
        contrastive = softmax_loss(images, texts, share.same, scale=scale)
        return self.stage.caption_weight * captioning + self.stage.contrastive_weight * contrastive

    @torch.no_grad()
    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Captioning loss of the held-out images' first captions, in nats a token, and the mean F1 of the
        words that it says of them."""
        if not self.held_out:
            return {}
        total, score = 0.0, 0.0
        for start in range(0, len(self.held_out), self.stage.batch):
            images = self._normalised(self.held_out[start : start + self.stage.batch])
            references = self.references[start : start + self.stage.batch]
            tokens = self._tokenized([texts[0] for texts in references]).to(self.device)
            logits = module(images, tokens)[2]
            total += caption_loss(logits, tokens, pad=self.words.pad).double().sum().item()
            said = self._said(module, images)
            score += sum(word_f1(text, texts) for text, texts in zip(said, references, strict=True))
        count = len(self.held_out)
        return {"validation_loss": total / count, "validation_word_f1": score / count}

    @torch.no_grad()
    def picture(self, module: nn.Module) -> bytes:
        """Held-out images, and what is said of them."""
        from PIL import Image

        shown = self.held_out[:SHOWN] or list(self.images[np.arange(min(SHOWN, self.length))])
        said = self._said(module, self._normalised(shown))
        row = [Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in shown]
        return pictures.grid([row], column_labels=said)

    def facts(self) -> dict[str, Any]:
        return {}

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        assert isinstance(module, Captioning)
        return module.coca.state_dict()

    def _normalised(self, images: Iterable[np.ndarray]) -> Tensor:
        return self.normalise(torch.from_numpy(np.stack(list(images))).to(self.device))

    def _said(self, module: nn.Module, images: Tensor) -> list[str]:
        assert isinstance(module, Captioning)
        rules = self.words.rules(min_tokens=0, max_tokens=self.stage.max_tokens)
        _, seen = module.coca._encode_image(images)  # pyright: ignore[reportCallIssue]
        found = follow(speaker(module.coca, seen), len(images), rules, likeliest, self.device)
        return [self.words.text(one.tokens) for one in found]

    def _tokenized(self, texts: list[str]) -> Tensor:
        for text in texts:
            if text not in self._tokens:
                self._tokens[text] = self.words.tokens(text)
        return torch.from_numpy(np.stack([self._tokens[text] for text in texts]))

    def _shifted(self, images: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Each moved by as many px down and right as its position says; what comes in repeats the edge."""
        most = max(1, round(self.stage.shift * images.shape[-1]))
        padded = np.pad(images, ((0, 0), (0, 0), (most, most), (most, most)), mode="edge")
        height, width = images.shape[-2:]
        moves = [
            np.minimum((randomness.uniform(self.stage.seed, positions, s).numpy() * (2 * most + 1)), 2 * most)
            for s in ("shift down", "shift right")
        ]
        return np.stack(
            [
                one[:, y : y + height, x : x + width]
                for one, y, x in zip(padded, *(m.astype(int).tolist() for m in moves), strict=True)
            ]
        )


def caption_loss(logits: Tensor, tokens: Tensor, *, pad: int) -> Tensor:
    """[b]: mean cross-entropy of each caption's tokens behind the start, its end among them, in nats.

    Args:
        logits: [b, context - 1, vocabulary]: of the tokens behind each but the last.
        tokens: [b, context].
    """
    wanted = tokens[:, 1:]
    losses = F.cross_entropy(logits.float().transpose(1, 2), wanted, ignore_index=pad, reduction="none")
    return losses.sum(1) / (wanted != pad).sum(1).clamp(min=1)


def _number(text: str) -> int:
    """The same on every rank."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def listed(rows: Rows, number: int) -> list[tuple[str, float]]:
    """A row's captions and their weights."""
    found = json.loads(rows.read(number, "captions", "captions.json"))
    return [(str(one["text"]), float(one["weight"])) for one in found]
