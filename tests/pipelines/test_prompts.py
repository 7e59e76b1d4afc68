from __future__ import annotations

from typing import Any

import pytest

from pipelines.prompts import Ask, asks, class_id, formatted

CLASSES = ["circle", "Square", "cross"]


@pytest.mark.parametrize(
    ("template", "prompt", "made"),
    [
        ("a 3D emoji of {text}", "a red fox", "a 3D emoji of a red fox"),
        ("a 3D emoji of {text}", "a 3D emoji of a red fox", "a 3D emoji of a red fox"),
        ("{text}, drawn", "fox", "fox, drawn"),
        ("{text}", "fox", "fox"),
        ("a {label} of {text}", "fox", "fox"),
        (None, "fox", "fox"),
    ],
)
def test_prompt_in_its_template(template: str | None, prompt: str, made: str) -> None:
    assert formatted(template, prompt) == made


def test_classes_by_name_and_id() -> None:
    assert [class_id(name, CLASSES) for name in ("circle", "square", "CROSS", 1)] == [0, 1, 2, 1]
    assert [class_id(name, ["a", "A"]) for name in ("a", "A")] == [0, 1]


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("sqare", CLASSES, "Did you mean Square"),
        ("zebra", CLASSES, "There are: circle, Square, cross"),
        (3, CLASSES, "0 to 2"),
        ("circle", [], "knows no classes"),
        (0, [], "knows no classes"),
    ],
)
def test_class_that_is_not_there(name: str | int, known: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        class_id(name, known)


def asked(prompts: Any, classes: Any, **fields: Any) -> list[Ask]:
    return asks(prompts, classes, **{"known": CLASSES, "text": True, "template": "a {text}", **fields})


def test_prompts_and_classes_side_by_side() -> None:
    assert asked(["x", "y"], ["cross"]) == [Ask(prompt="a x", label=2), Ask(prompt="a y", label=2)]
    assert asked(["x"], ["cross", "circle"]) == [Ask(prompt="a x", label=2), Ask(prompt="a x", label=0)]
    assert asked(["x", "y"], None) == [Ask(prompt="a x"), Ask(prompt="a y")]
    assert asked(None, None) == []


def test_model_that_reads_no_text_says_so() -> None:
    with pytest.raises(ValueError, match="reads no text: give classes"):
        asked(["x"], None, text=False)
    with pytest.raises(ValueError, match="unconditional"):
        asked(["x"], None, text=False, known=[])
