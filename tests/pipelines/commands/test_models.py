from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from cluster.storage import Storage
from pipelines.__main__ import main
from pipelines.commands import console as consoles
from pipelines.commands.models import age
from pipelines.registry import Registry
from tests.pipelines.test_registry import registered, snapshot


def test_ages_in_words() -> None:
    assert [age(s) for s in (5, 90, 720, 5 * 3600, 3 * 86400)] == ["5 s", "90 s", "12 min", "5 h", "3 days"]


def foxes(store: Storage) -> Registry:
    """Three versions of a fox: the second is champion after the first, and has scores and a picture."""
    registry = Registry.of(store)
    versions = [registered(registry, snapshot(store, n)) for n in (1, 2, 3)]
    registry.promote(versions[0], by="promote", why="the first")
    registry.promote(versions[1], by="promote", why="a gain of 14.2 (9.0 to 19.1)")
    buffer = io.BytesIO()
    Image.new("RGB", (16, 8), (200, 30, 30)).save(buffer, format="PNG")
    drawn = store.folder("promote").folder("x")
    drawn.replace("candidate.png", buffer.getvalue())
    scores = {"kid": "83.1", "kid_low": "77.4", "kid_high": "89.8", "kid_name": "KID-EffLite0"}
    registry.note(versions[1], **scores, images_seen="150016", picture=f"{drawn.url}/candidate.png")
    return registry


@pytest.fixture(scope="module")
def shared(mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """For those that only look."""
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(mlflow_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        foxes(Storage.at(folder))
    return Storage.at(folder)


@pytest.fixture
def registry(shared: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("LATENTMILL_STORE", shared.url)
    monkeypatch.setenv("COLUMNS", "140")


@pytest.mark.usefixtures("registry")
def test_versions_with_their_scores_and_aliases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fox  3 versions"
    third, second, first = lines[1:4]
    assert third.split()[:2] == ["3", "candidate"]
    assert second.split()[:2] == ["2", "champion"]
    assert "150,016 images seen" in second
    assert "KID-EffLite0 x 1000 83.1 (77.4 to 89.8)" in second
    assert first.split()[0] == "1"
    assert main(["models", "fox"]) == 0
    whole = capsys.readouterr().out
    assert "champion after version 1 from " in whole
    assert "a gain of 14.2 (9.0 to 19.1)" in whole


@pytest.mark.usefixtures("registry")
def test_pictures_are_shown_where_the_terminal_has_colours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    screen = Console(force_terminal=True, color_system="truecolor", width=140, highlight=False)
    monkeypatch.setattr("pipelines.commands.models.console", lambda: screen)
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert out.count("▀") == 16 * 4
    assert "38;2;200;30;30" in out
    assert consoles.console().color_system is None


def test_back_and_forth_by_hand(
    mlflow_store: Storage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTMILL_STORE", mlflow_store.url)
    registry = foxes(mlflow_store)
    assert main(["models", "fox", "--rollback", "--because", "it draws cats"]) == 0
    assert "fox: version 1 is champion again, in place of 2." in capsys.readouterr().out
    assert registry.resolve("models:/fox/2").tags["rolled_back_why"] == "it draws cats"
    assert main(["models", "fox", "--promote", "3", "--because", "I like it", "--json"]) == 0
    champion = json.loads(capsys.readouterr().out)["champion"]
    assert (champion["version"], champion["champion_before"]) == (3, 1)
    assert champion["tags"]["promoted_by"].startswith("hand (")
    assert main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["models"]["fox"]
    assert [(v["version"], v["aliases"]) for v in found] == [(3, ["candidate", "champion"]), (2, []), (1, [])]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["foxx"], "no model is registered as 'foxx'; did you mean 'fox'?"),
        (["--rollback"], "say which model: `latentmill models NAME --rollback` or --promote VERSION."),
        (["fox", "--promote", "3"], "--promote passes by the gate: say why with --because TEXT."),
        (["fox", "--promote", "3", "--rollback"], "--rollback and --promote are two ways: give one."),
        (["fox", "--promote", "9", "--because", "x"], "The registry at "),
        (["fox", "--rollback", "--store", "nowhere"], "fox has no champion: "),
    ],
)
@pytest.mark.usefixtures("registry")
def test_a_mistake_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", *arguments]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"latentmill: {line}")


def test_nothing_registered_is_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["models", "--store", str(tmp_path)]) == 0
    assert "Nothing is registered" in capsys.readouterr().out
