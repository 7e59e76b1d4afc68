from __future__ import annotations

import numpy as np
import pytest

from pipelines.scoring.retrieval import figures, interval


def test_counts_what_is_found_first() -> None:
    """Images 0 and 1 are found by their own text; 2 is nearer to text 0; lengths do not matter."""
    texts = np.eye(3)
    images = np.array([[2.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.9, 0.0, 0.4]])
    found = figures(images, texts, ["a", "b", "c"])
    assert found["image_to_text_r1"] == pytest.approx(2 / 3)
    assert found["text_to_image_r1"] == 1.0
    assert found["image_to_text_r10"] == 1.0
    assert found["chance_r1"] == pytest.approx(1 / 3)
    # Of 3 x 6 comparisons, image 2's own cosine loses against .91, and no other.
    assert found["auc"] == pytest.approx(17 / 18)


def test_a_tie_is_no_success_and_an_equal_caption_is_one() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.0]])
    apart, alike = figures(vectors, vectors, ["a", "b"]), figures(vectors, vectors, ["a", "a"])
    assert (apart["image_to_text_r1"], apart["auc"]) == (0.0, 0.5)
    assert alike["image_to_text_r1"] == alike["chance_r1"] == 1.0


def test_noise_is_at_chance() -> None:
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(2, 400, 32))
    found = figures(images, texts, [str(n) for n in range(400)])
    assert found["auc"] == pytest.approx(0.5, abs=0.03)
    assert found["image_to_text_r10"] == pytest.approx(10 / 400, abs=0.025)


def test_interval_is_wilsons() -> None:
    """Of 15 in 148, as in Newcombe (1998), Table I."""
    assert interval(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert interval(0.0, 50)[0] == 0.0
