"""Training on several datasets: stopped and resumed it is the unbroken one; what does not go is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.arrays import from_npy
from pipelines.models import SnapshotFolder
from pipelines.shuffling import ShuffleConfig
from pipelines.stream import TrainingStream
from pipelines.training import loop
from pipelines.training.tasks.denoiser import DenoiserTask
from tests.pipelines import several, tiny

CPU = torch.device("cpu")
OTHER_CLASSES = ("cross", "star")
BLOCKS = ShuffleConfig(window=16, block=4, lanes=8)
MIXED: dict[str, Any] = {
    "mix_latents": ("more",),
    "mix_text": ("more_text",),
    "mix_images": ("more_images",),
    "mix_weights": (0.75, 0.25),
    "shuffle": BLOCKS,
}


def mixed_with(folder: Path, inputs: dict[str, Any], *, kind: Any = tiny) -> dict[str, Any]:
    """The line's inputs, and another line's."""
    latents = kind.latents(folder / "latents", inputs["autoencoder"])
    images = tiny.images(folder / "images", classes=OTHER_CLASSES)
    return {
        **inputs,
        "mix_latents": (latents,),
        "mix_text": (tiny.text(folder / "text"),),
        "mix_images": (images,),
    }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("lines")
    return mixed_with(folder / "other", tiny.line(folder / "line"))


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("buckets")
    return mixed_with(folder / "other", several.line(folder / "line"), kind=several)


class Stop(Exception):
    pass


def stopped(stage: Any, session: tiny.TinySession, at: int) -> None:
    step = loop.Loop.step

    def stopping(self: loop.Loop, progress: Any) -> None:
        step(self, progress)
        if progress.images_seen == at:
            self._writer.wait()
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "step", stopping)
        with pytest.raises(Stop):
            tiny.run(stage, session)


@pytest.mark.parametrize("kind", ["inputs", "buckets"])
def test_stopped_and_resumed_is_the_unbroken_one(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    given = request.getfixturevalue(kind)
    stage = tiny.train(**MIXED, loaders=1)
    unbroken = tiny.run(stage, tiny.session(tmp_path / "unbroken", given))
    # Other numbers of threads make the same batches.
    stage = tiny.train(**MIXED, checkpoint_every=16, loaders=4)
    stopped(stage, tiny.session(tmp_path, given), 56)
    session = tiny.session(tmp_path, given, lease=2)
    resumed = tiny.run(stage, session)
    assert [e["text"] for e in session.events if e["kind"] == "note"] == ["Continues from 48 images."]
    assert resumed.record["files"] == unbroken.record["files"]
    assert resumed.record["curve"] == unbroken.record["curve"]
    assert told(resumed) == told(unbroken)


def told(snapshot: SnapshotFolder) -> list[dict[str, Any]]:
    mixture = snapshot.record["mixture"]
    assert [round(one["share"], 9) for one in mixture] == [0.75, 0.25]
    assert [one["unknown_classes"] for one in mixture] == [[], ["star"]]
    assert [one["samples"] for one in mixture] == [tiny.TRAIN] * 2
    return mixture


def test_each_sample_is_its_datasets_own(inputs: dict[str, Any]) -> None:
    """Latents, captions and classes of a batch, against each dataset read by itself."""
    stage = tiny.train(**MIXED, drop_label=0.0, drop_text=0.0)
    task = DenoiserTask(stage, inputs, device=CPU, workers=1)
    assert task.length == 2 * tiny.TRAIN
    stream = TrainingStream(task.length, stage.seed, stage.batch, lines=task.lines, shuffle=task.shuffle)
    of_second = 0
    for _, (positions, indices) in zip(range(12), stream, strict=False):
        share = task.share(positions, indices)
        alone = [
            task.mixture.parts[n // tiny.TRAIN].latents(
                stage.seed, positions[k : k + 1], np.array([n % tiny.TRAIN])
            )
            for k, n in enumerate(indices.tolist())
        ]
        torch.testing.assert_close(share.latents, torch.cat(alone), rtol=0, atol=0)
        second = indices >= tiny.TRAIN
        of_second += int(second.sum())
        wanted = [
            tiny.CLASSES.index("cross") if n % 2 == 0 else len(tiny.CLASSES)
            for n in (indices[second] - tiny.TRAIN).tolist()
        ]
        labels = share.conditioning.label
        assert labels is not None
        assert labels[torch.from_numpy(second)].tolist() == wanted
        assert labels[torch.from_numpy(~second)].tolist() == [n % 3 for n in indices[~second].tolist()]
    assert of_second == 24
    moments = from_npy(task.mixture.parts[1].rows.read(0, "latents", "moments.npy"))
    assert moments.shape == (4, 4, 4)


def test_by_samples_without_captions_or_classes(inputs: dict[str, Any], tmp_path: Path) -> None:
    given = {**inputs, "mix_text": (), "mix_images": ()}
    stage = tiny.train(mix_latents=("more",), images_seen=16)
    task = DenoiserTask(stage, given, device=CPU, workers=1)
    second = np.arange(tiny.TRAIN, tiny.TRAIN + 3)
    assert task.mixture.captions(0, second, second) == [None] * 3
    assert task.mixture.labels(second) == [None] * 3
    snapshot = tiny.run(stage, tiny.session(tmp_path, given))
    assert [one["share"] for one in snapshot.record["mixture"]] == [0.5, 0.5]


def test_what_cannot_be_mixed_is_said(inputs: dict[str, Any], tmp_path: Path) -> None:
    def refused(message: str, **changed: Any) -> None:
        with pytest.raises(ValueError, match=message):
            tiny.train(**MIXED).run(tiny.session(tmp_path, {**inputs, **changed}))

    latents = inputs["mix_latents"][0].manifest["statistics"]
    for name, value, message in (
        ("autoencoder", "another", "more was not encoded by vae"),
        ("shape", [2, 8, 8], "more has latents of 2 x 8 x 8, and latents of 2 x 4 x 4"),
        ("sizes", [[16, 16, 24]], "has `buckets`, and one has not"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(latents, name, value)
            refused(message)
    text = inputs["mix_text"][0].manifest["statistics"]["text"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(text, "digest", "another")
        refused("more_text is not of the encoder of embed")
    refused("more holds no latents", mix_latents=(inputs["images"],))


def test_fields_that_do_not_go_together_are_said() -> None:
    for changed, message in (
        ({"mix_text": ("a", "b")}, "mix_text names 2, and mix_latents 1"),
        ({"mix_weights": (1.0,)}, "mix_weights has 1 numbers: latents and mix_latents have 2"),
        ({"mix_weights": (1.0, 0.0)}, "each must be above 0"),
        ({"text": None}, "`mix_text` needs `text`"),
        ({"loaders": 0}, "loaders is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny.train(**{**MIXED, **changed})
    with pytest.raises(ValueError, match="take one dataset"):
        tiny.train_upscaler(mix_latents=("more",))


def test_defaults_leave_the_meaning_as_it_was() -> None:
    meaning = tiny.train().meaning()
    assert not {name for name in meaning if name.startswith("mix")} | {"shuffle", "cache", "loaders"} & set(
        meaning
    )
    assert tiny.train(**MIXED).meaning()["mix_weights"] == [0.75, 0.25]
