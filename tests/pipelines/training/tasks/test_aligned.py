from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.config import AlignmentConfig, OptimizationConfig, UNetConfig
from pipelines.arrays import to_npy
from pipelines.training.tasks.aligned import wanted
from pipelines.training.tasks.denoiser import DenoiserTask
from tests.pipelines import tiny

OPTIMIZATION = OptimizationConfig(lr=3e-3, warmup=16, cooldown=32)
ALIGNED: dict[str, Any] = {
    "features": "seen",
    "alignment": AlignmentConfig(weight=2.0, depth=0),
    "optimization": OPTIMIZATION,
}


def features(folder: Path, *, places: bool = True) -> Any:
    """The picture shrunk to 2 x 2: of another size than the network's tokens."""

    def members(key: str, n: int) -> dict[str, bytes]:
        seen = tiny.picture(n).astype(np.float16).reshape(2, tiny.SIZE // 2, 2, tiny.SIZE // 2, 3)
        means = seen.mean((1, 3)).transpose(2, 0, 1) / 255
        return {"features.npy": to_npy((means if places else means.ravel()).astype(np.float16))}

    return tiny.dataset(folder, members)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("line")
    return {**tiny.line(folder), "features": features(folder / "features")}


def test_what_is_learned_is_the_networks_alone(inputs: dict[str, Any], tmp_path: Path) -> None:
    """The same names as without alignment, other numbers, and the same again after a stop between."""
    plain = tiny.run(tiny.train(optimization=OPTIMIZATION), tiny.session(tmp_path / "plain", inputs))
    whole = tiny.run(tiny.train(**ALIGNED), tiny.session(tmp_path / "whole", inputs))
    tiny.run(tiny.train(**ALIGNED, images_seen=64), tiny.session(tmp_path, inputs, output="short"))
    session = tiny.session(tmp_path, inputs, output="long")
    longer = tiny.run(tiny.train(**ALIGNED), session)
    assert any("Continues" in event.get("text", "") for event in session.events)
    assert longer.record["files"] == whole.record["files"]
    assert plain.record["parameters"] == whole.record["parameters"]
    one, other = (run.tensors("denoiser.safetensors") for run in (plain, whole))
    assert set(one) == set(other)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_tokens_come_to_point_where_the_features_do(inputs: dict[str, Any]) -> None:
    """Of one batch, learned by heart: the aligned part of the loss falls by more than half of a cosine."""
    stage = tiny.train(**{**ALIGNED, "alignment": AlignmentConfig(weight=100.0, depth=1)})
    task = DenoiserTask(stage, inputs, device=torch.device("cpu"), workers=1)
    share = task.share(np.arange(8), np.arange(8))
    assert share.features is not None
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = task.losses(task.module, share).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / 100)
    assert losses[-1] < losses[0] - 0.5
    assert losses[-1] > -1.0


def test_alignment_ends_where_the_cooldown_begins() -> None:
    stage = tiny.train(**ALIGNED)
    seen = [n for n in range(0, 96, 8) if wanted(stage, np.arange(n, n + 8))]
    assert seen == list(range(0, 72, 8))
    sooner = tiny.train(**{**ALIGNED, "alignment": AlignmentConfig(images_seen=40)})
    assert [n for n in range(0, 96, 8) if wanted(sooner, np.arange(n, n + 8))] == list(range(0, 40, 8))
    assert not wanted(tiny.train(), np.arange(8))


def test_held_out_losses_are_those_of_the_network_alone(inputs: dict[str, Any]) -> None:
    task = DenoiserTask(tiny.train(**ALIGNED), inputs, device=torch.device("cpu"), workers=1)
    plain = DenoiserTask(tiny.train(), inputs, device=torch.device("cpu"), workers=1)
    plain.module.load_state_dict(task.weights(task.module))
    assert task.evaluate(task.module) == plain.evaluate(plain.module)


def test_what_cannot_be_aligned_is_told(inputs: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="go together"):
        tiny.train(features="seen")
    with pytest.raises(ValueError, match="all tokens"):
        tiny.train(**ALIGNED, tokens=0.5)
    with pytest.raises(ValueError, match="kind: dit"):
        tiny.train(**ALIGNED, network=UNetConfig())
    vectors = {**inputs, "features": features(tmp_path / "vectors", places=False)}
    with pytest.raises(ValueError, match="needs maps"):
        DenoiserTask(tiny.train(**ALIGNED), vectors, device=torch.device("cpu"), workers=1)
    deep = tiny.train(**{**ALIGNED, "alignment": AlignmentConfig(depth=9)})
    with pytest.raises(ValueError, match="must be less"):
        DenoiserTask(deep, inputs, device=torch.device("cpu"), workers=1)
