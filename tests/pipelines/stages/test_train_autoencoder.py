from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.config import IdentityAutoencoderConfig, KLAutoencoderConfig
from pipelines.dataset import Dataset
from pipelines.stages.train_autoencoder import TrainAutoencoder
from pipelines.training.tasks.autoencoder import AutoencoderTask
from tests.pipelines import tiny


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    return tiny.images(tmp_path_factory.mktemp("images"))


def stage(**fields: Any) -> TrainAutoencoder:
    settings: dict[str, Any] = {
        "images": "images",
        "autoencoder": tiny.AUTOENCODER,
        "images_seen": 64,
        "batch": 8,
        "optimization": tiny.OPTIMIZATION,
        "checkpoint_seconds": None,
    }
    return TrainAutoencoder(**{**settings, **fields})


def test_learns_to_reconstruct(images: Dataset, tmp_path: Path) -> None:
    session = tiny.session(tmp_path, {"images": images})
    snapshot = tiny.run(stage(images_seen=480, validate_every=48), session)

    curve = [values["validation_l1"] for _, values in snapshot.record["curve"]]
    assert curve[-1] < 0.5 * curve[0]
    assert snapshot.record["resolution"] == tiny.SIZE
    # What encode loads reconstructs as well as what was trained.
    batch = (
        torch.from_numpy(np.stack([tiny.picture(n) for n in range(24, 30)])).permute(0, 3, 1, 2) / 127.5 - 1
    )
    autoencoder = snapshot.autoencoder()
    with torch.no_grad():
        decoded = autoencoder.decode(autoencoder.encode(batch).mean).clamp(-1, 1)
    assert (decoded - batch).abs().mean().item() == pytest.approx(curve[-1], rel=1e-2)
    assert {event["kind"] for event in session.events} == {"progress", "metrics", "picture"}


def test_stopped_and_continued_is_the_unbroken_one(images: Dataset, tmp_path: Path) -> None:
    whole = tiny.run(stage(), tiny.session(tmp_path, {"images": images}, output="a", checkpoints="one"))
    tiny.run(stage(images_seen=24), tiny.session(tmp_path, {"images": images}, output="b", checkpoints="two"))
    session = tiny.session(tmp_path, {"images": images}, output="c", checkpoints="two")

    continued = tiny.run(stage(), session)

    assert [e["text"] for e in session.events if e["kind"] == "note"] == ["Continues from 24 images."]
    assert continued.record["files"] == whole.record["files"]


def test_mirrors_half_of_the_images(images: Dataset) -> None:
    def shown(flips: bool) -> torch.Tensor:
        task = AutoencoderTask(stage(flips=flips), images, device=torch.device("cpu"), workers=1)
        positions = np.arange(400)
        return task.share(positions, positions % 24).images

    plain, mirrored = shown(False), shown(True)
    same = (plain == mirrored).flatten(1).all(1)
    flipped = (plain.flip(-1) == mirrored).flatten(1).all(1)
    assert (same | flipped).all()
    assert 150 < int(flipped.sum()) < 250


def test_loss_is_what_it_says(images: Dataset) -> None:
    """Without its weight, the divergence is not in it; with it, by as much as it is."""
    from diffusion.autoencoders.kl import kl_divergence
    from pipelines.training.tasks.autoencoder import normalised

    torch.manual_seed(0)
    plain = AutoencoderTask(stage(kl_weight=0.0), images, device=torch.device("cpu"), workers=1)
    heavy = AutoencoderTask(stage(kl_weight=2.0), images, device=torch.device("cpu"), workers=1)
    share = plain.share(np.arange(8), np.arange(8))
    without, given = plain.losses(plain.module, share), heavy.losses(plain.module, share)

    x = normalised(share.images)
    y, moments, _ = plain.module(x, share.noise)
    torch.testing.assert_close(without, (y - x).abs().mean((1, 2, 3)))
    torch.testing.assert_close(given - without, 2.0 * kl_divergence(moments) / (2 * 4 * 4))


def test_pixels_as_latents_take_no_training(images: Dataset, tmp_path: Path) -> None:
    snapshot = tiny.run(
        stage(autoencoder=IdentityAutoencoderConfig()), tiny.session(tmp_path, {"images": images})
    )
    batch = torch.rand(2, 3, 8, 8)
    assert torch.equal(snapshot.autoencoder().encode(batch).mean, batch)
    assert not (tmp_path / "checkpoints").exists()


def test_size_that_does_not_suit_is_said(images: Dataset, tmp_path: Path) -> None:
    wide = stage(autoencoder=KLAutoencoderConfig(channels=8, multipliers=(1, 1, 1, 1), stem=4))
    with pytest.raises(ValueError, match="multiple of 32"):
        tiny.run(wide, tiny.session(tmp_path, {"images": images}))


def test_images_of_several_sizes_are_said(tmp_path: Path) -> None:
    import io

    from PIL import Image

    def members(key: str, n: int) -> dict[str, bytes]:
        buffer = io.BytesIO()
        Image.fromarray(tiny.picture(n)).resize((16, 16 + 4 * (n % 2))).save(buffer, "PNG")
        return {"png": buffer.getvalue()}

    with pytest.raises(ValueError, match="equal shapes"):
        tiny.run(stage(), tiny.session(tmp_path, {"images": tiny.dataset(tmp_path / "images", members)}))
