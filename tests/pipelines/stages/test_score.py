from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from pipelines.dataset import Dataset
from pipelines.scorers import Function, Nsfw, Scores, Sharpness, Similarity, Size, Subject, Unscored
from pipelines.scorers.guarded import Guarded
from pipelines.scorers.thresholds import Threshold
from pipelines.stages.filter import Filter
from pipelines.stages.score import Score
from tests.pipelines import tiny
from tests.pipelines.stages.making import column, made


@pytest.fixture
def images(tmp_path: Path) -> Dataset:
    return tiny.images(tmp_path / "images")


def test_numbers_go_into_a_member_and_into_the_index(images: Dataset, tmp_path: Path) -> None:
    scores = made(Score(images="images"), {"images": images}, tmp_path / "scores")
    found = {key: json.loads(data) for key, data in column(scores, "scores.json").items()}
    assert len(found) == len(images)
    assert found["k003"].keys() == {
        "width",
        "height",
        "shorter",
        "aspect",
        "sharpness",
        "contrast",
        "entropy",
    }
    assert (found["k003"]["shorter"], found["k003"]["aspect"]) == (tiny.SIZE, 1)
    for shard in scores.shards:
        index = scores.index(shard.name)
        assert [index.meta[n] for n in range(len(index))] == [found[key] for key in index.keys]
    statistics = scores.manifest["statistics"]
    assert statistics["scores"]["sharpness"]["count"] == len(images)
    assert [s["kind"] for s in statistics["scorers"]] == ["size", "sharpness"]


def test_the_same_input_gives_the_same_shards_whatever_the_grouping(
    images: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hues.py").write_text("def hue(image, facts): return image.getpixel((3, 3))[0]")
    stage = Score(images="images", scorers=(Sharpness(), Function(function="hues:hue", path=str(tmp_path))))
    first = made(stage, {"images": images}, tmp_path / "a")
    monkeypatch.setattr("pipelines.stages.score._CHUNK", 7)
    monkeypatch.setattr("pipelines.stages.score._DECODED", 3)
    second = made(stage, {"images": images}, tmp_path / "b")
    assert [s.sha256 for s in first.shards] == [s.sha256 for s in second.shards]


def test_names_that_clash_are_an_error_that_says_what_to_do(images: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Two scorers give sharpness, contrast, entropy: set the `name`"):
        Score(images="images", scorers=(Sharpness(), Sharpness(size=64)))
    stage = Score(images="images", scorers=(Sharpness(), Sharpness(size=64, name="small")))
    assert (
        "small_sharpness"
        in column(made(stage, {"images": images}, tmp_path / "a"), "scores.json")["k000"].decode()
    )
    # A function's names show only when it has answered.
    (tmp_path / "mine.py").write_text("def score(image, facts): return {'shorter': 1}")
    own = Function(function="mine:score", path=str(tmp_path))
    with pytest.raises(ValueError, match="Two scorers give shorter"):
        made(Score(images="images", scorers=(Size(), own)), {"images": images}, tmp_path / "b")
    with pytest.raises(ValueError, match="`similarity` needs `captions`"):
        Score(images="images", scorers=(Similarity(path="/x"),))


def test_a_function_sees_the_metadata(images: Dataset, tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text("def length(image, facts): return len(facts['text']) + image.width")
    stage = Score(images="images", scorers=(Function(function="told:length", path=str(tmp_path)),))
    found = column(made(stage, {"images": images}, tmp_path / "scores"), "scores.json")
    assert json.loads(found["k000"]) == {"length": len("thing 0") + tiny.SIZE}


@dataclass(frozen=True, kw_only=True)
class Stub:
    """A gate that passes, refuses, hangs, crashes and raises, by the number in the key."""

    kind: Literal["stub"] = "stub"
    reads: ClassVar[tuple[str, ...]] = ("image",)
    pixels: ClassVar[bool] = True
    guarded: ClassVar[bool] = True
    names: ClassVar[tuple[str, ...]] = ("verdict",)

    def external(self) -> dict[str, str]:
        return {"model": "version 1"}

    def build(self, *, micro_batch: int = 16) -> Stub:
        return self

    def scores(self, subjects: Sequence[Subject]) -> list[Scores | Unscored]:
        from tests.pipelines.scorers.failing import opened

        does = {7: "hang", 11: "crash", 13: "raise", 17: "exit"}
        items = [{"do": does.get(int(s.key[1:]), "pass"), "n": int(s.key[1:]) % 2} for s in subjects]
        return Guarded(opened, {}, seconds=0.3, what="The stub")(items)


def test_what_cannot_be_scored_is_not_kept(images: Dataset, tmp_path: Path) -> None:
    scores = made(Score(images="images", scorers=(Size(), Stub())), {"images": images}, tmp_path / "scores")
    lost = {f"k{n:03d}" for n in (7, 11, 13, 17)}
    assert set(column(images, "image")) - set(column(scores, "scores.json")) == lost
    assert scores.manifest["counts"]["reasons"] == {"unscored": 4}
    assert scores.manifest["statistics"]["unscored"] == {
        "stub: timed out": 1, "stub: signal 11": 1, "stub: ArithmeticError: a number": 1, "stub: code 3": 1
    }  # fmt: skip
    assert scores.manifest["statistics"]["scorers"][1]["digests"] == {"model": "version 1"}
    # Even where no threshold is set to the gate's own verdict.
    for keep in ({"verdict": Threshold(max=0.5)}, {"shorter": Threshold(min=1)}, {}):
        kept = made(
            Filter(scores=("scores",), keep=keep),
            {"scores": (scores,)},
            tmp_path / str(len(list(tmp_path.iterdir()))),
        )
        passed = set(column(kept, "keep"))
        assert not passed & lost
        wanted = {k for k in column(images, "image") if not ("verdict" in keep and int(k[1:]) % 2)}
        assert passed == wanted - lost
        assert kept.manifest["statistics"]["others"] == {"unscored": 4}


def test_only_what_is_needed_is_read(images: Dataset) -> None:
    assert Score(images="images", scorers=(Sharpness(),)).columns("images") == ("image",)
    assert Score(images="images").columns("images") == ("image", "json")
    assert Score(images="images", scorers=(Nsfw(),)).external().keys() == {"0 nsfw open-nsfw"}
    # A GPU is taken by those alone that use it.
    seen = Score(images="images", captions="c", scorers=(Size(), Similarity(path="/x")))
    assert seen.accelerated
    assert not Score(images="images", scorers=(Nsfw(), Sharpness())).accelerated


def test_a_config_loads_nothing_heavy() -> None:
    code = (
        "import sys; from pipelines.stages.score import Score; from pipelines.stages.filter import Filter\n"
        "from pipelines.scorers import Nsfw, Sharpness; Score(images='x', scorers=(Nsfw(), Sharpness()))\n"
        "heavy = {'torch', 'PIL', 'numpy', 'pyarrow', 'onnxruntime', 'open_clip', 'transformers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
