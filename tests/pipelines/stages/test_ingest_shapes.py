"""Ingest to several shapes, to one resampling, and by container alone; copies kept in one split."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipelines
from pipelines.buckets import Buckets
from pipelines.dataset import Dataset
from pipelines.duplicates import Semantic
from pipelines.sources import FolderSource
from pipelines.sources.split import Split
from pipelines.stages.ingest import Ingest
from tests.pipelines.stages.making import column, made

ALL = Split(distance=None, validation=0, test=0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))


def emoji(count: int) -> list[Image.Image]:
    archive = zipfile.ZipFile(Path(pipelines.__file__).parent / "data" / "emoji3d.zip")
    names = sorted(name for name in archive.namelist() if name.endswith(".webp"))[::7][:count]
    found = []
    for name in names:
        drawn = Image.open(io.BytesIO(archive.read(name))).convert("RGBA")
        ground = Image.new("RGBA", drawn.size, "white")
        ground.alpha_composite(drawn)
        found.append(ground.convert("RGB"))
    return found


def write(folder: Path, images: dict[str, Image.Image], form: str = "PNG", **how: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        image.save(folder / name, form, **how)


def facts(dataset: Dataset) -> dict[str, dict]:
    return {key: json.loads(data) for key, data in column(dataset, "json").items()}


def test_images_keep_their_shape_and_small_shapes_go_to_the_nearest(tmp_path: Path) -> None:
    shapes = {"wide": (96, 48), "tall": (48, 96), "square": (64, 64), "odd": (90, 60)}
    images = {
        f"{name}{n}.png": emoji(1)[0].resize(size)
        for name, size in shapes.items()
        for n in range(1 if name == "odd" else 4)
    }
    write(tmp_path / "in", images)
    buckets = Buckets(area=32, step=8, ratio=2.0, smallest=3)
    stage = Ingest(source=FolderSource(path=tmp_path / "in"), buckets=buckets, split=ALL)
    dataset = made(stage, {}, tmp_path / "out")
    sizes = {key: (said["width"], said["height"]) for key, said in facts(dataset).items()}
    for key, data in column(dataset, "image").items():
        assert Image.open(io.BytesIO(data)).size == sizes[key]
    for name, shape in shapes.items():
        if name != "odd":
            assert {sizes[f"{name}{n}"] for n in range(4)} == {buckets.nearest(*shape)}
    alone = buckets.nearest(*shapes["odd"])
    counts = {buckets.nearest(*shapes[name]): 4 for name in ("wide", "tall", "square")} | {alone: 1}
    assert len(counts) == 4, "the odd one has a shape of its own"
    assert sizes["odd0"] == buckets.merged(counts)[alone] != alone
    assert sum(count for *_, count in dataset.manifest["statistics"]["sizes"]) == 13
    assert dataset.manifest["warnings"] == [buckets.warning(counts)]


def test_a_shape_that_many_others_join_makes_only_those_anew(tmp_path: Path) -> None:
    picture = emoji(1)[0]
    write(tmp_path / "in", {f"{n}.png": picture.resize((64, 64)) for n in range(4)})
    write(tmp_path / "in", {"odd.png": picture.resize((90, 60))})
    stage = Ingest(
        source=FolderSource(path=tmp_path / "in"), buckets=Buckets(area=32, step=8, smallest=2), split=ALL
    )
    reads = {row.key: row.reads for shard in stage.plan({}) for row in stage.rows({}, shard)}
    write(tmp_path / "in", {"odd2.png": picture.resize((91, 60))})
    after = {row.key: row.reads for shard in stage.plan({}) for row in stage.rows({}, shard)}
    assert {key for key in reads if after[key] != reads[key]} == {"odd"}


def test_containers_alone_are_read_where_nothing_is_decoded(tmp_path: Path) -> None:
    pictures = emoji(3)
    write(tmp_path / "in", {f"{n}.jpg": one for n, one in enumerate(pictures)}, "JPEG", comment=b"canary")
    broken = bytearray((tmp_path / "in" / "0.jpg").read_bytes())
    middle = len(broken) // 2
    broken[middle : middle + 40] = bytes(40)
    (tmp_path / "in" / "broken.jpg").write_bytes(bytes(broken))
    source = FolderSource(path=tmp_path / "in")
    stage = Ingest(source=source, resize="none", validate="header", split=ALL)
    kept = column(made(stage, {}, tmp_path / "header"), "image")
    assert set(kept) == {"0", "1", "2", "broken"}
    assert not any(b"canary" in data for data in kept.values())
    for n in range(3):
        before = Image.open(tmp_path / "in" / f"{n}.jpg").convert("RGB")
        assert np.array_equal(
            np.asarray(before), np.asarray(Image.open(io.BytesIO(kept[str(n)])).convert("RGB"))
        )
    whole = dataclasses.replace(stage, validate="full")
    full = column(made(whole, {}, tmp_path / "full"), "image")
    assert {key for key in kept if full[key] != kept[key]} == {"broken"}, "decoded, it is seen"
    looked = dataclasses.replace(whole, split=Split(validation=0, test=0))
    assert column(made(looked, {}, tmp_path / "looked"), "image") == full, "whoever decodes it"
    with pytest.raises(ValueError, match="decodes all"):
        Ingest(source=source, validate="header")


def test_copies_of_every_kind_are_in_one_split(tmp_path: Path) -> None:
    originals = emoji(40)
    twins: dict[str, Image.Image] = {}
    for n, image in enumerate(originals):
        side = image.width
        cut = side // 20
        twins[f"{n:03d}-crop.png"] = image.crop((cut, cut, side - cut, side - cut))
        hue, saturation, value = image.convert("HSV").split()
        twins[f"{n:03d}-hue.png"] = Image.merge(
            "HSV", (hue.point(lambda level: (level + 40) % 256), saturation, value)
        ).convert("RGB")
    write(tmp_path / "in", {f"{n:03d}.png": image for n, image in enumerate(originals)} | twins)

    def straddling(split: Split) -> int:
        stage = Ingest(source=FolderSource(path=tmp_path / "in"), size=64, split=split)
        where = {row.key: shard.split for shard in stage.plan({}) for row in stage.rows({}, shard)}
        return sum(where[name.removesuffix(".png")] != where[name[:3]] for name in twins)

    shares = {"validation": 0.3, "test": 0.3}
    assert straddling(Split(**shares, distance=None)) > 10, "apart, where copies are not looked for"
    assert straddling(Split(**shares, near=Semantic())) == 0
