from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from diffusion.config import OptimizationConfig
from pipelines.models import SnapshotFolder
from pipelines.stages.train import Train
from pipelines.training.averages import reconstruct
from tests.pipelines import tiny

KEPT = OptimizationConfig(lr=3e-3, warmup=16, cooldown=32, ema=0.1, ema_others=(0.05,))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    return tiny.line(tmp_path_factory.mktemp("line"))


def train(**fields: Any) -> Train:
    """Looked at only in the end."""
    return tiny.train(validate_every=1000, samples_every=1000, **fields)


def weights(snapshot: SnapshotFolder) -> dict[str, torch.Tensor]:
    return load(snapshot.read("denoiser.safetensors"))


def norm(tensors: list[torch.Tensor]) -> float:
    return torch.cat([tensor.flatten().float() for tensor in tensors]).norm().item()


def away(a: SnapshotFolder, b: SnapshotFolder) -> float:
    other = weights(b)
    return norm([tensor.float() - other[name].float() for name, tensor in weights(a).items()])


def test_another_width_takes_no_other_training(inputs: dict[str, Any], tmp_path: Path) -> None:
    first = tiny.run(train(images_seen=128, optimization=KEPT), tiny.session(tmp_path, inputs))
    directly = tiny.run(
        train(images_seen=128, optimization=replace(KEPT, ema=0.07, ema_others=())),
        tiny.session(tmp_path / "directly", inputs),
    )

    rounding = 2**-11 * norm(list(weights(first).values()))
    for width, other in ((0.1, first), (0.07, directly)):
        session = tiny.session(tmp_path, inputs, output=f"output-{width}", lease=2)
        again = tiny.run(train(images_seen=128, optimization=KEPT, ema_width=width), session)
        # Not a step, but a picture of what comes out.
        assert session.events[0] == {"kind": "note", "text": "Continues from 128 images."}
        assert [event["kind"] for event in session.events[1:]] == ["picture"]
        assert again.record["ema"]["width"] == width
        assert again.record["ema"]["misfit"] < 0.02
        assert weights(again).keys() == weights(other).keys()
        assert away(again, other) <= 0.1 * away(again, first) + rounding
    assert away(directly, first) > 5 * rounding
    assert "ema" not in first.record


def test_a_shorter_trainings_cooldown_is_none_of_a_longer_ones(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    """Both share a folder; at 48 images the shorter one has cooled down and the longer one has not."""
    short = tiny.run(train(images_seen=48, optimization=KEPT), tiny.session(tmp_path, inputs, output="short"))
    long = train(images_seen=96, optimization=KEPT, ema_width=0.1)
    tiny.run(long, tiny.session(tmp_path, inputs, output="long", lease=2))
    alone = tiny.session(tmp_path / "alone", inputs)
    tiny.run(long, alone)

    def made(session: tiny.TinySession, images_seen: int, target: int) -> dict[str, torch.Tensor]:
        return reconstruct(
            session.checkpoints,
            images_seen=images_seen,
            width=0.1,
            target=target,
            cooling=lambda seen: not KEPT.before_cooldown(seen, batch=8, target_images=target),
        )[0]

    shared = tiny.session(tmp_path, inputs)
    cooled = made(shared, 48, 48)
    assert all(cooled[name].half().equal(tensor) for name, tensor in weights(short).items())
    for images_seen in (48, 96):
        here, there = (made(session, images_seen, 96) for session in (shared, alone))
        assert all(tensor.equal(there[name]) for name, tensor in here.items())
    assert not all(tensor.equal(made(alone, 48, 96)[name]) for name, tensor in cooled.items())
    with pytest.raises(ValueError, match="No averages are stored of this training at 80 images"):
        made(alone, 80, 88)


def test_a_width_that_cannot_be_made_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="ema_others"):
        tiny.train(ema_width=0.07)
    with pytest.raises(ValueError, match=r"ema_width is 0\.3"):
        tiny.train(optimization=KEPT, ema_width=0.3)


def test_a_width_is_meaning_that_shares_checkpoints() -> None:
    one, other = (tiny.train(optimization=KEPT, ema_width=width) for width in (None, 0.07))
    assert one.meaning() != other.meaning()
    assert "ema_width" in type(one).length
    assert "ema_width" not in one.meaning()
