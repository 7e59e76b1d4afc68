from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.training.tasks.rows import Decoded, Rows
from tests.pipelines import tiny


def test_rows_that_lack_a_required_column_are_dropped(tmp_path: Path) -> None:
    partly = tiny.dataset(tmp_path / "a", lambda key, n: {"a.npy": b"1"} if n % 2 else {"b.npy": b"2"})
    other = tiny.dataset(tmp_path / "b", lambda key, n: {"c.npy": key.encode()})

    rows = Rows({"a": partly, "b": other}, split="train", required={"a": "a.npy"})

    assert len(rows) == tiny.TRAIN // 2
    assert rows.read(0, "b", "c.npy") == b"k001"
    assert not rows.has(0, "a", "b.npy")


def test_split_without_rows_is_said_unless_it_may_be_empty(tmp_path: Path) -> None:
    images = tiny.dataset(tmp_path, lambda key, n: {"a.npy": b"1"})
    with pytest.raises(ValueError, match="test split has no sample with a.npy of images"):
        Rows({"images": images}, split="test", required={"images": "a.npy"})
    assert len(Rows({"images": images}, split="test", required={"images": "a.npy"}, optional=True)) == 0


@pytest.mark.parametrize("budget", [0, 10**6])
def test_decoded_is_the_same_in_memory_and_not(budget: int) -> None:
    asked: list[int] = []

    def decode(n: int) -> np.ndarray:
        asked.append(n)
        return np.full((2, 3), n, np.float32)

    decoded = Decoded(decode, 5, dtype=np.float16, budget=budget)
    for _ in range(2):
        np.testing.assert_array_equal(decoded[[4, 1, 4]][:, 0, 0], np.array([4, 1, 4], np.float16))
    assert len(asked) == (1 + 6 if budget == 0 else 1 + 3)
