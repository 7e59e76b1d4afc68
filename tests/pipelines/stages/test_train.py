from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from pipelines import embedders
from pipelines.models import Generator
from tests.pipelines import tiny


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.line(tmp_path_factory.mktemp("line"))


def test_learns_and_says_so(inputs: dict[str, Any], tmp_path: Path) -> None:
    session = tiny.session(tmp_path, inputs)
    snapshot = tiny.run(tiny.train(images_seen=400, validate_every=40), session)

    curve = [point[1]["validation_loss"] for point in snapshot.record["curve"]]
    assert [point[0] for point in snapshot.record["curve"]] == list(range(40, 401, 40))
    assert curve[-1] < 0.8 * curve[0]
    assert snapshot.record["classes"] == tiny.CLASSES
    assert snapshot.record["caption"] == "a drawing of {text}"
    kinds = {event["kind"] for event in session.events}
    assert kinds == {"progress", "metrics", "picture"}
    done = [event for event in session.events if event["kind"] == "progress"][-1]
    assert (done["done"], done["total"], done["unit"]) == (400, 400, "images")
    shown = [event for event in session.events if event["kind"] == "picture"]
    assert [event["step"] for event in shown] == [56, 104, 152, 200, 256, 304, 352, 400]
    assert Image.open(io.BytesIO(shown[-1]["png"])).format == "PNG"


@pytest.mark.parametrize("given", [(), ("images",), ("text",)])
def test_any_set_of_conditions(
    inputs: dict[str, Any], tmp_path: Path, given: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedders, "load_text", lambda record: tiny.Embedder())
    chosen = {n: inputs[n] if n in given else None for n in ("images", "text")}
    stage = tiny.train(images_seen=16, **{n: n if n in given else None for n in ("images", "text")})
    snapshot = tiny.run(stage, tiny.session(tmp_path, {**inputs, **chosen}))

    model = Generator(snapshot, device="cpu")

    assert model.generate(count=2, micro_batch=2)[0].size == (tiny.SIZE, tiny.SIZE)
    if "images" in given:
        assert len(model.generate(classes=["circle", "cross", 1], micro_batch=2)) == 3
    if "text" in given:
        assert len(model.generate(["thing 1"], micro_batch=2)) == 1


def test_prompts_of_the_live_row(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Listening(tiny.Embedder):
        def encode(self, texts: Any) -> Any:
            seen.extend(texts)
            return super().encode(texts)

    monkeypatch.setattr(embedders, "load_text", lambda record: Listening())
    session = tiny.session(tmp_path, inputs)
    tiny.run(tiny.train(images_seen=8, prompts=("thing 1", "a drawing of thing 2")), session)

    assert seen == ["a drawing of thing 1", "a drawing of thing 2"]


def test_latents_of_another_autoencoder_are_refused(inputs: dict[str, Any], tmp_path: Path) -> None:
    class Other:
        record: ClassVar[dict[str, Any]] = {}

        def digest(self) -> str:
            return "other"

    with pytest.raises(ValueError, match="latents was not encoded by vae"):
        tiny.train().run(tiny.session(tmp_path, {**inputs, "autoencoder": Other()}))


def test_mirrored_moments_that_are_not_there_are_asked_for(inputs: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="flips: true"):
        tiny.train(flips=True).run(tiny.session(tmp_path, inputs))


def test_what_cannot_be_trained_is_said_at_once() -> None:
    with pytest.raises(ValueError, match="cooldown"):
        tiny.train(images_seen=8, optimization=tiny.OptimizationConfig(cooldown=9))
    with pytest.raises(ValueError, match="drop_text"):
        tiny.train(drop_text=1.5)


def test_how_often_to_look_is_not_meaning() -> None:
    looks = {"samples_every": 8, "validate_every": 8, "checkpoint_every": 8, "prompts": ("a",)}
    assert tiny.train(**looks).meaning() == tiny.train().meaning()
