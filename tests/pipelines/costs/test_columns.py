from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest

from pipelines.arrays import to_npy
from pipelines.costs import columns


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 5000])
def test_a_member_takes_what_a_tar_gives_it(length: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("key.npy")
        info.size = length
        tar.addfile(info, io.BytesIO(bytes(length)))
        assert columns.member(length) == tar.offset


def test_an_array_takes_what_it_is_written_as() -> None:
    moments = np.zeros((8, 12, 12), np.float16)
    assert columns.array(8, 12, 12) == columns.member(len(to_npy(moments)))


def test_a_finished_dataset_says_what_each_column_holds() -> None:
    """Bytes of the tars are shared out whole, and an image is not counted twice under its two names."""
    shard = {
        "bytes": 10_240,
        "samples": 4,
        "columns": {
            "image": {"count": 4, "bytes": 4000},
            "webp": {"count": 4, "bytes": 4000},
            "json": {"count": 4, "bytes": 240},
        },
    }
    held = columns.held([shard, shard], 8, row=100)
    assert set(held) == {"webp", "json", columns.INDEX}
    assert held["webp"] - held["json"] == pytest.approx((4000 - 240) / 4)
    assert columns.total(held, 8) == pytest.approx(2 * 10_240 + 8 * 100)
