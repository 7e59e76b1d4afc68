"""A CoCa and its word pieces from a folder in open_clip's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clip import folder as clip
from pipelines.coca.search import Rules
from pipelines.embedders.folder import local_folder

if TYPE_CHECKING:
    import numpy as np


class Words:
    """What a tokenizer of open_clip's calls its pieces; start and end as it puts them around a text."""

    def __init__(self, tokenizer: Any, *, context: int, vocabulary: int, where: str) -> None:
        """
        Args:
            context: tokens that the model hears, start and end among them.
            vocabulary: tokens that the model can say.

        Raises:
            ValueError: it puts no start and end around a text, or has pieces that the model has not.
        """
        self._tokenizer, self._own = tokenizer, getattr(tokenizer, "tokenizer", tokenizer)
        self.context = context
        start, end, *rest = tokenizer(["", "a"], context_length=8)[0].tolist()
        self.start, self.end, self.pad = start, end, rest[0]
        if start == end or end == self.pad:
            raise ValueError(
                f"The tokenizer of {where} puts no start and end around a text; a CoCa needs both."
            )
        known = getattr(tokenizer, "vocab_size", None) or len(self._own)
        if known > vocabulary:
            raise ValueError(
                f"The tokenizer of {where} has {known:,} pieces and the model {vocabulary:,}: it is another "
                "model's."
            )
        special = {*getattr(self._own, "all_special_ids", ()), start, self.pad} - {self.end}
        self.never = (*sorted(special), *range(known, vocabulary))

    def rules(self, *, min_tokens: int, max_tokens: int, repetition_penalty: float = 1.0) -> Rules:
        # The start is heard before the first piece; the last piece need not be heard.
        longest = min(max_tokens, self.context)
        return Rules(
            start=self.start,
            end=self.end,
            never=self.never,
            min_tokens=min(min_tokens, longest),
            max_tokens=longest,
            repetition_penalty=repetition_penalty,
        )

    def tokens(self, text: str) -> np.ndarray:
        """int64 [context]: a text as training hears it, start and end around it, cut and padded."""
        return self._tokenizer([text], context_length=self.context)[0].numpy()

    def text(self, tokens: Sequence[int]) -> str:
        """Without start, end and padding."""
        kept = [token for token in tokens if token not in (self.start, self.end, self.pad)]
        return " ".join(self._own.decode(kept).split())


def load(path: str) -> tuple[Any, Any, Words]:
    """The model in evaluation mode on the CPU, what it does to an image first, and its words.

    Raises:
        ValueError: the folder holds no CoCa, or not all of it.
    """
    folder = local_folder(path)
    settings = model_config(folder)
    model, preprocess = clip.load(path)
    words = Words(
        load_tokenizer(path, settings),
        context=int(model.context_length),
        vocabulary=int(model.text_decoder.text_projection.shape[1]),
        where=str(folder),
    )
    return model, preprocess, words


def model_config(folder: Path) -> dict[str, Any]:
    """`model_cfg` of a folder; `ValueError` if it is not a CoCa's."""
    found = {}
    for file in [folder / clip.CONFIG] if (folder / clip.CONFIG).is_file() else sorted(folder.glob("*.json")):
        settings = json.loads(file.read_text(encoding="utf-8"))
        settings = settings.get("model_cfg", settings) if isinstance(settings, dict) else {}
        found = settings if "vision_cfg" in settings else found
    if found and "multimodal_cfg" not in found:
        raise ValueError(
            f"{folder} holds a CLIP, which does not write: give a CoCa, whose config has multimodal_cfg."
        )
    if found.get("text_cfg", {}).get("hf_model_name"):
        raise ValueError(
            f"{folder} has a text tower of the transformers library, which does not write word by word."
        )
    return found


def load_tokenizer(path: str, settings: dict[str, Any]) -> Any:
    """`ValueError` if the config names a tokenizer that is not in the folder."""
    folder = local_folder(path)
    name = settings.get("text_cfg", {}).get("hf_tokenizer_name")
    if name and not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.txt", "vocab.json")):
        raise ValueError(f"{folder} has no tokenizer.json: put the tokenizer {name} there.")
    return clip.load_tokenizer(path)
