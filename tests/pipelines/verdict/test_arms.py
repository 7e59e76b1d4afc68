from __future__ import annotations

import numpy as np
import pytest

from pipelines.verdict.arms import ARMS, class_balanced, log_prior, sample_weights

LABELS = np.repeat([0, 1, 2], [60, 30, 10])
BY_NAME = {arm.name: arm for arm in ARMS}


def test_the_effective_number_of_images() -> None:
    # Of n images 1 + beta + ... + beta^(n - 1) count.
    weights = class_balanced(np.array([1, 2, 3]), 0.5)
    assert weights == pytest.approx([1, 1 / 1.5, 1 / 1.75])
    assert class_balanced(np.array([1, 50]), 0.0) == pytest.approx([1, 1])
    assert class_balanced(np.array([10, 1000]), 1 - 1e-9) == pytest.approx([0.1, 0.001], rel=1e-4)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_no_arm_takes_larger_steps_than_another(arm) -> None:
    given = np.where(np.arange(100) % 2, 1.0, 0.25)
    weights = sample_weights(arm, LABELS, given, classes=3, beta=0.99)
    assert weights.mean() == pytest.approx(1)
    same = weights[LABELS == 1]
    assert same[1] / same[0] == pytest.approx(4), "a weight is kept next to another of its class"


def test_a_balanced_loss_gives_classes_equal_say() -> None:
    weights = sample_weights(BY_NAME["class_balanced"], LABELS, np.ones(100), classes=3, beta=1 - 1e-9)
    say = [weights[c == LABELS].sum() for c in range(3)]
    assert say == pytest.approx([100 / 3] * 3, rel=1e-4)
    assert set(sample_weights(BY_NAME["real"], LABELS, np.ones(100), classes=3, beta=0.9)) == {1.0}


def test_balanced_softmax_knows_the_frequencies_and_the_others_do_not() -> None:
    prior = log_prior(BY_NAME["balanced_softmax"], LABELS, classes=3)
    assert np.exp(prior) == pytest.approx([0.6, 0.3, 0.1])
    assert not log_prior(BY_NAME["augmented"], LABELS, classes=3).any()
