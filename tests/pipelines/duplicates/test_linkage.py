"""Who falls for whom: never over a third, and never a held-out image for one of training."""

from __future__ import annotations

import random

from pipelines.duplicates.linkage import Member, Pair, components, link


def member(key: str, split: str = "train", area: int = 0, digest: str = "") -> Member:
    return Member(key=key, split=split, digest=digest or key, area=area)


def test_nothing_chains() -> None:
    found = link([member(key) for key in "abc"], [], [Pair(0, 1, 0.95), Pair(1, 2, 0.95)])
    assert [link.twin for link in found] == [None, 0, None]
    assert [link.cluster for link in found] == [0, 0, 2]


def test_held_out_images_stay_and_training_falls() -> None:
    members = [member("a"), member("b", "validation"), member("c", "test"), member("d", "test")]
    pairs = [Pair(a, b, 0.9) for a in range(4) for b in range(a)]
    found = link(members, [], pairs)
    # c before d by key; the validation image has no twin of its own split
    assert [link.twin for link in found] == [2, None, None, 2]
    assert {link.cluster for link in found} == {2}


def test_the_larger_original_is_kept_then_the_smaller_key() -> None:
    members = [member("a", area=10), member("b", area=99), member("c", area=99)]
    found = link(members, [], [Pair(a, b, 0.9) for a in range(3) for b in range(a)])
    assert [link.twin for link in found] == [1, None, 1]


def test_equal_bytes_come_before_likeness() -> None:
    members = [
        member("a", digest="x"),
        member("b", digest="y"),
        member("c", digest="x"),
        member("d", digest="y"),
    ]
    found = link(members, [[0, 2], [1, 3]], [])
    assert [(link.twin, link.exact) for link in found] == [(None, False), (None, False), (0, True), (1, True)]
    # a pair of one member stands for its whole group
    found = link(members, [[0, 2], [1, 3]], [Pair(2, 1, 0.9)])
    assert [(link.twin, link.exact) for link in found] == [(None, False), (0, False), (0, True), (0, False)]


def test_invariants_of_random_pairs() -> None:
    draw = random.Random(0)
    for _ in range(30):
        splits = draw.choices(["train", "validation", "test"], k=40)
        members = [member(f"{n:02d}", split, draw.randrange(3)) for n, split in enumerate(splits)]
        pairs = [Pair(*draw.sample(range(40), 2), draw.random()) for _ in range(80)]
        near = {(p.a, p.b) for p in pairs} | {(p.b, p.a) for p in pairs}
        found = link(members, [], pairs)
        assert found == link(members, [], draw.sample(pairs, len(pairs))), "the order of pairs matters"
        kept = {n for n, link in enumerate(found) if link.twin is None}
        for n, one in enumerate(found):
            if one.twin is not None:
                assert (n, one.twin) in near
                assert one.twin in kept
                assert splits[one.twin] == splits[n] or splits[n] == "train"
            assert one.cluster == n or (n, one.cluster) in near
        for a, b in near:
            if a in kept and b in kept:
                assert splits[a] != splits[b], "two kept copies in one split"
                assert "train" not in (splits[a], splits[b]), "a leak"


def test_components_join_over_others() -> None:
    assert components(5, [(3, 1), (4, 3)]) == [0, 1, 2, 1, 1]
