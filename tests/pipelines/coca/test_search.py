"""The search against all captions that there are, on models small enough to write them down."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.coca.search import Found, Rules, beams, follow, likeliest, log_probabilities, sampled

START, END, PAD = 0, 1, 2
CPU = torch.device("cpu")


class Table:
    """Logits that are a fixed random function of all that a row heard, and of its image."""

    def __init__(self, seeds: list[int], *, vocabulary: int, beams: int = 1) -> None:
        self.seeds, self.vocabulary = [s for s in seeds for _ in range(beams)], vocabulary
        self.heard: list[tuple[int, ...]] = [()] * len(self.seeds)

    def of(self, seed: int, heard: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng([seed, *heard]).normal(0, 1.5, self.vocabulary)

    def next(self, tokens: Tensor) -> Tensor:
        self.heard = [(*h, t) for h, t in zip(self.heard, tokens.tolist(), strict=True)]
        rows = zip(self.seeds, self.heard, strict=True)
        return torch.from_numpy(np.stack([self.of(seed, heard) for seed, heard in rows]))

    def take(self, rows: Tensor) -> None:
        self.heard = [self.heard[n] for n in rows.tolist()]


def rules(**fields: int | float) -> Rules:
    return Rules(**{"start": START, "end": END, "never": (START, PAD), "max_tokens": 4, **fields})  # type: ignore[arg-type]


def all_captions(seed: int, given: Rules, *, vocabulary: int, length_penalty: float) -> list[Found]:
    """Every caption that the rules allow, with its score, from the definition."""
    table = Table([seed], vocabulary=vocabulary)
    words = [n for n in range(vocabulary) if n not in (*given.never, END)]
    found = []
    for length in range(given.min_tokens, given.max_tokens + 1):
        for caption in itertools.product(words, repeat=length):
            said, total = (START,), 0.0
            steps = caption if length == given.max_tokens else (*caption, END)
            for token in steps:
                logits = torch.from_numpy(table.of(seed, said))[None]
                total += log_probabilities(logits, torch.tensor([said]), given)[0, token].item()
                said = (*said, token)
            ended = length < given.max_tokens
            found.append(Found(caption, ended, total / len(steps) ** length_penalty))
    return found


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("more", [{}, {"min_tokens": 2}, {"repetition_penalty": 1.7}])
def test_beams_wide_enough_find_the_best_of_all(more: dict[str, float], length_penalty: float) -> None:
    """Three words and four steps have 121 captions: 130 beams keep each."""
    seeds, width, given = [3, 4, 5], 130, rules(**more)
    found = beams(
        Table(seeds, vocabulary=6, beams=width), 3, given, CPU, width=width, length_penalty=length_penalty
    )
    for seed, one in zip(seeds, found, strict=True):
        every = all_captions(seed, given, vocabulary=6, length_penalty=length_penalty)
        truth = max(every, key=lambda f: f.score)
        assert one.tokens == truth.tokens
        assert one.ended == truth.ended
        assert one.score == pytest.approx(truth.score)


def test_probabilities_of_all_captions_add_up_to_one() -> None:
    every = all_captions(3, rules(), vocabulary=6, length_penalty=0.0)
    assert len(every) == 1 + 3 + 9 + 27 + 81
    assert sum(math.exp(f.score) for f in every) == pytest.approx(1)


def test_one_beam_is_greedy_and_more_find_likelier_ones() -> None:
    seeds = list(range(40))
    greedy = follow(Table(seeds, vocabulary=6), 40, rules(), likeliest, CPU)
    one = beams(Table(seeds, vocabulary=6, beams=1), 40, rules(), CPU, width=1, length_penalty=1.0)
    assert one == greedy
    assert len({len(f.tokens) for f in greedy}) > 3
    wide = beams(Table(seeds, vocabulary=6, beams=8), 40, rules(), CPU, width=8, length_penalty=1.0)
    better = [w.score - g.score for w, g in zip(wide, greedy, strict=True)]
    assert np.mean(better) > 0.005
    assert sum(b > 0 for b in better) >= 3


@pytest.mark.parametrize("width", [1, 2, 5])
def test_company_changes_no_caption(width: int) -> None:
    seeds = list(range(12))
    together = beams(
        Table(seeds, vocabulary=6, beams=width), 12, rules(), CPU, width=width, length_penalty=1.0
    )
    for seed, one in zip(seeds, together, strict=True):
        alone = beams(
            Table([seed], vocabulary=6, beams=width), 1, rules(), CPU, width=width, length_penalty=1.0
        )
        assert alone == [one]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1.0, "top_k": None, "top_p": None}, [0.4, 0.3, 0.2, 0.1]),
        (
            {"temperature": 0.5, "top_k": None, "top_p": None},
            [0.16 / 0.3, 0.09 / 0.3, 0.04 / 0.3, 0.01 / 0.3],
        ),
        ({"temperature": 1.0, "top_k": 2, "top_p": None}, [4 / 7, 3 / 7, 0, 0]),
        ({"temperature": 1.0, "top_k": None, "top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"temperature": 1.0, "top_k": None, "top_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),
    ],
)
def test_chance_has_the_stated_distribution(settings: dict, expected: list[float]) -> None:
    """Chi-square of 20,000 draws, whose 99.9 % quantile for 3 degrees of freedom is 16.3."""
    count = 20_000
    uniforms = torch.from_numpy(np.random.default_rng(0).random((count, 1)))
    logits = torch.tensor([0.2, 0.4, 0.1, 0.3], dtype=torch.float64).log().expand(count, 4)
    drawn = sampled(uniforms, **settings)(logits, 0)
    counts = np.bincount(drawn.numpy(), minlength=4)[[1, 3, 0, 2]]
    wanted = count * np.array(expected)
    assert (counts[wanted == 0] == 0).all()
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(wanted > 0, (counts - wanted) ** 2 / wanted, 0.0)
    assert terms.sum() < 16.3


def test_the_ends_of_chance_are_words_that_can_be_said() -> None:
    logits = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log().expand(2, 3)
    uniforms = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)
    assert sampled(uniforms, temperature=1.0, top_k=None, top_p=None)(logits, 0).tolist() == [0, 1]


def test_rules_hold_at_each_step() -> None:
    given = rules(min_tokens=3, max_tokens=5)
    seeds = list(range(30))
    for found in (
        follow(Table(seeds, vocabulary=6), 30, given, likeliest, CPU),
        beams(Table(seeds, vocabulary=6, beams=3), 30, given, CPU, width=3, length_penalty=0.0),
    ):
        assert {len(f.tokens) for f in found} == {3, 4, 5}
        assert all(not {START, PAD, END} & set(f.tokens) for f in found)
        assert all(f.ended == (len(f.tokens) < 5) for f in found)
    heavy = follow(Table(seeds, vocabulary=6), 30, rules(repetition_penalty=50.0), likeliest, CPU)
    plain = follow(Table(seeds, vocabulary=6), 30, rules(), likeliest, CPU)
    repeats = [sum(len(f.tokens) - len(set(f.tokens)) for f in found) for found in (heavy, plain)]
    assert repeats[0] < repeats[1] / 2
