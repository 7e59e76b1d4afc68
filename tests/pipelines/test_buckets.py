"""Sizes of one area, the nearest of an image, and small ones merged."""

from __future__ import annotations

import itertools
import math

import pytest

from pipelines.buckets import Buckets, known, listed, main, nearest, ordered, resolution

SETTINGS = [
    Buckets(),
    Buckets(area=1024, step=64, ratio=4.0),
    Buckets(area=48, step=8, ratio=3.0),
    Buckets(area=32, step=1, ratio=1.0),
]


@pytest.mark.parametrize("buckets", SETTINGS)
def test_sizes_have_about_one_area_and_come_in_mirrored_pairs(buckets: Buckets) -> None:
    sizes = buckets.sizes()
    assert len(set(sizes)) == len(sizes)
    assert (buckets.area, buckets.area) in sizes
    assert {(height, width) for width, height in sizes} == set(sizes)
    assert sizes == sorted(sizes, key=lambda size: size[0] / size[1])
    for width, height in sizes:
        assert width % buckets.step == height % buckets.step == 0
        assert max(width, height) <= buckets.ratio * min(width, height)
        # The shorter side is the multiple next to the ideal one: half a step off at most.
        long, short = max(width, height), min(width, height)
        assert abs(short - buckets.area**2 / long) <= buckets.step / 2


def test_sizes_are_those_that_were_published() -> None:
    """Those in SDXL's appendix I whose shorter side is the nearest; and ours by default."""
    assert Buckets().sizes() == [(48, 96), (48, 80), (64, 64), (80, 48), (96, 48)]
    published = {(2048, 512), (1984, 512), (1536, 704), (1472, 704), (1408, 768), (1344, 768), (1280, 832)}
    published |= {(1216, 832), (1152, 896), (1088, 960), (1024, 1024)}
    found = Buckets(area=1024, step=64, ratio=4.0).sizes()
    assert published - set(found) == set()


@pytest.mark.parametrize("buckets", SETTINGS)
def test_an_image_goes_to_the_ratio_nearest_by_logarithm(buckets: Buckets) -> None:
    sizes = buckets.sizes()
    for width, height in itertools.product((1, 7, 64, 99, 640, 4097), (1, 9, 64, 77, 480, 3000)):
        width_found, height_found = buckets.nearest(width, height)
        distances = [abs(math.log(width * h / (height * w))) for w, h in sizes]
        found = abs(math.log(width * height_found / (height * width_found)))
        assert found == pytest.approx(min(distances), abs=1e-12)
        # Mirrored images have mirrored sizes, but where two are equally near.
        if sorted(distances)[1:2] != [pytest.approx(found, abs=1e-12)]:
            assert buckets.nearest(height, width) == (height_found, width_found)


def test_of_two_ratios_equally_near_it_takes_the_narrower() -> None:
    buckets = Buckets(area=64, step=32, ratio=4.0)
    assert buckets.sizes() == [(32, 128), (32, 96), (64, 64), (96, 32), (128, 32)]
    # The logarithm of 2 lies midway between those of 1 and 4: exact, in integers.
    assert Buckets(area=64, step=32, ratio=4.0).nearest(173, 100) == (64, 64)
    assert buckets.nearest(174, 100) == (96, 32)
    square, wide = (64, 64), (128, 32)
    assert nearest((200, 100), [square, wide]) == square
    assert nearest((201, 100), [square, wide]) == wide


def test_small_sizes_go_to_the_nearest_that_is_large_enough() -> None:
    buckets = Buckets(smallest=10)
    counts = {(48, 96): 4, (48, 80): 7, (64, 64): 100, (80, 48): 9, (96, 48): 30}
    # 48x96 goes first and fills up 48x80, which then has 11; 80x48 is nearer to 96x48 than to the square.
    assert buckets.merged(counts) == {
        (48, 96): (48, 80),
        (48, 80): (48, 80),
        (64, 64): (64, 64),
        (80, 48): (96, 48),
        (96, 48): (96, 48),
    }
    assert buckets.warning(counts) == (
        "Sizes with fewer than 10 training images were merged: 48x96 (4) to 48x80, 80x48 (9) to 96x48."
    )
    assert buckets.merged(dict(reversed(counts.items()))) == buckets.merged(counts)


def test_no_image_is_lost_and_none_ends_in_a_small_size() -> None:
    buckets = Buckets(area=128, step=8, ratio=3.0, smallest=50)
    for seed in range(40):
        counts = {size: (seed * 7 + 13 * n**2) % (20 + 3 * seed) for n, size in enumerate(buckets.sizes())}
        merged = buckets.merged(counts)
        assert set(merged) == set(buckets.sizes())
        left: dict[tuple[int, int], int] = {}
        for size, count in counts.items():
            left[merged[size]] = left.get(merged[size], 0) + count
        assert sum(left.values()) == sum(counts.values())
        assert all(merged[size] == size for size in left)
        assert len(left) == 1 or min(left.values()) >= 50


def test_one_size_is_left_in_any_case_and_empty_ones_are_no_warning() -> None:
    buckets = Buckets(smallest=1000)
    assert set(buckets.merged({(80, 48): 3, (64, 64): 2}).values()) == {(80, 48)}
    assert Buckets(smallest=2).warning({(64, 64): 2}) is None
    assert buckets.merged({}) == {size: size for size in buckets.sizes()}
    # Held-out images of a size without training images go where its training images would.
    assert Buckets(smallest=2).merged({(64, 64): 5})[96, 48] == (64, 64)


def test_a_square_stands_for_all_sizes() -> None:
    sizes = [[48, 80, 10], [64, 64, 3], [96, 48, 7]]
    assert resolution({"resolution": 56, "sizes": sizes}) == 56
    # The mean area is 64.4^2 px; all sides are made of steps of 16.
    assert resolution({"resolution": None, "sizes": sizes}) == 64
    assert known({"sizes": sizes}) == {(48, 80): 10, (64, 64): 3, (96, 48): 7}
    assert listed(known({"sizes": sizes})) == sizes
    assert main(known({"sizes": [*sizes, [80, 48, 10]]})) == (48, 80)
    assert known({}) == known({"sizes": None}) == {}


def test_what_makes_no_sizes_is_said() -> None:
    for fields in ({"area": 60}, {"step": 0}, {"ratio": 0.5}, {"smallest": 0}, {"area": 4096, "step": 1}):
        with pytest.raises(ValueError, match="must be"):
            Buckets(**fields)  # pyright: ignore[reportArgumentType]


def test_order_is_by_ratio_then_size() -> None:
    assert ordered([(64, 64), (96, 48), (32, 32), (48, 96)]) == [(48, 96), (32, 32), (64, 64), (96, 48)]
