"""Captions by a CoCa of open_clip (Yu et al., 2022), from a local folder or from a stage that trained it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipelines.captioners.caption import NOTHING, Answer, Caption, Subject
from pipelines.captioners.decoding import Beams, Decoding, Greedy, Sampled
from pipelines.captioners.sight import UNREADABLE, decoded
from pipelines.captioners.wording import whole_sentences
from pipelines.embedders.embedding import batches, device_at_hand
from pipelines.embedders.folder import folder_digest

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.coca.search import Found

_PARTS = ("*.safetensors", "*.json", "*.txt", "*.model")


@dataclass(frozen=True, kw_only=True)
class CoCa:
    """Any CoCa that open_clip reads whose text tower is its own. The search for words is ours: open_clip's
    `generate` does not run beside transformers 4.57 or later, and its beams add up logits."""

    kind: Literal["coca"] = "coca"
    path: str = field(default="", metadata={"execution": True})
    """Folder with open_clip_config.json, safetensors and, where the config names one, the tokenizer; its
    contents decide, not its place. "": the stage's `model`."""
    decoding: Decoding = Greedy()
    max_tokens: int = 30
    """Word pieces of a caption, and never more than its context holds; a longer one ends with its last whole
    sentence."""
    min_tokens: int = 0
    """Word pieces before which a caption does not end."""
    repetition_penalty: float = 1.0
    """Above 1, what was said already becomes less likely."""
    weight: float = 1.0
    """Relative to the other captioners'."""
    micro_batch: int = 8
    """Images a forward call, which the last is padded to."""
    only_missing: bool = False
    """Asked only for images that the captioners before it gave nothing."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.micro_batch < 1 or self.weight <= 0 or self.repetition_penalty <= 0:
            raise ValueError(
                "coca captions: max_tokens and micro_batch are at least 1, "
                "weight and repetition_penalty above 0."
            )
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(
                f"coca captions: min_tokens is {self.min_tokens}; it is 0 to max_tokens ({self.max_tokens})."
            )

    @property
    def columns(self) -> tuple[str, ...]:
        return ("image",)

    @property
    def beams(self) -> int:
        """Rows of the decoder that an image takes."""
        return self.decoding.beams

    @property
    def summary(self) -> str:
        return f"what {self.path.rstrip('/').rpartition('/')[2] or 'the model'} sees"

    def external(self) -> dict[str, str]:
        """By contents: two of these in one stage do not stand in each other's way."""
        if not self.path:
            return {}
        digest = folder_digest(self.path, _PARTS)
        return {f"coca {digest[:12]}": digest}

    def build(self) -> CoCaCaptioner:
        return CoCaCaptioner(self)


class CoCaCaptioner:
    def __init__(self, config: CoCa) -> None:
        from pipelines.coca.loading import load

        self._config = config
        self._device = device_at_hand()
        self._model, self._preprocess, self._words = load(config.path)
        self._model.to(self._device)
        self._rules = self._words.rules(
            min_tokens=config.min_tokens,
            max_tokens=config.max_tokens,
            repetition_penalty=config.repetition_penalty,
        )

    def answers(self, subjects: Sequence[Subject]) -> list[Answer]:
        found: list[Answer] = []
        for start in range(0, len(subjects), self._config.micro_batch):
            found += self._of_run(subjects[start : start + self._config.micro_batch])
        return found

    def _of_run(self, subjects: Sequence[Subject]) -> list[Answer]:
        """Of as many as a forward call takes, at most: more images need not be in memory."""
        answers = [Answer(reject=UNREADABLE)] * len(subjects)
        prepared: list[tuple[int, Any]] = []
        for number, subject in enumerate(subjects):
            image = decoded(subject.image or b"")
            if image is not None:
                prepared.append((number, self._preprocess(image)))
        for run, count in batches(prepared, self._config.micro_batch):
            said = self._said([pixels for _, pixels in run], [subjects[n].image or b"" for n, _ in run])
            for (number, _), found in zip(run[:count], said, strict=False):
                answers[number] = self._answer(found)
        return answers

    def _said(self, pixels: Sequence[Tensor], files: Sequence[bytes]) -> list[Found]:
        import torch

        from pipelines.coca import search
        from pipelines.coca.speaking import speaker

        decoding, images, device = self._config.decoding, len(pixels), self._device
        with torch.inference_mode():
            _, seen = self._model._encode_image(torch.stack(list(pixels)).to(device))
            model = speaker(self._model, seen, beams=decoding.beams)
            if isinstance(decoding, Beams):
                return search.beams(
                    model, images, self._rules, device,
                    width=decoding.width, length_penalty=decoding.length_penalty,
                )  # fmt: skip
            choose = search.likeliest if isinstance(decoding, Greedy) else self._chance(decoding, files)
            return search.follow(model, images, self._rules, choose, device)

    def _chance(self, decoding: Sampled, files: Sequence[bytes]) -> Any:
        import numpy as np
        import torch

        from diffusion.randomness import generator
        from pipelines.coca import search

        # By the bytes and not by the key: what is kept of an image is found again under another name.
        places = [int.from_bytes(hashlib.sha256(file).digest()[:8], "big") for file in files]
        drawn = [generator(decoding.seed, p, "caption").random(self._rules.max_tokens) for p in places]
        return search.sampled(
            torch.from_numpy(np.stack(drawn)),
            temperature=decoding.temperature,
            top_k=decoding.top_k,
            top_p=decoding.top_p,
        )

    def _answer(self, found: Found) -> Answer:
        text = self._words.text(found.tokens)
        text = text if found.ended else whole_sentences(text)
        if not text.strip():
            return Answer(reject=NOTHING)
        caption = Caption(text=text, weight=self._config.weight, source="coca")
        return Answer(captions=(caption,), meta={} if found.ended else {"cut": True})
