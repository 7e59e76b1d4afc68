"""Near-duplicates: what a photograph goes through is recognised, and other pictures are not taken for it."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from pipelines.duplicates import REACH, Look, clusters, look


def scene(seed: int) -> Image.Image:
    """Smooth noise of several scales: as different as photographs are."""
    draw = np.random.default_rng(seed)
    image = np.zeros((128, 128, 3))
    for side in (3, 6, 12):
        small = Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))
        image += np.asarray(small.resize((128, 128), Image.Resampling.BICUBIC), dtype=float) / 3
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image) -> Image.Image:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=40)
    return Image.open(sink)


COPIES = {
    "resized": lambda image: image.resize((77, 91)),
    "jpeg": jpeg,
    "mirrored": ImageOps.mirror,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "gray": lambda image: image.convert("L"),
    "brighter": lambda image: image.point([min(255, int(v * 0.8 + 40)) for v in range(256)] * 3),
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_found(copy: str) -> None:
    images = [scene(n) for n in range(60)]
    looks = [look(image) for image in images] + [look(COPIES[copy](image)) for image in images]
    found = clusters([f"{n}" for n in range(120)], looks, 4)
    assert sum(found[n + 60] == found[n] for n in range(60)) >= 59
    assert sum(found[n] == n for n in range(60)) == 60, "different scenes are one cluster"


def test_the_pairs_are_those_of_comparing_all() -> None:
    draw = np.random.default_rng(0)
    hashes = [int(h) for h in draw.integers(0, 2**63, 60, dtype=np.uint64)]
    hashes += [
        h ^ sum(1 << int(bit) for bit in draw.choice(64, bits, replace=False))
        for h in hashes[:]
        for bits in range(1, REACH + 2)
    ]
    # Each picture is its own mirror image, so that only the distance decides.
    looks = [Look(h, h) for h in hashes]
    for distance in range(REACH + 1):
        found = clusters([""] * len(looks), looks, distance)
        parents = list(range(len(looks)))

        def root(n: int, parents: list[int] = parents) -> int:
            while parents[n] != n:
                n = parents[n]
            return n

        for a, b in itertools.combinations(range(len(looks)), 2):
            if (hashes[a] ^ hashes[b]).bit_count() <= distance:
                x, y = sorted((root(a), root(b)))
                parents[y] = x
        assert found == [root(n) for n in range(len(looks))]


def test_equal_bytes_are_one_cluster_whatever_they_look_like() -> None:
    assert clusters(["a", "b", "a", "", ""], [None] * 5, -1) == [0, 1, 0, 3, 4]
    same = Look(1, 2)
    assert clusters(["a", "b", "c"], [same, same, None], -1) == [0, 1, 2]
    assert clusters(["a", "b", "c"], [same, same, None], 0) == [0, 0, 2]


def test_pictures_without_shape_are_not_alike() -> None:
    assert look(Image.new("RGB", (50, 50), "red")) is None
    assert look(Image.new("L", (1, 1))) is None


def test_distances_that_would_miss_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 to 7"):
        clusters([], [], REACH + 1)
