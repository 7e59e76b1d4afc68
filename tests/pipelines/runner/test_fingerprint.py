"""Fingerprints and work keys: what changes them, what does not, and that they stay what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffusion.config import OptimizationConfig
from pipelines.runner.fingerprint import Identity, digest, work_key, work_of
from pipelines.stage import Resources, Row, jsonable
from tests.pipelines.toys import Learn, Times


class Given:
    """An input whose digest is said."""

    def __init__(self, name: str) -> None:
        self.name = name

    def digest(self, columns: tuple[str, ...] = ()) -> str:
        return f"{self.name} {','.join(columns)}"


INPUTS = {"numbers": Given("numbers"), "model": Given("snapshot")}


def times(**fields: Any) -> Times:
    return Times(**{"numbers": "x", "model": "y", **fields})


def test_golden():
    """Stores out there are found by these: if this fails, every finished output runs again."""
    assert digest({"b": 1, "a": [0.5, None, "é"]}) == "3bcfcb058d8a4df5eb71db0755f057c7"
    assert Identity.of(times(), INPUTS).fingerprint == "7c4694e4af76bf876f57e079a70dec19"
    assert work_of(times(), INPUTS) == "66be6d953727b45bc46d08c826cb9861"


def test_a_later_field_at_its_default_is_as_if_it_were_not_there():
    """At any depth: what was finished before it came stays finished."""
    then = {"lr", "betas", "weight_decay", "clip", "warmup", "cooldown", "ema"}
    assert jsonable(OptimizationConfig()).keys() == then
    assert jsonable(OptimizationConfig(matrices="muon")) == {
        **jsonable(OptimizationConfig()),
        "matrices": "muon",
    }


def test_what_a_fingerprint_is_of():
    first = Identity.of(times(), INPUTS).fingerprint
    same = [times(log="x"), times(resources=Resources(workers=7)), times(numbers="other_name")]
    assert {Identity.of(stage, INPUTS).fingerprint for stage in same} == {first}
    others = [
        Identity.of(times(factor=3), INPUTS),
        Identity.of(times(), {**INPUTS, "model": Given("another")}),
        Identity.of(times(), {**INPUTS, "numbers": Given("more numbers")}),
        Identity.of(times(model=None), {**INPUTS, "model": None}),
    ]
    assert len({first, *(identity.fingerprint for identity in others)}) == 5


def test_work_is_that_of_a_row_and_not_of_the_dataset():
    first = work_of(times(), INPUTS)
    assert work_of(times(), {**INPUTS, "numbers": Given("more numbers")}) == first
    assert work_of(times(), {**INPUTS, "model": Given("another")}) != first
    assert work_of(times(factor=3), INPUTS) != first
    assert work_of(times(model=None), {**INPUTS, "model": None}) != first
    row = Row(key="a", reads=("digest",))
    assert work_key(first, row) == work_key(first, Row(key="renamed", reads=("digest",)))
    assert work_key(first, row) != work_key(first, Row(key="a", reads=("other",)))
    assert work_key(first, Row(key="a", reject="too_large")) == ""


@pytest.mark.parametrize(("fields", "same"), [({"images_seen": 9}, True), ({"rate": 2}, False)])
def test_a_lineage_is_shared_by_all_lengths(fields: dict[str, Any], same: bool, tmp_path: Path):
    short, other = (Identity.of(Learn(numbers="x", **f), INPUTS) for f in ({}, fields))
    assert short.fingerprint != other.fingerprint
    assert (short.lineage(Learn.length) == other.lineage(Learn.length)) is same
