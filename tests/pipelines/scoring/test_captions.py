from __future__ import annotations

import itertools

import pytest

from pipelines.scoring.captions import best_constant, best_words, word_f1, words


def test_words_are_counted_without_case_and_punctuation() -> None:
    assert words("Keycap: #, O’Clock_2") == ["keycap", "#", "o", "clock", "2"]
    assert word_f1("a red fox", ["Fox"]) == pytest.approx(2 * 1 / 4)
    assert word_f1("man man man", ["man man boy"]) == pytest.approx(2 * 2 / 6)
    assert word_f1("fox", ["a car", "a fox", "a red fox"]) == pytest.approx(2 / 3)
    assert word_f1("fox", ["fox"]) == 1
    assert word_f1("", ["fox"]) == word_f1("fox", [""]) == word_f1("", [""]) == 0


def test_the_best_constant_is_the_best_of_all() -> None:
    references = [["red fox"], ["red car"], ["blue car"], ["red"], ["man", "a man"]]
    known = [" ".join(c) for n in (1, 2, 3) for c in itertools.permutations(["red", "car", "man", "fox"], n)]
    truth = max(sum(word_f1(caption, texts) for texts in references) / 5 for caption in known)
    caption, score = best_constant(known, references)
    assert score == pytest.approx(truth)
    assert sum(word_f1(caption, texts) for texts in references) / 5 == pytest.approx(score)
    assert best_constant(reversed(known), references) == (caption, score)
    put_together, with_words = best_words(references)
    assert with_words == pytest.approx(truth)
    assert set(put_together.split()) == set(caption.split())
