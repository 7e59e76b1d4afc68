"""Metadata files: what they say, and where exactly they are wrong."""

from __future__ import annotations

import pytest

from pipelines.sources.metadata import TEXT_LENGTH, parse, scalars, text


def test_csv() -> None:
    data = '\ufefffile_name,text,label,n\na.jpg,"two\nlines, and a comma",x,3\nsub/b.jpg,,y,\n'.encode()
    assert parse("metadata.csv", data) == {
        "a.jpg": {"text": "two\nlines, and a comma", "label": "x", "n": "3"},
        "sub/b.jpg": {"label": "y"},
    }


def test_names_are_relative_to_the_metadata() -> None:
    assert set(parse("train/metadata.jsonl", b'{"file_name": "x/../a.jpg"}\n')) == {"train/a.jpg"}


def test_jsonl_keeps_kinds() -> None:
    data = b'{"file_name":"a","n":1,"f":0.5,"b":true,"tags":["x",null,"y"],"nan":NaN,"none":null}\n\n'
    facts = parse("metadata.jsonl", data)["a"]
    assert facts == {"n": 1, "f": 0.5, "b": True, "tags": ["x", "y"]}
    assert scalars(facts) == {"n": 1, "f": 0.5, "b": True}


def test_several_texts_of_one_image() -> None:
    data = b"file_name,text\na,one\na,two\na,one\nb,x\n"
    assert parse("metadata.csv", data) == {"a": {"text": "one", "texts": ["one", "two"]}, "b": {"text": "x"}}


def test_a_caption_is_a_text() -> None:
    assert parse("metadata.csv", b"file_name,caption\na,words\n")["a"] == {"text": "words"}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("metadata.csv", b"name,text\na,b\n", "no column file_name"),
        ("metadata.csv", b"file_name,text\na,b\n,c\n", "line 3: there is no file_name"),
        ("metadata.csv", b"file_name\n\xff\xfe\n", "not UTF-8"),
        ("metadata.jsonl", b'{"file_name":"a"}\n{"file', "line 2: not JSON"),
        ("metadata.jsonl", b"[1]\n", "line 1: not a JSON object"),
        ("metadata.jsonl", b'{"file_name":7}\n', "line 1: there is no file_name"),
        ("metadata.jsonl", b"[" * 100_000, "line 1: not JSON"),
    ],
)
def test_mistakes_are_told_with_their_line(name: str, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(name, data)


def test_texts_are_data_and_no_terminal_commands() -> None:
    assert text("\ufeff  words \x1b[31m\x00\u202e here\r\n".encode()) == "words  [31m   here"
    assert text(b" \n\t ") is None
    assert text(b"\xff\xfe words") == "\ufffd\ufffd words"
    assert len(text(b"x" * 10**6) or "") == TEXT_LENGTH
