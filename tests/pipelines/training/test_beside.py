from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.metrics.kernel import kernel_distance
from pipelines import sampling
from pipelines.scoring.features import EfficientNetFeatures
from pipelines.stages.train import Train
from pipelines.training import beside, kid, loop
from pipelines.training.kid import check_judge
from tests.pipelines import tiny

LIMIT = 120.0


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with other work a humble process takes minutes."""
    monkeypatch.setattr("cluster.beside.NICE", 0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With enough held-out samples to judge by."""
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setattr(tiny, "HELD_OUT", 9)
    yield tiny.line(tmp_path_factory.mktemp("line"))
    patch.undo()


def stage(**changes: Any) -> Train:
    every = {"images_seen": 48, "samples_every": 16, "kid_every": 24, "validate_every": 24}
    return tiny.train(**{**every, "kid_samples": 8, **changes})


def pictures(session: tiny.TinySession) -> dict[int, bytes]:
    return {event["step"]: event["png"] for event in session.events if event["kind"] == "picture"}


def kids(session: tiny.TinySession) -> dict[int, float]:
    told = [event for event in session.events if event["kind"] == "metrics" and "kid" in event["values"]]
    return {event["step"]: event["values"]["kid"] for event in told}


def notes(session: tiny.TinySession) -> list[str]:
    return [event["text"] for event in session.events if event["kind"] == "note"]


@pytest.fixture(scope="module")
def inline(inputs: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, tiny.TinySession]:
    session = tiny.session(tmp_path_factory.mktemp("inline"), inputs)
    return tiny.run(stage(), session), session


def weights(snapshot: Any) -> str:
    return snapshot.record["files"]["denoiser.safetensors"]


def test_kid_is_that_of_drawings_for_held_out_conditions(
    inputs: Any, inline: tuple[Any, tiny.TinySession]
) -> None:
    """Made again from the snapshot alone, which holds the weights in fp16."""
    snapshot, session = inline
    assert list(kids(session)) == [24, 48]
    task: Any = stage().task(inputs, torch.device("cpu"), 1)
    task.module.load_state_dict(
        {name: tensor.float() for name, tensor in load(snapshot.read("denoiser.safetensors")).items()}
    )
    extract = EfficientNetFeatures().build()
    held_out = task._unseen
    moments = np.stack([held_out.moments[[n]][0] for n in range(8)])
    mean = torch.from_numpy(moments).float()[:, :2]
    with torch.no_grad():
        real = sampling.to_pixels(task.autoencoder.decode(mean))
    numbers = np.arange(8)
    texts, labels = held_out.captions(0, numbers, numbers), held_out.labels(numbers)
    drawn = sampling.draw(
        task._model(task.module.eval()),
        [sampling.Drawing(index=n, text=texts[n], label=labels[n]) for n in range(8)],
        seed=0,
        sampler=stage().sampler,
        guidance=stage().guidance,
        micro_batch=8,
    )
    wanted = kernel_distance(*(torch.from_numpy(extract(images(of))) for of in (real, drawn)), resamples=2)
    assert kids(session)[48] == pytest.approx(1000 * wanted.value, rel=0.02)

    curve = dict(snapshot.record["curve"])
    assert list(curve) == [24, 48]
    assert all({"kid", "validation_loss"} <= set(point) for point in curve.values())
    about = snapshot.record["kid"]
    assert (about["name"], about["n"]) == ("KID-EffLite0", 8)
    features = torch.from_numpy(extract(images(real)))
    floor = kernel_distance(features[:4], features[4:], resamples=2).value
    assert about["floor"] == pytest.approx(1000 * floor, rel=1e-3)
    assert notes(session) == [kid.told(about)]
    assert "8 drawings" in notes(session)[0]


def load(data: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(data)


def images(pixels: Any) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(image) for image in pixels]


def test_beside_it_sees_what_it_sees_inline(
    inputs: Any, inline: tuple[Any, tiny.TinySession], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = tiny.session(tmp_path, inputs)
    # No look is left out where the training waits for each: what is asked here is what they show.
    monkeypatch.setattr(loop.Loop, "_wanted", patient(loop.Loop._wanted))
    snapshot = tiny.run(stage(beside=True), session)
    assert pictures(session) == pictures(inline[1])
    assert kids(session) == kids(inline[1])
    assert snapshot.record["curve"] == inline[0].record["curve"]
    assert snapshot.record["kid"] == inline[0].record["kid"]
    assert "looks_skipped" not in snapshot.record
    assert weights(snapshot) == weights(inline[0])
    assert not list((tmp_path / "checkpoints" / "looks").glob("*"))
    assert not multiprocessing.active_children()


def patient(wanted: Callable[..., list[str]]) -> Callable[..., list[str]]:
    def waiting(self: loop.Loop, *given: Any, **named: Any) -> list[str]:
        assert self._looks._beside is not None
        self._looks._beside.wait(LIMIT)
        return wanted(self, *given, **named)

    return waiting


@pytest.mark.slow
def test_what_it_cannot_keep_up_with_is_left_out_but_never_the_last(
    inputs: Any, inline: tuple[Any, tiny.TinySession], tmp_path: Path
) -> None:
    """A dozen steps take less than a process takes to start."""
    session = tiny.session(tmp_path, inputs)
    snapshot = tiny.run(stage(beside=True, samples_every=8), session)
    shown, whole = pictures(session), pictures(inline[1])
    assert list(shown) == sorted(shown)
    assert max(shown) == 48
    assert shown[48] == whole[48]
    assert kids(session)[48] == kids(inline[1])[48]
    assert snapshot.record["looks_skipped"] == 6 - len(shown)
    assert weights(snapshot) == weights(inline[0])


def disturbed(number: signal.Signals) -> Callable[..., list[str]]:
    """Does it to the worker once it is there, at the first look."""
    wanted, done = loop.Loop._wanted, []

    def disturbing(self: loop.Loop, *given: Any, **named: Any) -> list[str]:
        children = multiprocessing.active_children()
        if children and not done:
            done.append(os.kill(children[0].pid or 0, number))
            time.sleep(0.1)
        deadline = time.monotonic() + 5
        while self._looks._beside is not None and self._looks._beside._busy and not children:
            time.sleep(0.01)
            children = multiprocessing.active_children()
            assert time.monotonic() < deadline
        return wanted(self, *given, **named)

    return disturbing


@pytest.mark.parametrize(
    ("number", "why"), [(signal.SIGKILL, "died of signal 9"), (signal.SIGSTOP, "did not answer within 1 s")]
)
def test_one_that_dies_or_hangs_costs_its_looks_and_nothing_else(
    inputs: Any,
    inline: tuple[Any, tiny.TinySession],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    why: str,
) -> None:
    monkeypatch.setattr(beside, "PATIENCE", 1.0 if number == signal.SIGSTOP else LIMIT)
    monkeypatch.setattr(loop.Loop, "_wanted", disturbed(number))
    session = tiny.session(tmp_path, inputs)
    snapshot = tiny.run(stage(beside=True, samples_every=8), session)
    lost = [note for note in notes(session) if "worker beside" in note]
    assert len(lost) == 1
    assert why in lost[0] or (number == signal.SIGSTOP and "was not done" in lost[0])
    assert pictures(session)[48] == pictures(inline[1])[48]
    assert kids(session)[48] == kids(inline[1])[48]
    assert snapshot.record["looks_skipped"] >= 1
    assert weights(snapshot) == weights(inline[0])
    assert not multiprocessing.active_children()


def test_a_judge_that_the_training_learned_from_is_refused(inputs: Any) -> None:
    class Told:
        def __init__(self, **said: Any) -> None:
            self.record, self.manifest = said, {"statistics": said}

    check_judge(inputs)
    for name, said, where in (
        ("autoencoder", {"loss": {"networks": ["efficientnet-lite0"]}}, "the autoencoder's loss"),
        ("features", {"features": {"kind": "efficientnet_lite0"}}, "the alignment"),
        ("keep", {"scorers": [{"digests": {"x": EfficientNetFeatures().identity()}}]}, "the filter"),
    ):
        with pytest.raises(ValueError, match=f"{where}.*let evaluate judge"):
            check_judge({**inputs, name: Told(**said)})
    check_judge({**inputs, "autoencoder": Told(loss={"networks": ["hed"]})})


def test_too_few_to_judge_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "HELD_OUT", 6)
    with pytest.raises(ValueError, match="at least 8, and there are 6"):
        tiny.run(stage(), tiny.session(tmp_path, tiny.line(tmp_path / "line")))
