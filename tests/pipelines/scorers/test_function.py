from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.scorers import Function, Scores, Subject, Unscored
from pipelines.stage import jsonable

SOURCE = """
import os
print("loaded")
open({canary!r}, "w").close()
def red(image, facts):
    return image.getpixel((0, 0))[0]
def several(image, facts):
    return {{"wide": image.width, "told": facts["stars"]}}
def words(image, facts):
    return "seven"
def picky(image, facts):
    return 1 / facts["stars"]
def nothing(image, facts):
    return float("nan")
def secret(image, facts):
    return float("AWS_SECRET_ACCESS_KEY" in os.environ)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / "taste").mkdir(parents=True)
    (folder / "taste" / "__init__.py").write_text("raise SystemExit('loaded')")
    (folder / "taste" / "inner.py").write_text("def f(image, facts): return 1")
    (folder / "likes.py").write_text(SOURCE.format(canary=str(tmp_path / "canary")))
    return folder


def subject(key: str = "k", **facts: Any) -> Subject:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 5), (200, 10, 10)).save(buffer, "PNG")
    return Subject(key=key, data=buffer.getvalue(), facts=facts)


def scored(package: Path, called: str, /, *subjects: Subject, **fields: Any) -> list[Scores | Unscored]:
    config = Function(function=f"likes:{called}", path=str(package), **fields)
    return config.build().scores(subjects or [subject(stars=4)])


def test_numbers_and_dicts_of_numbers(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scored(package, "red") == [{"red": 200}]
    assert scored(package, "red", name="warmth") == [{"warmth": 200}]
    assert scored(package, "several") == [{"wide": 9, "told": 4}]
    assert scored(package, "several", name="my") == [{"my_wide": 9, "my_told": 4}]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    assert scored(package, "secret") == [{"secret": 0}]


def test_mistakes_are_one_line(package: Path) -> None:
    with pytest.raises(ValueError, match="likes:words raised on k: TypeError: it gave str") as error:
        scored(package, "words")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="likes:picky raised on b: ZeroDivisionError"):
        scored(package, "picky", subject("a", stars=2), subject("b", stars=0))
    with pytest.raises(ValueError, match="raised on k: ValueError: a score is nan"):
        scored(package, "nothing")
    with pytest.raises(ValueError, match="likes:missing cannot be imported: AttributeError"):
        scored(package, "missing")
    (package / "likes.py").write_text("import no_such_thing")
    with pytest.raises(ValueError, match="cannot be imported: ModuleNotFoundError: No module named 'no_such"):
        scored(package, "red")
    with pytest.raises(ValueError, match=r"written as package\.module:name"):
        Function(function="likes.red")


def test_where_told_to_go_on_what_raises_is_unscored(package: Path) -> None:
    given = [subject("a", stars=2), subject("b", stars=0), subject("c", stars=4)]
    assert scored(package, "picky", *given, errors="unscored") == [
        {"picky": 0.5},
        Unscored("ZeroDivisionError: division by zero"),
        {"picky": 0.25},
    ]


def test_a_plan_reads_the_source_and_does_not_run_it(package: Path, tmp_path: Path) -> None:
    before = Function(function="likes:red", path=str(package)).external()
    assert Function(function="taste.inner:f", path=str(package)).external().keys() == {"taste.inner:f"}
    assert not (tmp_path / "canary").exists()
    assert not {"likes", "taste", "taste.inner"} & set(sys.modules)
    source = package / "likes.py"
    source.write_text(source.read_text() + "# another thought\n")
    assert Function(function="likes:red", path=str(package)).external() != before
    with pytest.raises(ValueError, match=r"there is no module no_such\.module on Python's path"):
        Function(function="no_such.module:f").external()


def test_how_long_it_may_take_and_where_it_lies_are_no_meaning() -> None:
    assert jsonable(Function(function="a:b", path="/x", seconds=3, errors="unscored")) == jsonable(
        Function(function="a:b")
    )
    assert jsonable(Function(function="a:b", revision=1)) != jsonable(Function(function="a:b"))
