"""What img2dataset wrote: each address ends once, as an image or with the reason why it is none."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from pipelines.sources.img2dataset import Img2datasetSource
from tests.pipelines.sources.downloads import Output, shard
from tests.pipelines.sources.hostile_tars import png
from tests.pipelines.sources.reading import everything, images, leaves, rejects

OUTPUTS: tuple[Output, ...] = ("webdataset", "files", "parquet")


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kept", [False, True], ids=["encoded", "kept"])
def test_every_row_ends_once(output: Output, kept: bool, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    fate = {"failed": (3, 4), "unsized": (7,), "vanished": (9, 11), "unwritten": (0, 13)}
    shard(folder, 0, 30, png, output=output, kept=kept, **fate)
    shard(folder, 1, 5, lambda n: png(100 + n), output=output, kept=kept)
    source = Img2datasetSource(path=folder)
    assert len(leaves(source)) == 2
    found = everything(source, tmp_path)
    assert len([one for one in found if not one.side]) == 35
    assert Counter(rejects(found).values()) == {
        "download_failed": 2,
        "resize_failed": 1,
        "lost_by_img2dataset": 4,
    }
    by_key = {one.key: one for one in found if one.key}
    lost = {one.name for one in found if one.reject == "lost_by_img2dataset"}
    assert lost == {"00000/000000000", "00000/000000009", "00000/000000011", "00000/000000013"}
    assert by_key["000000003"].facts["error"] == "HTTP Error 404: Not Found"
    assert by_key["000000007"].facts["error"] == "Image decoding error"
    kept_images = images(found)
    assert {one.key: one.data for one in kept_images.values()} == {
        **{f"00000{n:04d}": png(n) for n in range(30) if n not in {0, 3, 4, 7, 9, 11, 13}},
        **{f"00001{n:04d}": png(100 + n) for n in range(5)},
    }
    facts = by_key["000000001"].facts
    assert (facts["text"], facts["url"], facts["camera"]) == ("number 1", "http://127.0.0.1/1.png", "x")
    assert facts.get("downloaded_width") == (None if kept else 1)
    assert "canary" not in json.dumps([dict(one.facts) for one in found])


def test_an_image_that_no_table_names_is_kept(tmp_path: Path) -> None:
    shard(tmp_path / "a", 0, 6, png)
    shard(tmp_path / "b", 0, 4, png)
    (tmp_path / "a" / "00000.parquet").write_bytes((tmp_path / "b" / "00000.parquet").read_bytes())
    (tmp_path / "a" / "00000_stats.json").write_bytes((tmp_path / "b" / "00000_stats.json").read_bytes())
    found = everything(Img2datasetSource(path=tmp_path / "a"), tmp_path)
    assert not rejects(found)
    unlisted = [one.key for one in found if one.facts.get("unlisted_by_img2dataset")]
    assert unlisted == ["000000004", "000000005"]
    assert len(images(found)) == 6


@pytest.mark.parametrize("output", OUTPUTS)
def test_other_bytes_than_were_downloaded(output: Output, tmp_path: Path) -> None:
    """100 swaps of files that were kept as they came: 100 are told of."""
    folder = tmp_path / "in"
    shard(folder, 0, 100, png, output=output, kept=True)
    shard(tmp_path / "other", 0, 100, lambda n: png((n + 1) % 100), output=output, kept=True)
    if output == "webdataset":
        (folder / "00000.tar").write_bytes((tmp_path / "other" / "00000.tar").read_bytes())
    elif output == "files":
        for n in range(100):
            (folder / "00000" / f"00000{n:04d}.jpg").write_bytes(png((n + 1) % 100))
    else:
        import pyarrow.parquet as pq

        rows, other = (pq.read_table(place / "00000.parquet") for place in (folder, tmp_path / "other"))
        swapped = rows.set_column(rows.schema.get_field_index("jpg"), "jpg", other["jpg"])
        pq.write_table(swapped, folder / "00000.parquet")
    found = everything(Img2datasetSource(path=folder), tmp_path)
    assert Counter(rejects(found).values()) == {"digest_mismatch": 100}


def test_a_tar_of_another_run(tmp_path: Path) -> None:
    """Of encoded images nobody knows the digest; but the .json beside each must be that of its row."""
    shard(tmp_path / "in", 0, 20, png)
    shard(tmp_path / "other", 0, 20, lambda n: png(200 + n))
    (tmp_path / "in" / "00000.tar").write_bytes((tmp_path / "other" / "00000.tar").read_bytes())
    found = everything(Img2datasetSource(path=tmp_path / "in"), tmp_path)
    assert Counter(rejects(found).values()) == {"digest_mismatch": 20}


@pytest.mark.parametrize("cut", [0, 700, 5000, 20_000])
def test_a_shard_that_was_being_written(cut: int, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shard(folder, 0, 12, png, finished=False)
    tar = folder / "00000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:cut])
    (folder / "00000.parquet").write_bytes(b"PAR1")
    found = everything(Img2datasetSource(path=folder), tmp_path)
    reasons = Counter(rejects(found).values())
    assert reasons["unfinished_shard"] == 1
    assert reasons["truncated_tar"] == 1
    assert reasons["unreadable"] == 0
    assert len(images(found)) >= (4 if cut == 20_000 else 0)


def test_a_cut_tar_of_a_finished_shard_loses_no_row_silently(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shard(folder, 0, 40, png, failed=(1,))
    tar = folder / "00000.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    found = everything(Img2datasetSource(path=folder), tmp_path)
    reasons = Counter(rejects(found).values())
    assert reasons["truncated_tar"] == 1
    assert len(images(found)) + reasons["lost_by_img2dataset"] + reasons["download_failed"] == 40
    assert 0 < len(images(found)) < 39


def test_a_table_that_is_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shard(folder, 0, 5, png)
    table = folder / "00000.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    found = everything(Img2datasetSource(path=folder), tmp_path)
    assert rejects(found)["00000.parquet"] == "unreadable"
    assert len(images(found)) == 5


def test_counts_that_lie(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shard(folder, 0, 3, png)
    (folder / "00000_stats.json").write_text('{"count": 5}')
    found = everything(Img2datasetSource(path=folder), tmp_path)
    assert sorted(rejects(found)) == ["00000/000000003", "00000/000000004"]
    (folder / "00000_stats.json").write_text("[" * 100_000)
    assert rejects(everything(Img2datasetSource(path=folder), tmp_path)) == {"00000": "unfinished_shard"}


def test_what_is_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no shards of img2dataset"):
        Img2datasetSource(path=tmp_path).roots()
    (tmp_path / "00000.tfrecord").write_bytes(b"")
    with pytest.raises(ValueError, match="--output_format webdataset"):
        Img2datasetSource(path=tmp_path).roots()
