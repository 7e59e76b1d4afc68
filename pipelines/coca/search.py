"""The search for a caption, word piece by word piece: greedy, in beams, or by chance.

A search sees a speaker alone, which gives the next piece's logits. What it finds for an image depends on
that image's logits, so the images beside it change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Speaker(Protocol):
    """A model that has heard the beginnings of some captions."""

    def next(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Logits of the token behind these, which each row hears now."""
        ...

    def take(self, rows: Int[Tensor, " rows"]) -> None:
        """Row n goes on from what row `rows[n]`, of the same image, has heard."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a caption may be."""

    start: int
    end: int
    never: tuple[int, ...] = ()
    """Tokens that are no words: start, padding and what the tokenizer does not know."""
    min_tokens: int = 0
    """Before its end."""
    max_tokens: int
    repetition_penalty: float = 1.0
    """Divides the positive logits of what was said already, and multiplies the others (Keskar et al., 2019,
    section 4.1)."""


@dataclass(frozen=True)
class Found:
    """An image's caption."""

    tokens: tuple[int, ...]
    """Without start and end."""
    ended: bool
    """False where `max_tokens` cut it off."""
    score: float
    """Sum of the log-probabilities of its tokens and its end, over (number of them)^length_penalty."""


Choose = Callable[[Float[Tensor, "rows vocabulary"], int], Int[Tensor, " rows"]]
"""Tokens from log-probabilities, given the number of the step."""


def follow(speaker: Speaker, images: int, rules: Rules, choose: Choose, device: torch.device) -> list[Found]:
    """One caption an image: what `choose` takes at each step. A row an image."""
    said = torch.full((images, 1), rules.start, device=device)
    ended = torch.zeros(images, dtype=torch.bool, device=device)
    score = torch.zeros(images, dtype=torch.float64, device=device)
    for step in range(rules.max_tokens):
        logits = log_probabilities(speaker.next(said[:, -1]), said, rules)
        chosen = torch.where(ended, rules.end, choose(logits, step))
        score += torch.where(ended, 0.0, logits.gather(1, chosen[:, None])[:, 0])
        said = torch.cat([said, chosen[:, None]], 1)
        ended = ended | (chosen == rules.end)
        if ended.all():
            break
    return [_found(row, rules.end, total) for row, total in zip(said.tolist(), score.tolist(), strict=True)]


def likeliest(logits: Float[Tensor, "rows vocabulary"], step: int) -> Int[Tensor, " rows"]:
    """Greedy."""
    return logits.argmax(-1)


def sampled(
    uniforms: Float[Tensor, "rows steps"], *, temperature: float, top_k: int | None, top_p: float | None
) -> Choose:
    """By chance: the k likeliest (Fan et al., 2018), and of these the fewest that have probability p together
    (Holtzman et al., 2020), both at the temperature.

    Args:
        uniforms: float64 numbers in [0, 1), one a row and step: all that is random.
    """

    def choose(logits: Tensor, step: int) -> Tensor:
        ordered, tokens = (logits / temperature).sort(dim=-1, descending=True, stable=True)
        if top_k is not None:
            ordered = ordered[:, :top_k]
        probabilities = ordered.softmax(-1)
        if top_p is not None:
            before = probabilities.cumsum(-1) - probabilities
            probabilities = torch.where(before < top_p, probabilities, 0.0)
        edges = probabilities.cumsum(-1)
        u = uniforms[:, step, None].to(edges.device) * edges[:, -1:]
        place = torch.searchsorted(edges, u, right=True)
        # Rounding may put u on the last edge, behind which nothing is.
        last = (probabilities > 0).sum(-1, keepdim=True) - 1
        return tokens.gather(1, torch.minimum(place, last))[:, 0]

    return choose


def beams(
    speaker: Speaker, images: int, rules: Rules, device: torch.device, *, width: int, length_penalty: float
) -> list[Found]:
    """One caption an image: the best of `width` that ended first (Wu et al., 2016, section 7).

    `width` rows an image, side by side. Of the 2 `width` likeliest continuations those that end among the
    first `width` are kept, and the first `width` of the others go on; `width` kept ones are enough.
    """
    rows = images * width
    said = torch.full((rows, 1), rules.start, device=device)
    score = torch.full((images, width), -torch.inf, dtype=torch.float64, device=device)
    score[:, 0] = 0.0  # all beams are one at first
    kept: list[list[Found]] = [[] for _ in range(images)]
    first = torch.arange(images, device=device)[:, None] * width
    for step in range(1, rules.max_tokens + 1):
        logits = log_probabilities(speaker.next(said[:, -1]), said, rules)
        vocabulary = logits.shape[-1]
        total = (score.reshape(rows, 1) + logits).reshape(images, width * vocabulary)
        best, places = total.topk(min(2 * width, total.shape[1]), dim=1)
        parents, tokens = first + places // vocabulary, places % vocabulary
        ends = tokens == rules.end

        for image in range(images):
            for rank in (ends[image, :width] & best[image, :width].isfinite()).nonzero()[:, 0].tolist():
                if len(kept[image]) < width:
                    words = (*said[parents[image, rank]].tolist(), rules.end)
                    kept[image].append(_found(words, rules.end, best[image, rank].item(), length_penalty))
        # Those that do not end, likeliest first; -inf fills up where there are too few.
        order = ends.to(torch.int8).sort(dim=1, stable=True)[1][:, :width]
        score = best.gather(1, order).masked_fill(ends.gather(1, order), -torch.inf)
        chosen = parents.gather(1, order).reshape(rows)
        said = torch.cat([said[chosen], tokens.gather(1, order).reshape(rows, 1)], 1)
        speaker.take(chosen)
        if all(len(one) == width for one in kept) or step == rules.max_tokens:
            break
    for image in range(images):
        for beam in range(width):
            total_score = score[image, beam].item()
            if len(kept[image]) < width and total_score > -torch.inf:
                words = said[image * width + beam].tolist()
                kept[image].append(_found(words, rules.end, total_score, length_penalty))
    return [max(one, key=lambda found: found.score) for one in kept]


def log_probabilities(
    logits: Float[Tensor, "rows vocabulary"], said: Int[Tensor, "rows length"], rules: Rules
) -> Float[Tensor, "rows vocabulary"]:
    """Of what the rules allow, in float64; -inf for what they do not."""
    logits = logits.double()
    if rules.repetition_penalty != 1.0:
        heard = logits.gather(1, said)
        punished = torch.where(heard > 0, heard / rules.repetition_penalty, heard * rules.repetition_penalty)
        logits = logits.scatter(1, said, punished)
    banned = [*rules.never, *([rules.end] if said.shape[1] <= rules.min_tokens else [])]
    forbidden = torch.tensor(banned, dtype=torch.long, device=logits.device)
    return logits.index_fill(1, forbidden, -torch.inf).log_softmax(-1)


def _found(row: Sequence[int], end: int, total: float, length_penalty: float = 1.0) -> Found:
    """From a row that starts with the start."""
    words = tuple(row[1:])
    ended = end in words
    count = words.index(end) + 1 if ended else len(words)
    return Found(words[: count - 1] if ended else words, ended, total / count**length_penalty)
