from __future__ import annotations

import time

import pytest
import torch

from diffusion.config import DiTConfig, IdentityAutoencoderConfig, KLAutoencoderConfig
from pipelines.costs import measuring
from pipelines.costs.measuring import Measuring


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.0)


def test_an_encoder_takes_more_time_for_more_pixels() -> None:
    found = Measuring()
    config = KLAutoencoderConfig(channels=16)
    small, large = (
        found.unit_seconds("encoding", config, side=side, batch=4, gpu=False) for side in (16, 256)
    )
    assert large > 2 * small  # 256 times the pixels


def test_each_thing_is_measured_once() -> None:
    found = Measuring()
    given = {"side": 16, "batch": 2, "gpu": False}
    first = found.unit_seconds("coding", KLAutoencoderConfig(channels=16), **given)
    start = time.perf_counter()
    assert found.unit_seconds("coding", KLAutoencoderConfig(channels=16), **given) == first
    assert time.perf_counter() - start < 0.01


@pytest.mark.parametrize("train", [False, True])
def test_denoisers_are_measured_with_all_that_they_are_told(train: bool) -> None:
    threads = torch.get_num_threads()
    taken = Measuring().unit_seconds(
        "denoising",
        DiTConfig(width=64, depth=1, heads=1),
        channels=4,
        size=8,
        classes=3,
        text_width=16,
        tokens=5,
        batch=2,
        train=train,
        gpu=False,
    )
    assert 0 < taken < 10
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_none_is_measured() -> None:
    with pytest.raises(ValueError, match="there is none"):
        Measuring().unit_seconds("encoding", IdentityAutoencoderConfig(), side=8, batch=1, gpu=True)
