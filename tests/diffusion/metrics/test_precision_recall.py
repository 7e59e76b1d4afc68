from __future__ import annotations

import math

import pytest
import torch

from diffusion.metrics.precision_recall import precision_recall


def brute_force(query: list[list[float]], centres: list[list[float]], k: int) -> float:
    inside = 0
    for q in query:
        for n, c in enumerate(centres):
            others = sorted(math.dist(c, o) for m, o in enumerate(centres) if m != n)
            if math.dist(q, c) <= others[k - 1]:
                inside += 1
                break
    return inside / len(query)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_same_as_brute_force(k: int):
    generator = torch.Generator().manual_seed(k)
    real = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    generated = 0.8 * torch.randn(30, 3, generator=generator, dtype=torch.float64) + 0.5
    found = precision_recall(real, generated, k=k)
    assert found.precision == pytest.approx(brute_force(generated.tolist(), real.tolist(), k))
    assert found.recall == pytest.approx(brute_force(real.tolist(), generated.tolist(), k))
    assert 0 < found.precision < 1


def test_a_model_that_repeats_one_mode_is_precise_and_covers_half():
    real = torch.cat([torch.randn(100, 2), torch.randn(100, 2) + 50])
    found = precision_recall(real, torch.randn(200, 2), k=5)
    assert found.precision > 0.8
    assert 0.35 < found.recall <= 0.5


def test_a_model_that_misses_everything_has_neither():
    found = precision_recall(torch.randn(50, 2), torch.randn(50, 2) + 100)
    assert (found.precision, found.recall) == (0, 0)
