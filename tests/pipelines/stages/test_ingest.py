"""Ingest: every input ends as a sample or as a reject, and only what changed is another sample."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.storage import Storage
from pipelines.dataset import Dataset, describe, write_manifest
from pipelines.shards import write_shard
from pipelines.sources import FolderSource, IdxSource, ZipSource, untrusted
from pipelines.sources.split import Split
from pipelines.stages.ingest import Ingest
from tests.pipelines.sources import corpus, deadly


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    before = os.environ.get("LATENTMILL_CACHE")
    os.environ["LATENTMILL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("LATENTMILL_CACHE")
    if before is not None:
        os.environ["LATENTMILL_CACHE"] = before


def ingest(stage: Ingest, folder: Path) -> Dataset:
    storage = Storage.at(folder)
    make = stage.open({})
    infos = []
    for shard in stage.plan({}):
        rows = stage.rows({}, shard)
        assert len(rows) == shard.count
        pairs = zip(rows, make(shard, rows), strict=True)
        infos.append(
            write_shard(storage, shard.name, pairs, split=shard.split, work=lambda row: "".join(row.reads))
        )
    manifest = describe(infos, stage="ingest")
    manifest |= stage.finish({}, Dataset(storage, manifest))
    write_manifest(storage, manifest)
    return Dataset.open(storage)


def samples(dataset: Dataset) -> dict[str, tuple[dict, Image.Image, str]]:
    """File name -> facts, picture, split."""
    found = {}
    for shard in dataset.shards:
        for record in dataset.read(shard.name, columns=("image", "json")):
            facts = json.loads(record.members["json"])
            found[facts["file_name"]] = (facts, Image.open(io.BytesIO(record.members["image"])), record.split)
    return found


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("dirty")
    corpus.write(folder / "in", corpus.files())
    (folder / "in" / ".DS_Store").write_bytes(b"x")
    (folder / "in" / "plain.txt").write_text("a plain picture\n")
    (folder / "in" / "notes.md").write_text("no picture")
    stage = Ingest(
        source=FolderSource(path=folder / "in"),
        size=32,
        background="#ff0000",
        max_bytes=2_000_000,
        max_pixels=10_000_000,
    )
    return folder / "in", ingest(stage, folder / "out")


def test_every_input_gets_the_verdict_it_deserves(dirty: tuple[Path, Dataset]) -> None:
    folder, dataset = dirty
    source = FolderSource(path=folder)
    names = {entry.key: entry.name for entry in source.listing().entries}
    verdicts = {
        names[key]: reason
        for shard in dataset.shards
        for key, reason in zip(dataset.index(shard.name).keys, dataset.index(shard.name).reasons, strict=True)
    }
    assert verdicts == {name: reason for name, (_, reason) in corpus.files().items()}
    counts = dataset.manifest["counts"]
    assert counts["inputs"] == len(corpus.files()) == counts["committed"] + counts["rejected"]
    assert sum(counts["reasons"].values()) == counts["rejected"]
    assert dataset.manifest["statistics"]["ignored"] == 1, "notes.md; the sidecar belongs to its picture"


def test_pictures_are_seen_as_they_are_meant(dirty: tuple[Path, Dataset]) -> None:
    found = samples(dirty[1])
    assert {image.size for _, image, _ in found.values()} == {(32, 32)}
    # Upright: orientation 6 is turned by a quarter to the right.
    facts, image, _ = found["rotated.jpg"]
    upright = corpus.scene(8).rotate(-90, expand=True)
    assert (facts["original_width"], facts["original_height"]) == upright.size == (64, 96)
    expected = upright.crop((0, 16, 64, 80)).resize((32, 32), Image.Resampling.LANCZOS)
    assert np.abs(pixels(image) - pixels(expected)).mean() < 5
    # Transparency shows the background, not black: the left edge of the middle square is a third opaque.
    alpha = pixels(found["alpha.png"][1])
    assert alpha[:, :2, 0].mean() > alpha[:, -2:, 0].mean() or alpha[:, 0, 0].mean() > 150
    whole = pixels(corpus.scene(20).crop((16, 0, 80, 64)).resize((32, 32), Image.Resampling.LANCZOS))
    share = np.linspace(16, 79, 32)[None, :, None] / 95
    assert np.abs(alpha - (whole * share + np.array([255, 0, 0]) * (1 - share))).mean() < 5
    deep = pixels(found["sixteen bits.png"][1])
    assert deep[0, 0, 0] < 3
    assert 228 < deep[-1, -1, 0] < 242, "16 bits are scaled, not clipped"
    cmyk = pixels(found["cmyk.jpg"][1])
    plain = pixels(corpus.scene(7).crop((16, 0, 80, 64)).resize((32, 32), Image.Resampling.LANCZOS))
    assert np.abs(cmyk - plain).mean() < 40


def test_facts_come_along(dirty: tuple[Path, Dataset]) -> None:
    found = samples(dirty[1])
    assert found["plain.jpg"][0]["text"] == "a plain picture"
    assert found["a/same.jpg"][0]["label"] == "a"
    assert "label" not in found["plain.jpg"][0]
    assert "line\\nbreak.jpg" in found
    assert "n\u0303 nfd \U0001f98a.jpg" in found
    assert dirty[1].classes == ["a", "b", "c"]
    ids = {
        record.key: int(record.members["cls"])
        for shard in dirty[1].shards
        for record in dirty[1].read(shard.name, columns=("cls",))
    }
    assert {key: n for key, n in ids.items() if key in ("a__same", "b__same")} == {"a__same": 0, "b__same": 1}
    assert len(ids) == 4


def test_metadata_of_the_files_does_not_come_along(dirty: tuple[Path, Dataset]) -> None:
    for name, (_, image, _) in samples(dirty[1]).items():
        if name not in ("tiny.png",):
            assert not image.getexif(), name
            assert "icc_profile" not in image.info, name


def test_bytes_that_nothing_changes_are_kept(tmp_path: Path) -> None:
    images = {
        "a.jpg": corpus.save(corpus.scene(1, (32, 32)), "JPEG"),
        "b.webp": corpus.save(corpus.scene(2, (32, 32)), "WEBP"),
        "c.png": corpus.save(corpus.scene(3, (32, 32)), "PNG"),
        "d.png": corpus.save(corpus.scene(4, (33, 32)), "PNG"),
        "e.png": corpus.save(corpus.scene(5, (32, 32)).convert("RGBA"), "PNG"),
    }
    corpus.write(tmp_path / "in", {name: (data, None) for name, data in images.items()})
    stage = Ingest(
        source=FolderSource(path=tmp_path / "in"), size=32, split=Split(distance=None, validation=0, test=0)
    )
    dataset = ingest(stage, tmp_path / "out")
    found = {r.key: r.members["image"] for r in dataset.read("00000")}
    assert {key for key, data in found.items() if data in images.values()} == {"a", "b", "c"}
    assert {data[8:12] for key, data in found.items() if key in "de"} == {b"WEBP"}
    as_they_are = ingest(
        Ingest(
            source=FolderSource(path=tmp_path / "in"),
            resize="none",
            split=Split(distance=None, validation=0, test=0),
        ),
        tmp_path / "none",
    )
    kept = {r.key: r.members["image"] for r in as_they_are.read("00000")}
    assert {key for key, data in kept.items() if data in images.values()} == {"a", "b", "c", "d"}
    with Image.open(io.BytesIO(kept["e"])) as image:
        assert np.array_equal(pixels(image), pixels(corpus.scene(5, (32, 32)))), "lossless"


def emoji(folder: Path, count: int, start: int = 0) -> None:
    for n in range(start, start + count):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"p{n:03d}.png").write_bytes(corpus.save(corpus.scene(1000 + n, (40, 40)), "PNG"))


def layout(stage: Ingest) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Key -> shard, split, digests of what decides the sample; as planned, without making it."""
    return {
        row.key: (shard.name, shard.split, row.reads)
        for shard in stage.plan({})
        for row in stage.rows({}, shard)
    }


def test_ten_more_images_move_nothing(tmp_path: Path) -> None:
    emoji(tmp_path / "in", 90)
    stage = Ingest(
        source=FolderSource(path=tmp_path / "in"),
        size=32,
        samples_per_shard=50,
        split=Split(validation=0.1, test=0.1),
    )
    digest, before = stage.external(), layout(stage)
    for path in (tmp_path / "in").iterdir():
        os.utime(path)
    assert stage.external() == digest, "a touched file is the same file"
    emoji(tmp_path / "in", 10, start=90)
    assert stage.external() != digest
    after = layout(stage)
    assert len(before) == 90
    assert len(after) == 100
    assert {key: after[key] for key in before} == before
    assert {split for _, split, _ in after.values()} == {"train", "validation", "test"}


def test_zip_and_folder_are_the_same_source(tmp_path: Path) -> None:
    emoji(tmp_path / "in", 6)
    (tmp_path / "in" / "metadata.jsonl").write_text(
        "\n".join(
            json.dumps({"file_name": f"p{n:03d}.png", "text": f"t{n}", "rating": n / 2}) for n in range(7)
        )
    )
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in sorted((tmp_path / "in").iterdir(), reverse=True):
            archive.write(path, path.name)
    split = Split(distance=None, validation=0, test=0)
    stages = [
        Ingest(source=source, size=32, split=split)
        for source in (FolderSource(path=tmp_path / "in"), ZipSource(path=tmp_path / "in.zip"))
    ]
    assert stages[0].external() == stages[1].external()
    one, other = (ingest(stage, tmp_path / f"out{n}") for n, stage in enumerate(stages))
    assert [s.sha256 for s in one.shards] == [s.sha256 for s in other.shards]
    assert one.manifest["counts"]["reasons"] == {"missing": 1}
    assert samples(one)["p003.png"][0] | {"width": 0} == {
        "file_name": "p003.png",
        "text": "t3",
        "rating": 1.5,
        "width": 0,
        "height": 32,
        "original_width": 40,
        "original_height": 40,
    }


def test_near_duplicates_share_a_split(tmp_path: Path) -> None:
    for n in range(40):
        image = corpus.scene(2000 + n, (64, 64))
        for name, copy in (("a", image), ("b", image.resize((50, 50))), ("c", image.transpose(0))):
            path = tmp_path / "in" / f"{name}{n}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(corpus.save(copy, "JPEG", quality=60 if name == "b" else 90))
    stage = Ingest(
        source=FolderSource(path=tmp_path / "in"), size=32, split=Split(validation=0.25, test=0.25)
    )
    splits = {key: split for key, (_, split, _) in layout(stage).items()}
    together = sum(splits[f"a{n}"] == splits[f"b{n}"] == splits[f"c{n}"] for n in range(40))
    assert together >= 39
    assert len(set(splits.values())) == 3
    statistics = stage.finish({}, None)["statistics"]
    assert statistics["leaks"] == {"near": 0, "exact": 0}
    assert statistics["duplicates"]["images"] >= 117


def test_a_stated_split_is_kept_and_its_leaks_are_told(tmp_path: Path) -> None:
    twin = corpus.save(corpus.scene(1), "JPEG")
    near = corpus.save(corpus.scene(1).resize((60, 40)), "JPEG")
    for split, images in (
        ("train", {"x": twin, "y": corpus.save(corpus.scene(2), "JPEG")}),
        ("test", {"x": twin, "z": near, "w": corpus.save(corpus.scene(3), "JPEG")}),
    ):
        corpus.write(tmp_path / "in" / split, {f"{name}.jpg": (data, None) for name, data in images.items()})
    stage = Ingest(source=FolderSource(path=tmp_path / "in"), size=32)
    assert {shard.split: shard.count for shard in stage.plan({})} == {"train": 2, "test": 3}
    assert stage.finish({}, None)["statistics"]["leaks"] == {"near": 2, "exact": 1}


def test_an_image_that_kills_its_reader_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emoji(tmp_path / "in", 7)
    monkeypatch.setattr(untrusted, "open_make", deadly.open_make)
    (tmp_path / "in" / "p003.png").write_bytes(deadly.poisoned(3, deadly.MAGIC["crash"]))
    stage = Ingest(
        source=FolderSource(path=tmp_path / "in"), size=32, split=Split(distance=None, validation=0, test=0)
    )
    dataset = ingest(stage, tmp_path / "out")
    assert dataset.manifest["counts"] == {
        "inputs": 7,
        "committed": 6,
        "rejected": 1,
        "reasons": {"poison": 1},
    }


def test_a_source_that_changes_under_way_is_an_error(tmp_path: Path) -> None:
    emoji(tmp_path / "in", 3)
    stage = Ingest(source=FolderSource(path=tmp_path / "in"), size=32, split=Split(distance=None))
    shard = stage.plan({})[0]
    rows = stage.rows({}, shard)
    for row in rows:
        (tmp_path / "in" / row.data["name"]).write_bytes(corpus.save(corpus.scene(5), "PNG"))
    with pytest.raises(ValueError, match="changed while it was read"):
        list(stage.open({})(shard, rows))


def test_idx_keeps_the_official_split(tmp_path: Path) -> None:
    import gzip
    import struct

    draw = np.random.default_rng(0)
    truth = {}
    for split, count in (("train", 12), ("t10k", 5)):
        images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = draw.integers(0, 10, count, dtype=np.uint8)
        for name, magic, array in (("images-idx3", 0x803, images), ("labels-idx1", 0x801, labels)):
            shape = struct.pack(f">{array.ndim + 1}I", magic, *array.shape)
            with gzip.open(tmp_path / f"{split}-{name}-ubyte.gz", "wb") as file:
                file.write(shape + array.tobytes())
        truth[split.replace("t10k", "test")] = (images, labels)
    stage = Ingest(source=IdxSource(path=tmp_path), resize="pad", size=32, background="#000000", format="png")
    dataset = ingest(stage, tmp_path / "out")
    assert {s.split: s.samples for s in dataset.shards} == {"train": 12, "test": 5}
    for shard in dataset.shards:
        for record in dataset.read(shard.name, columns=("image", "cls", "json")):
            split, _, n = record.key.partition("-")
            image = np.asarray(Image.open(io.BytesIO(record.members["image"])))
            assert image.shape == (32, 32)
            assert np.array_equal(image[2:30, 2:30], truth[split][0][int(n)])
            assert image.sum() == truth[split][0][int(n)].sum()
            name = json.loads(record.members["json"])["label"]
            assert (
                name
                == IdxSource().names[truth[split][1][int(n)]]
                == dataset.classes[int(record.members["cls"])]
            )


def test_missing_idx_files_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"apt-get install dataset-fashion-mnist.*dpkg-deb -x"):
        Ingest(source=IdxSource(path=tmp_path)).external()


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"size": 4}, "8 to 4096"),
        ({"background": "white"}, "#ffffff"),
        ({"samples_per_shard": 0}, "at least 1"),
    ],
)
def test_senseless_settings_are_refused(tmp_path: Path, change: dict, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        Ingest(source=FolderSource(path=tmp_path), **change)


def test_where_a_source_lies_means_nothing(tmp_path: Path) -> None:
    one, other = (Ingest(source=FolderSource(path=tmp_path / name)) for name in "ab")
    assert one.meaning() == other.meaning()
    with pytest.raises(ValueError, match="not a folder"):
        one.external()


def test_the_output_is_what_it_was(tmp_path: Path) -> None:
    """A change here without a raised `Ingest.version` lets old shards stand for new ones."""
    emoji(tmp_path / "in", 3)
    (tmp_path / "in" / "p001.txt").write_text("words")
    dataset = ingest(
        Ingest(
            source=FolderSource(path=tmp_path / "in"),
            size=16,
            format="png",
            split=Split(distance=None, validation=0, test=0),
        ),
        tmp_path / "out",
    )
    hasher = hashlib.sha256()
    for record in dataset.read("00000", columns=("image", "json")):
        hasher.update(record.key.encode() + record.members["json"])
        hasher.update(pixels(Image.open(io.BytesIO(record.members["image"]))).astype(np.uint8).tobytes())
    assert (Ingest.version, hasher.hexdigest()[:16]) == (2, "810779ac6ae66e21")
