"""The command line as its user meets it: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pytest
from PIL import Image

import pipelines.stages
from cluster.gang import GangPaused, Member
from pipelines import config
from pipelines.__main__ import main
from pipelines.commands import results
from pipelines.stage import Input, Stage

RECIPE = """\
# latentmill run tiny
# no time at all
name: tiny
stages:
  first: {stage: note, text: hello}
  second: {stage: note, before: first, text: world}
"""


def waits(config: dict[str, Any], member: Member) -> dict[str, Any]:
    """Trains until it is told to end, which it is."""
    os.kill(os.getpid(), signal.SIGTERM)
    while not member.stopping():
        pass
    raise GangPaused("Stopped at 8 images, which are safe.")


@dataclass(frozen=True, kw_only=True)
class Note(Stage):
    """Writes a text."""

    output: ClassVar[Any] = "report"
    before: Annotated[str | None, Input("report")] = None
    text: str
    fails: bool = False

    def summary(self) -> str:
        return f"the text {self.text}"

    def run(self, session: Any) -> dict[str, Any]:
        if self.text == "interrupt":
            raise KeyboardInterrupt
        if self.text == "told to end":
            session.gang(waits, {})
        if self.fails:
            raise ValueError("there is no ink.")
        session.output.replace("text.txt", self.text.encode())
        return {}


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store and recipes of the test's own, one kind of stage, and no MLflow."""
    import pipelines.tracking

    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "tiny.yaml").write_text(RECIPE)
    monkeypatch.setattr(config, "RECIPES", recipes)
    monkeypatch.setattr(pipelines.stages, "STAGES", {"note": f"{__name__}:Note"})
    monkeypatch.setattr(pipelines.tracking, "Tracker", _no_tracker)
    monkeypatch.setenv("LATENTMILL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


def _no_tracker(*_: Any, **__: Any) -> Any:
    raise ValueError("not in this test")


def test_help_and_a_list_of_recipes_import_nothing_heavy() -> None:
    code = (
        "import sys, pipelines.__main__ as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "m.main(['run'])\n"
        "heavy = ('torch', 'ray', 'mlflow', 'pydantic', 'pyarrow', 'fsspec', 'PIL', 'numpy', 'webdataset')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for command in ("init", "plan", "run", "generate", "export", "ui"):
        assert f"• {command}" in done.stdout


def test_run_alone_lists_what_is_shipped_with_its_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 0
    assert "tiny\n  latentmill run tiny\n  no time at all\n" in capsys.readouterr().out
    assert main(["run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"tiny": ["latentmill run tiny", "no time at all"]}


def test_plan_says_what_would_run_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "tiny", "--second.text", "there"]) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert "first (note)" in first
    assert "the text hello" in first
    assert "new" in first
    assert "the text there" in second
    assert "after first" in second
    assert main(["plan", "tiny", "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [(s["name"], s["state"]) for s in stages] == [("first", "run"), ("second", "after")]


def test_run_does_it_once_and_says_what_is_next(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "tiny", "--executor", "inline", "--second.text", "there"]) == 0
    out = capsys.readouterr().out
    assert "second: starts" in out
    assert "latentmill run tiny --second.text there" in out
    assert "latentmill init" in out
    assert {p.read_text() for p in tmp_path.glob("store/note/*/text.txt")} == {"hello", "there"}
    assert main(["run", "tiny", "--executor", "inline", "--second.text", "there"]) == 0
    again = capsys.readouterr().out
    assert "starts" not in again
    assert len(re.findall(r"  finished *\n", again)) == 2


def test_run_prints_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", "--executor", "inline", "--json", "--until", "first"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["done"] is True
    assert [s["name"] for s in said["stages"]] == ["first"]


def test_force_runs_a_finished_stage_again(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "tiny", "--executor", "inline", "--until", "first"]
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--force", "first"]) == 0
    assert "first: starts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "tny"], "no recipe is called 'tny'; did you mean 'tiny'?"),
        (["run", "no.yaml"], "there is no recipe no.yaml; `latentmill init DIR` writes one for your images."),
        (["plan", "tiny", "--first.txt", "x"], "--first.txt: there is no such field; did you mean 'text'?"),
        (["plan", "tiny", "--until", "frist"], "There is no stage 'frist' in tiny; did you mean first?"),
        (["generate", "x", "--count", "0"], "--count is 0; it must be at least 1."),
        (["generate", "x", "y", "z", "--classes", "a", "b"],
         "3 texts and 2 classes: give one class, or one for each text."),
        (["generate", "--file", "no.txt"], "there is no file no.txt."),
        (["generate", "x", "--model", "tiny:third"], "tiny has no stage 'third'; there are: first, second."),
        (["generate", "x", "--model", "tiny:first"],
         "tiny:first is not finished; `latentmill run tiny` makes it."),
        (["init", "nowhere"], "there is no nowhere."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == ("", [f"latentmill: {line}"])


def test_a_stage_that_fails_is_told_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", "--executor", "inline", "--second.fails", "true"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "latentmill: second: there is no ink.",
        "latentmill: what is finished stays; again: latentmill run tiny --second.fails true",
    ]


def test_told_to_end_a_training_ends_at_a_checkpoint_and_the_run_with_75(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["run", "tiny", "--executor", "inline", "--first.text", "told to end"]) == 75
    assert "goes on from here" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_ends_with_130_and_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", "--executor", "inline", "--first.text", "interrupt"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        "latentmill: stopped; `latentmill run tiny --executor inline --first.text interrupt`"
    )


class Painter:
    """Stands in for a model: draws each picture in the grey of its place, and remembers what it was asked."""

    asked: dict[str, Any]

    def generate(self, prompts: Any, **arguments: Any) -> list[Image.Image]:
        self.asked = {"prompts": prompts, **arguments}
        return [Image.fromarray(np.full((8, 8, 3), n, np.uint8)) for n in range(len(arguments["indices"]))]


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    painter = Painter()
    models = types.ModuleType("pipelines.models")
    models.load = lambda reference, store: painter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipelines.models", models)
    monkeypatch.setattr(pipelines, "models", models, raising=False)
    return painter


def test_generate_draws_each_text_with_the_same_seeds_and_writes_where_it_comes_from(
    painter: Painter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more.txt").write_text("a rocket\n\n")
    assert (
        main(["generate", "a red fox", "--file", "more.txt", "--count", "2", "--seed", "7", "--steps", "9"])
        == 0
    )
    assert painter.asked == {
        "prompts": ["a red fox", "a red fox", "a rocket", "a rocket"],
        "classes": None,
        "seed": 7,
        "indices": [0, 1, 0, 1],
        "steps": 9,
        "guidance": None,
    }
    names = ["a-red-fox-7-0.png", "a-red-fox-7-1.png", "a-rocket-7-0.png", "a-rocket-7-1.png"]
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == names
    assert "pictures/a-rocket-7-1.png" in capsys.readouterr().out
    with Image.open(tmp_path / "pictures" / "a-rocket-7-1.png") as picture:
        written = json.loads(picture.text["latentmill"])  # pyright: ignore
        assert picture.getpixel((0, 0)) == (3, 3, 3)
    assert written == {"prompt": "a rocket", "class": None, "model": "emoji3d", "seed": 7, "index": 1}


def test_generate_draws_classes_and_tells_json(painter: Painter, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--classes", "coat", "bag", "--out", "drawn", "--json"]) == 0
    assert (painter.asked["prompts"], painter.asked["classes"]) == (None, ["coat", "bag"])
    said = json.loads(capsys.readouterr().out)
    assert [p["file"] for p in said["pictures"]] == ["drawn/coat-0-0.png", "drawn/bag-0-0.png"]


def test_a_finished_stage_is_named_by_recipe_and_stage(painter: Painter, tmp_path: Path) -> None:
    assert main(["run", "tiny", "--executor", "inline", "--until", "first"]) == 0
    from pipelines.commands.reference import resolve

    folder = next(tmp_path.glob("store/note/*"))
    assert resolve("tiny:first", None).endswith(str(folder))
    for other in ("models:/fox@champion", "s3://bucket/set", "/some/folder", "emoji3d"):
        assert resolve(other, None) == other


def test_scores_are_told_with_their_meaning_and_floor() -> None:
    interval = {"value": 0.0123, "low": 0.01, "high": 0.015}
    floor = {"value": 0.0001, "low": -0.001, "high": 0.001}
    told = results.lines(
        {
            "name": "KID-EffLite0",
            "rows": [
                {"label": "this run", "role": "main", "kid": interval, "precision": 0.62, "recall": 0.4},
                {"label": "real", "role": "floor", "kid": floor},
            ],
            "conditioning": {"true": 0.5, "shuffled": 0.53, "difference": 0.03, "low": 0.02, "high": 0.04},
            "neighbours": {
                "generated": {"median": 0.9},
                "held_out": {"median": 1.1},
                "closer": {"value": 0.015},
            },
        }
    )
    assert told == [
        "KID-EffLite0 x 1000: how far two sets of images lie apart; real against real is the floor",
        "  this run     12.3  (10.0 to 15.0)",
        "  real          0.1  (-1.0 to 1.0)   <- the floor",
        "precision 62%: generated images that lie among the real ones",
        "recall 40%: real images that the generated ones cover",
        "held-out loss 0.5000 with the true captions, 0.5300 with shuffled ones "
        "(difference 0.0300, 0.0200 to 0.0400): the model reads its captions",
        "distance to the nearest training image 0.9, of held-out real images 1.1: 1.5% of the generated ones "
        "lie closer than 99 % of the real ones do "
        "(about 1 % is to be expected of a model that copies nothing)",
    ]
    assert results.lines({}) == []


def test_ui_says_where_things_are_and_serves_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.commands import ui

    monkeypatch.setattr(ui, "ray_dashboard", lambda: None)
    database = tmp_path / "store" / "mlflow.db"
    assert main(["ui", "--json", "--port", "5050"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["mlflow"] == "http://127.0.0.1:5050"
    assert said["record"] == f"sqlite:///{database}"
    assert main(["ui"]) == 2
    assert "there is no record at" in capsys.readouterr().err

    started: list[list[str]] = []
    monkeypatch.setattr(ui.subprocess, "call", lambda command, env: started.append(command) or 0)
    database.parent.mkdir()
    database.touch()
    assert main(["ui", "--port", "5050"]) == 0
    assert started[0][1:4] == ["-m", "mlflow", "server"]
    assert started[0][started[0].index("--host") + 1] == "127.0.0.1"


def test_a_dashboard_is_named_only_where_one_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from pipelines.commands import ui

    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/version" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Dashboard)
    port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ui, "DASHBOARD_PORTS", [port])
    assert ui.ray_dashboard() == f"http://127.0.0.1:{port}"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert ui.ray_dashboard() == f"http://127.0.0.1:{port}"
    server.shutdown()
    server.server_close()
    assert ui.ray_dashboard() is None
