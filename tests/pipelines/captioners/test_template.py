from __future__ import annotations

import pytest

from pipelines.captioners import Answer, Caption, Subject, Template, merged


def say(template: str, /, **fields: object) -> list[str]:
    (answer,) = Template(text=template).build().answers([Subject(fields=fields)])
    return [caption.text for caption in answer.captions]


def test_fields_of_the_metadata() -> None:
    assert say("a 3D emoji of {text}", text="a red fox", label="x") == ["a 3D emoji of a red fox"]
    assert say("{subgroup}: {label}", label="cat", subgroup="animal mammal") == ["animal mammal: cat"]
    assert say("number {n}, {{braces}}", n=7) == ["number 7, {braces}"]
    assert say("  two\n lines of {text} ", text=" x ") == ["two lines of x"]
    assert say("no field at all") == ["no field at all"]


@pytest.mark.parametrize("value", [None, "", "  ", True, ["a"]])
def test_what_says_nothing_makes_no_caption(value: object) -> None:
    subject = Subject(fields={"text": value})
    captioner = Template(text="a {text}").build()
    assert captioner.answers([subject]) == [Answer(reject="no_text")]


def test_a_template_that_cannot_be_read_is_refused() -> None:
    for text in ("{text", "a {0}", "{text.__class__}", "{text!r}", "{text:>10}", " "):
        with pytest.raises(ValueError, match="template|plain name"):
            Template(text=text)
    with pytest.raises(ValueError, match="above 0"):
        Template(weight=0)


def test_equal_captions_are_one_with_both_weights() -> None:
    a = Caption(text="x", weight=1, source="template")
    b = Caption(text="y", weight=1, source="template")
    c = Caption(text="x", weight=0.5, source="tags", probability=0.5)
    assert merged([a, b, c]) == [Caption(text="x", weight=1.5, source="template"), b]
