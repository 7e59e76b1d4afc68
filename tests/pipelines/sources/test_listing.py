"""Keys: each from its own name and nothing else, and no two alike."""

from __future__ import annotations

import hashlib
import itertools

from pipelines.shards import is_key
from pipelines.sources.listing import Entry, Listing, hashed_key, plain_key, printable


def hashed(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def test_keys_are_the_sources_own_names_where_they_can_be() -> None:
    plain = {
        "a.jpg": "a",
        "cat/001.png": "cat__001",
        "0023-20e3.webp": "0023-20e3",
        "no ending/x": None,
        "b": "b",
    }
    for name, key in plain.items():
        assert plain_key(name) == key
        assert hashed_key(name) == hashed(name)


def test_other_names_are_hashed() -> None:
    for name in (
        "a b.jpg",
        "é.jpg",
        "x.y.jpg",
        "\udcff.jpg",
        "a" * 90 + ".jpg",
        "a__b.jpg",
        "_a.jpg",
        "a_/b.jpg",
    ):
        assert plain_key(name) is None
        assert hashed_key(name) == hashed(name)


def test_no_two_names_but_for_the_ending_have_one_key() -> None:
    parts = ("a", "_", "b", "/", "a_", "__")
    names = {
        "".join(p).strip("/").replace("//", "/") + ".jpg"
        for n in (1, 2, 3, 4)
        for p in itertools.product(parts, repeat=n)
    }
    found = [plain_key(name) or hashed_key(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(is_key(key) for key in found)


def test_classes_are_in_the_order_of_their_names_or_numbers() -> None:
    def classes(*labels: object) -> list[str]:
        return Listing(
            entries=[
                Entry(name=f"{n}", key=f"{n}", where=n, digest="", facts={"label": label})
                for n, label in enumerate(labels)
            ]
        ).classes

    assert classes("b", "a", None, "b") == ["a", "b"]
    assert classes(10, "9", 1) == ["1", "9", "10"]


def test_names_become_printable_without_becoming_equal() -> None:
    names = ["a\nb", "a\\nb", "a\x1b[31mb", "\udcff", "é", "a\u202eb"]
    assert all(printable(name).isprintable() and printable(name).encode() for name in names)
    assert printable("é") == "é"
