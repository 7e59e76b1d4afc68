"""What an endpoint failed at is asked for again, and nothing else is, by the commands that a user types."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import pipelines.tracking
from pipelines.__main__ import main
from pipelines.captioners import exchange
from pipelines.dataset import Dataset
from tests.pipelines import tiny
from tests.pipelines.captioners.serving import Question, Reply, said, serving
from tests.pipelines.stages.making import column

KEY = "sk-canary-0123456789"
RECIPE = """
name: again
stages:
  seen:
    stage: caption
    images: {images}
    captioners: [{{kind: endpoint, url: {url}, model: tiny-vl, key_env: TINY_KEY, retries: 1, price_in: 1.0}}]
    max_rejects: 0.5
  words: {{stage: caption, images: {images}, captioners: [{{kind: template, text: "a {{text}}"}}]}}
  captions: {{stage: caption, images: {images}, captions: [seen, words], captioners: {more}}}
"""


@pytest.fixture(autouse=True)
def quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.tracking, "Tracker", _no_tracker)
    monkeypatch.setenv("TINY_KEY", KEY)
    monkeypatch.setattr(exchange, "FIRST_WAIT", 0.001)


def _no_tracker(*_: Any, **__: Any) -> Any:
    raise ValueError("not in this test")


def test_transient_failures_are_retried_and_a_captioner_that_comes_later_asks_nobody_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tiny.images(tmp_path / "images", classes=())
    pictures = column(images, "image")
    down = {pictures["k002"], pictures["k013"], pictures["k027"]}
    answering = set(pictures.values()) - down
    asked = Counter[bytes]()

    def behave(question: Question) -> Reply:
        asked[question.image] += 1
        return said("a square") if question.image in answering else Reply(status=503)

    def run(url: str, *flags: str, more: str = "[]") -> dict[str, Any]:
        recipe = tmp_path / "again.yaml"
        recipe.write_text(RECIPE.format(images=tmp_path / "images", url=url, more=more))
        store = ["--store", str(tmp_path / "store"), "--executor", "inline", "--json", *flags]
        assert main(["run", str(recipe), *store]) == 0
        told = json.loads(capsys.readouterr().out)
        return {s["name"]: Dataset.open(images.storage.at(s["folder"])) for s in told["stages"]}

    with serving(behave) as server:
        made = run(server.url)
        lost = sum(pictures[key] in down for key in pictures)
        assert made["seen"].manifest["counts"]["reasons"] == {"endpoint_unavailable": lost}
        assert made["captions"].manifest["counts"]["rejected"] == 0
        assert column(made["captions"], "txt")["k002"] == b"a thing 2"

        answering |= down
        asked.clear()
        made = run(server.url, "--retry-rejects")
        assert set(asked) == down
        assert asked.total() == lost
        assert made["seen"].manifest["counts"]["rejected"] == 0
        assert column(made["captions"], "txt")["k002"] == b"a square"

        asked.clear()
        made = run(server.url, more="[{kind: template, text: 'it is {text}', weight: 0.5}]")
        listed = json.loads(column(made["captions"], "captions.json")["k002"])
        assert [c["text"] for c in listed] == ["a square", "a thing 2", "it is thing 2"]
    # Its server is gone, or has another address: nobody is asked again.
    run("http://127.0.0.1:9/v1", more="[{kind: template, text: 'it is {text}', weight: 0.5}]")
    assert not asked
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
