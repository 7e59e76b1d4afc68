"""A dataset as show tells of it, against what was put into it."""

from __future__ import annotations

import io
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from cluster.storage import Storage
from pipelines.dataset import Dataset, describe, write_manifest
from pipelines.inspection import page, sheet, telling
from pipelines.inspection.sample import sample
from pipelines.inspection.summary import rejected, summarise
from pipelines.inspection.thing import Thing, at, lineage
from pipelines.shards import canonical, write_shard
from pipelines.stage import Row, Sample
from tests.pipelines.test_view import rows, view
from tests.pipelines.tiny import images

HOSTILE = '<script>alert(1)</script>"\x1b[31m'


def picture(width: int, height: int, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def made(folder: Path) -> Storage:
    """Twenty images in two shards, four of them rejected; `captions` of the same line beside it."""
    storage, captions = Storage.at(folder / "images"), Storage.at(folder / "captions")
    sizes = [(16, 16), (32, 16), (16, 32), (48, 48)]
    infos, theirs = [], []
    for name, split, numbers in (("00000", "train", range(12)), ("00001", "test", range(12, 20))):
        pairs, texts = [], []
        for n in numbers:
            key, (width, height) = f"k{n:02d}", sizes[n % 4]
            facts = {"width": width, "height": height, "file_name": f"a/{n}.png", "label": HOSTILE}
            bad = "truncated" if n in (1, 2) else "too_large" if n in (3, 17) else None
            name_only = {"file_name": f"a/{n}{HOSTILE}.png"}
            cls = str(n % 2).encode()
            members = {"png": picture(width, height), "json": canonical(facts), "cls": cls}
            pairs.append((Row(key=key), Sample(key=key, meta=name_only, reject=bad) if bad
                          else Sample(key=key, members=members, meta={**facts, "blur": n / 10})))  # fmt: skip
            caption = {"txt": f"{HOSTILE} {n:02d}".encode()}
            texts.append(
                (Row(key=key), Sample(key=key, reject=bad) if bad else Sample(key=key, members=caption))
            )
        infos.append(write_shard(storage, name, pairs, split=split))
        theirs.append(write_shard(captions, name, texts, split=split))
    write_manifest(storage, describe(infos, stage="ingest", classes=["red", HOSTILE]))
    inputs = {"images": {"reference": "images", "stage": "ingest", "url": storage.url, "digest": "d"}}
    write_manifest(captions, describe(theirs, stage="caption", inputs=inputs))
    return storage


def test_every_count_is_what_was_put_in(tmp_path: Path) -> None:
    found = summarise(at("x", made(tmp_path)))
    assert found.samples == 16
    assert found.reasons == {"truncated": 2, "too_large": 2}
    assert found.examples["truncated"] == [f"a/1{HOSTILE}.png", f"a/2{HOSTILE}.png"]
    good = [n for n in range(20) if n not in (1, 2, 3, 17)]
    assert found.classes == Counter("red" if n % 2 == 0 else HOSTILE for n in good)
    assert dict(found.histograms["aspect"].bars()) == Counter(
        {0: "1:1", 1: "2:1", 2: "1:2", 3: "1:1"}[n % 4] for n in good
    )
    assert found.histograms["size"].total == 16
    assert found.scores["blur"].as_json()["max"] == 1.9
    assert {name: c["samples"] for name, c in found.splits.items()} == {"train": 9, "test": 7}
    assert summarise(at("x", made(tmp_path)), split="test").samples == 7
    with pytest.raises(ValueError, match="has no split 'val'; it has test, train"):
        summarise(at("x", made(tmp_path)), split="val")


def test_rejects_lead_to_their_source_from_every_dataset_of_the_line(tmp_path: Path) -> None:
    made(tmp_path)
    thing = at("x", Storage.at(tmp_path / "captions"))
    assert [source for source, _, _ in rejected(thing, "too_large")] == [
        f"a/{n}{HOSTILE}.png" for n in (3, 17)
    ]
    assert summarise(thing).examples["truncated"] == [f"a/{n}{HOSTILE}.png" for n in (1, 2)]
    with pytest.raises(
        ValueError, match="no sample with the reason 'blurred': the reasons are too_large, trunc"
    ):
        rejected(thing, "blurred")
    told, shown = sample(thing, "k17")
    assert (told["reason"], told["source"], shown) == ("too_large", f"a/17{HOSTILE}.png", None)


def test_a_sample_is_told_with_all_that_its_line_knows(tmp_path: Path) -> None:
    made(tmp_path)
    told, shown = sample(at("x", Storage.at(tmp_path / "captions")), "k05")
    assert told["txt"] == f"{HOSTILE} 05"
    assert told["json"]["width"] == 32
    assert told["shard"].endswith("/captions/00000.tar")
    assert shown is not None
    assert shown.picture == picture(32, 16)
    lines = [*telling.sample(told)]
    assert not [line for line in lines if "\x1b" in line]
    with pytest.raises(ValueError, match="has no sample 'zz'"):
        sample(at("x", Storage.at(tmp_path / "captions")), "zz")


def test_the_choice_of_pictures_depends_on_keys_and_seed_alone(tmp_path: Path) -> None:
    thing = at("x", made(tmp_path))
    picks = summarise(thing, pictures=5).picks
    assert len(picks) == 5
    assert {p.key for p in picks} <= {p.key for p in summarise(thing, pictures=9).picks}
    assert picks == summarise(thing, pictures=5).picks
    assert picks != summarise(thing, pictures=5, seed=1).picks
    drawn = sheet.draw(sheet.shown(thing, picks))
    assert drawn == sheet.draw(sheet.shown(thing, picks))
    # a dataset of captions shows the images that they are of
    captions = at("x", Storage.at(tmp_path / "captions"))
    assert [s.picture for s in sheet.shown(captions, picks)] == [s.picture for s in sheet.shown(thing, picks)]


def test_nothing_that_data_say_becomes_markup_or_moves_a_terminal(tmp_path: Path) -> None:
    made(tmp_path)
    thing = at(f"x{HOSTILE}", Storage.at(tmp_path / "captions"))
    found = summarise(thing)
    written = page.render(thing, found, sheet.shown(thing, found.picks), lineage(thing))
    assert "<script" not in written
    assert "&lt;script&gt;alert(1)" in written
    assert "\x1b" not in written.replace(f"x{HOSTILE}", "")[written.index("<h2>") :]
    for line in [*telling.summary(found, thing.manifest), *telling.lineage(lineage(thing))]:
        assert "\x1b" not in line
        assert len(line) <= 80


def test_lineage_goes_up_to_what_is_not_there_any_more(tmp_path: Path) -> None:
    import shutil

    storage = made(tmp_path)
    thing = at("x", Storage.at(tmp_path / "captions"))
    lines = [*telling.lineage(lineage(thing))]
    assert lines[0].startswith("caption")
    assert "images: ingest" in lines[1]
    assert "16 samples, 4 rejected" in lines[1]
    shutil.rmtree(storage.url)
    assert "not there any more" in [*telling.lineage(lineage(thing))][1]


def test_a_view_shows_what_it_points_to(tmp_path: Path) -> None:
    sources = {name: images(tmp_path / "store" / name) for name in ("real", "generated")}
    both = view(tmp_path / "store" / "view", sources, rows(**sources))
    thing = at("x", both.storage)
    found = summarise(thing)
    assert found.samples == sum(len(both.index(s.name)) for s in both.shards)
    assert sum(found.classes.values()) == 42
    assert sheet.shown(thing, found.picks)


def test_what_is_not_finished_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    storage = made(tmp_path)
    storage.delete("manifest.json")
    thing = at("x", storage)
    assert not thing.finished
    assert summarise(thing).reasons == {"truncated": 2, "too_large": 2}
    assert "not finished" in next(iter(telling.what(thing)))
    with pytest.raises(ValueError, match="no dataset, snapshot or report at nowhere"):
        at("nowhere", Storage.at(tmp_path / "nowhere"))


def test_memory_is_that_of_one_shard(tmp_path: Path) -> None:
    def peak(shards: int) -> int:
        storage = Storage.at(tmp_path / str(shards))
        infos = [
            write_shard(
                storage,
                f"{s:05d}",
                [
                    (
                        Row(key=f"k{s:05d}{n:05d}"),
                        Sample(key=f"k{s:05d}{n:05d}", meta={"file_name": "x" * 50}),
                    )
                    for n in range(500)
                ],
                split="train",
            )
            for s in range(shards)
        ]
        write_manifest(storage, describe(infos, stage="ingest"))
        thing = Thing(reference="x", storage=storage, manifest=Dataset.open(storage).manifest)
        summarise(thing)
        tracemalloc.start()
        summarise(thing)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(16) < 1.3 * peak(2)
