"""Training from a bucket: the same bits as from a disk, and nothing is waited for that could be fetched."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.shard_cache import CacheConfig, ShardCache
from pipelines.training.tasks.denoiser import DenoiserTask
from tests import s3
from tests.pipelines import tiny


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    return tiny.line(tmp_path_factory.mktemp("line"))


@pytest.fixture(scope="module")
def remote(inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same line in a bucket."""
    with s3.serving() as url, pytest.MonkeyPatch.context() as patch:
        for name, value in s3.credentials(url).items():
            patch.setenv(name, value)
        bucket: Any = f"s3://{s3.new_bucket()}"
        yield {
            **inputs,
            "latents": tiny.latents(f"{bucket}/latents", inputs["autoencoder"]),  # type: ignore[arg-type]
            "text": tiny.text(f"{bucket}/text"),  # type: ignore[arg-type]
            "images": tiny.images(f"{bucket}/images"),  # type: ignore[arg-type]
        }


def test_it_learns_the_same_from_a_bucket(
    inputs: dict[str, Any], remote: dict[str, Any], tmp_path: Path
) -> None:
    local = tiny.run(tiny.train(images_seen=48), tiny.session(tmp_path / "local", inputs))
    cache = CacheConfig(folder=str(tmp_path / "cache"), bytes=1 << 24)
    session = tiny.session(tmp_path / "remote", remote)
    far = tiny.run(tiny.train(images_seen=48, cache=cache, loaders=3), session)
    assert far.record["files"] == local.record["files"]
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_shares_ask_the_store_for_no_moments(
    remote: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CacheConfig(folder=str(tmp_path / "cache"), bytes=1 << 24)
    task = DenoiserTask(
        tiny.train(cache=cache, text=None), {**remote, "text": None}, device=torch.device("cpu"), workers=1
    )
    assert task.remote
    indices = np.arange(tiny.TRAIN)
    task.fetch(indices)
    monkeypatch.setattr(ShardCache, "_fetch", lambda *_: pytest.fail("it was not there"))
    assert len(task.mixture.latents(0, indices, indices)) == tiny.TRAIN


def test_a_disk_needs_no_fetching(inputs: dict[str, Any]) -> None:
    task = DenoiserTask(tiny.train(), inputs, device=torch.device("cpu"), workers=1)
    assert not task.remote
