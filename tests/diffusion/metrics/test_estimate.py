from __future__ import annotations

from diffusion.metrics.estimate import Estimate


def test_it_is_read_with_its_interval():
    assert str(Estimate(value=0.012345, stderr=0.001, low=0.0103, high=0.0144)) == "0.01235 [0.0103, 0.0144]"
