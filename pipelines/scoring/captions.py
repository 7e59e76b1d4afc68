"""How near a caption comes to what people wrote: the words that they share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"[^\W_]+|[#*]")


def words(text: str) -> list[str]:
    """In lower case, without punctuation; # and * are words, as keycaps' names have them."""
    return _WORD.findall(text.lower())


def word_f1(caption: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the caption's words, each counted as often as it occurs
    (Rajpurkar et al., 2016, section 6.1), against the best of the references: 0 to 1."""
    said = Counter(words(caption))
    best = 0.0
    for reference in references:
        wanted = Counter(words(reference))
        shared = (said & wanted).total()
        if shared:
            best = max(best, 2 * shared / (said.total() + wanted.total()))
    return best


def best_constant(candidates: Iterable[str], references: Sequence[Sequence[str]]) -> tuple[str, float]:
    """The one caption that, said of every image, has the highest mean F1; the first of equals in order.

    Args:
        references: texts of each image.
    """
    scored = [(_mean(caption, references), caption) for caption in sorted(set(candidates))]
    score, caption = max(scored, key=lambda one: one[0])
    return caption, score


def best_words(references: Sequence[Sequence[str]]) -> tuple[str, float]:
    """Words that, said of every image, have a mean F1 that no further word raises: from nothing, always the
    best one more. It knows the references, as no captioner does."""
    known = sorted({word for texts in references for text in texts for word in words(text)})
    said, best = "", 0.0
    while True:
        caption, score = best_constant((f"{said} {word}".strip() for word in known), references)
        if score <= best:
            return said, best
        said, best = caption, score


def _mean(caption: str, references: Sequence[Sequence[str]]) -> float:
    return sum(word_f1(caption, texts) for texts in references) / len(references)
