"""Classifiers that depend on their seed and their images, and on nothing else."""

from __future__ import annotations

import numpy as np
import torch

from diffusion.config import OptimizationConfig
from pipelines.stages.judge import Judge
from pipelines.verdict.arms import ARMS
from pipelines.verdict.examples import Examples
from pipelines.verdict.trial import answers, trained, varied

SIZE = 16
STAGE = Judge(
    augmented="a",
    size=SIZE,
    width=8,
    batch=16,
    images_seen=640,
    optimization=OptimizationConfig(lr=5e-3, warmup=64, cooldown=320, ema=0.1),
    flips=False,
    shift=1,
    micro_batch=32,
)


def stripes(count: int, *, seed: int) -> Examples:
    """Two classes: stripes across and stripes along, anywhere, in noise."""
    draws = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    phase, place = draws.uniform(0, 6.3, (count, 1, 1)), np.arange(SIZE) * 1.2
    along = np.sin(place[None, None, :] + phase)
    images = np.where(labels[:, None, None] == 1, along, np.swapaxes(along, 1, 2))
    noisy = 128 + 60 * images[..., None] + draws.normal(0, 40, (count, SIZE, SIZE, 3))
    pixels = np.clip(noisy, 0, 255).astype(np.uint8)
    return Examples(images=pixels, labels=labels, weights=np.ones(count))


def test_it_learns_and_repeats_itself() -> None:
    train, test = stripes(64, seed=0), stripes(101, seed=1)
    found = [
        answers(trained(STAGE, ARMS[0], train, classes=2, seed=3), test, micro_batch=32) for _ in range(2)
    ]
    assert np.array_equal(*found)
    assert (found[0] == test.labels).mean() > 0.9
    other = trained(STAGE, ARMS[0], train, classes=2, seed=4)
    again = trained(STAGE, ARMS[0], train, classes=2, seed=3)
    assert not torch.equal(next(other.parameters()), next(again.parameters()))


def test_arms_differ_by_their_loss_alone() -> None:
    """On balanced images the balanced losses are the plain one, but for the rounding of the prior."""
    train = stripes(32, seed=0)
    plain, balanced, softmax = (
        torch.cat([p.flatten() for p in trained(STAGE, arm, train, classes=2, seed=0).parameters()])
        for arm in ARMS[:3]
    )
    assert torch.equal(plain, balanced)
    assert torch.allclose(plain, softmax, atol=1e-3)


def test_weights_count() -> None:
    """Half of the images say the opposite: which half is believed is a matter of their weights."""
    right, wrong, test = stripes(64, seed=0), stripes(64, seed=2), stripes(100, seed=1)
    for weight, least, most in ((0.1, 0.9, 1.0), (10.0, 0.0, 0.1)):
        both = Examples(
            images=np.concatenate([right.images[:], wrong.images[:]]),
            labels=np.concatenate([right.labels, 1 - wrong.labels]),
            weights=np.repeat([1.0, weight], 64),
        )
        module = trained(STAGE, ARMS[3], both, classes=2, seed=0)
        assert least <= (answers(module, test, micro_batch=32) == test.labels).mean() <= most


def test_images_are_mirrored_and_moved_by_their_place_in_the_stream() -> None:
    images = stripes(40, seed=0).images[:]
    places = np.arange(100, 140)
    mirrored = varied(images, places, seed=0, flips=True, shift=0)
    turned = [bool((a == b[:, ::-1]).all()) for a, b in zip(mirrored, images, strict=True)]
    assert 8 < sum(turned) < 32
    for one, image, flipped in zip(mirrored, images, turned, strict=True):
        assert np.array_equal(one, image[:, ::-1] if flipped else image)
    moved = varied(images, places, seed=0, flips=False, shift=2)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    seen = set()
    for n, one in enumerate(moved):
        (found,) = {
            (down, right)
            for down in range(5)
            for right in range(5)
            if np.array_equal(one, padded[n, down : down + SIZE, right : right + SIZE])
        }
        seen.add(found)
    assert {down for down, _ in seen} == {right for _, right in seen} == set(range(5))
    alone = varied(images[7:8], places[7:8], seed=0, flips=True, shift=2)
    assert np.array_equal(alone[0], varied(images, places, seed=0, flips=True, shift=2)[7])
