"""Captions by an image-to-text model of the transformers library, from a local folder."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipelines.captioners.caption import NOTHING, Answer, Caption, Subject
from pipelines.captioners.sight import seen
from pipelines.captioners.wording import whole_sentences
from pipelines.embedders.embedding import batches, device_at_hand
from pipelines.embedders.folder import folder_digest, local_folder

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_PARTS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True, kw_only=True)
class ImageToText:
    """Any model that `AutoModelForImageTextToText` reads: ViT-GPT2 and other encoder-decoders, BLIP, GIT,
    Florence-2, and chat models (LLaVA, Qwen-VL, Gemma 3), which are asked by their own chat template."""

    kind: Literal["transformers"] = "transformers"
    path: str = field(metadata={"execution": True})
    """Folder with config.json, processor, tokenizer and safetensors; its contents decide, not its place."""
    prompt: str = ""
    """What a chat model is asked ("Describe this image in one sentence."), a task token ("<CAPTION>"), or
    the words that a caption begins with; nothing where the model takes none."""
    max_tokens: int = 60
    """Of the answer; a longer one ends with its last whole sentence."""
    beams: int = 1
    """Answers that are followed at once, the likeliest of which is taken; 1 is greedy."""
    precision: Literal["float32", "bfloat16"] = "float32"
    weight: float = 1.0
    """Relative to the other captioners'."""
    micro_batch: int = 8
    """Images a forward call, which the last is padded to."""
    only_missing: bool = False
    """Asked only for images that the captioners before it gave nothing."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.beams < 1 or self.micro_batch < 1 or self.weight <= 0:
            raise ValueError(
                "transformers captions: max_tokens, beams and micro_batch are at least 1, weight above 0."
            )

    @property
    def columns(self) -> tuple[str, ...]:
        return ("image",)

    @property
    def summary(self) -> str:
        return f"what {self.path.rstrip('/').rpartition('/')[2]} sees"

    def external(self) -> dict[str, str]:
        """By contents: two of these in one stage do not stand in each other's way."""
        digest = folder_digest(self.path, _PARTS)
        return {f"transformers {digest[:12]}": digest}

    def build(self) -> ImageToTextCaptioner:
        return ImageToTextCaptioner(self)


class ImageToTextCaptioner:
    def __init__(self, config: ImageToText) -> None:
        self._config = config
        self._device = device_at_hand()
        self._model, self._processor, self._tokenizer = _load(config)
        self._model.to(self._device)
        self._text = _prompt(config.prompt, self._processor)
        self._known = inspect.signature(self._model.forward).parameters

    def answers(self, subjects: Sequence[Subject]) -> list[Answer]:
        return seen(subjects, self._inputs, self._said)

    def _said(self, inputs: Sequence[dict[str, Tensor]]) -> list[Answer]:
        said: dict[int, Answer] = {}
        for positions in _alike(inputs):
            for run, count in batches(positions, self._config.micro_batch):
                answers = self._generated([inputs[position] for position in run])
                said |= dict(zip(run[:count], answers, strict=False))
        return [said[position] for position in range(len(inputs))]

    def _inputs(self, image: Image) -> dict[str, Tensor]:
        """One image's, and the prompt's, with a first axis of one image."""
        arguments: dict[str, Any] = {"images": [image], "return_tensors": "pt"}
        if self._text:
            arguments["text"] = [self._text]
        if self._processor is not self._tokenizer and hasattr(self._processor, "tokenizer"):
            found = self._processor(**arguments)
        else:  # an image processor, whose tokenizer lies beside it
            found = self._processor(images=[image], return_tensors="pt")
        # Token types are the tokenizer's habit, and many a decoder does not know them.
        return {k: v for k, v in found.items() if k != "token_type_ids" or k in self._known}

    def _generated(self, run: Sequence[dict[str, Tensor]]) -> list[Answer]:
        import torch

        inputs = {name: torch.cat([one[name] for one in run]) for name in run[0]}
        inputs = {
            name: tensor.to(self._device, self._model.dtype if tensor.is_floating_point() else None)
            for name, tensor in inputs.items()
        }
        prompt = inputs["input_ids"].clone() if "input_ids" in inputs else None
        with torch.inference_mode():
            # Sampling is off whatever the folder's generation config says: equal images, equal captions.
            tokens = self._model.generate(
                **inputs,
                max_new_tokens=self._config.max_tokens,
                max_length=None,
                num_beams=self._config.beams,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
            )
        if prompt is not None and tokens[:, : prompt.shape[1]].equal(prompt):
            tokens = tokens[:, prompt.shape[1] :]  # a decoder repeats what it was asked
        texts = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [self._answer(text, row) for text, row in zip(texts, tokens.tolist(), strict=True)]

    def _answer(self, text: str, tokens: Sequence[int]) -> Answer:
        # One that came to its end has the mark of it, or padding behind that, in the last place.
        cut = len(tokens) >= self._config.max_tokens and tokens[-1] not in self._tokenizer.all_special_ids
        text = whole_sentences(text) if cut else text
        if not text.strip():
            return Answer(reject=NOTHING)
        caption = Caption(text=text, weight=self._config.weight, source="transformers")
        return Answer(captions=(caption,), meta={"cut": True} if cut else {})


def _alike(inputs: Sequence[dict[str, Tensor]]) -> Iterator[list[int]]:
    """Positions of inputs of equal shapes, which form a batch without padding.

    Padding would make an image's caption depend on how large its company is.
    """
    groups: dict[Any, list[int]] = {}
    for position, one in enumerate(inputs):
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in sorted(one.items()))
        groups.setdefault(shapes, []).append(position)
    yield from groups.values()


def _prompt(prompt: str, processor: Any) -> str:
    """As the model wants it: within its chat template, if it has one."""
    if not getattr(processor, "chat_template", None):
        return prompt
    content = [{"type": "image"}, *([{"type": "text", "text": prompt}] if prompt else [])]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )


def _load(config: ImageToText) -> tuple[Any, Any, Any]:
    """Model, processor of images (and text, if it has one) and tokenizer; no code of the folder is run."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = local_folder(config.path, ("config.json",))
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, use_safetensors=True, dtype=getattr(torch, config.precision), **local
        )
        processor = AutoProcessor.from_pretrained(folder, **local)
        if not hasattr(processor, "image_processor"):
            processor = AutoImageProcessor.from_pretrained(folder, **local)
        tokenizer = getattr(processor, "tokenizer", None) or AutoTokenizer.from_pretrained(folder, **local)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} does not load as an image-to-text model: {reason}") from error
    return model.eval(), processor, tokenizer
