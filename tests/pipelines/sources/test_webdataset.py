"""WebDataset tars: the members of one name are one sample in whatever order they lie; nothing is lost."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.storage import Storage
from pipelines.export import export
from pipelines.sources import inflated
from pipelines.sources.named import expanded
from pipelines.sources.sightings import Question
from pipelines.sources.survey import survey
from pipelines.sources.webdataset import WebDatasetSource
from tests.pipelines.sources.hostile_tars import PNG, plain, png
from tests.pipelines.sources.reading import everything, images, leaves, rejects
from tests.pipelines.tiny import images as toys

QUESTION = Question(max_bytes=1_000_000, max_pixels=1_000_000)


def entries(source: WebDatasetSource, folder: Path) -> dict[str, Any]:
    """What the whole survey makes of it, by key."""
    return {entry.key: entry for entry in survey(source, QUESTION, store=Storage.at(folder)).entries()}


NAMED = (b"", b'"label": "a name", ')


def members(number: int) -> dict[str, bytes]:
    """Samples of a picture, a text, a label and more, in the order of their names."""
    found = {}
    for n in range(number):
        found |= {
            f"{n:04d}.cls": b"%d" % (n % 7),
            f"{n:04d}.json": b'{"boxes": [[0, 0, %d, 1]], %s"text": "x", "split": "val"}' % (n, NAMED[n % 2]),
            f"{n:04d}.npy": b"\x93NUMPY",
            f"{n:04d}.png": png(n),
            f"{n:04d}.txt": f"a thing of shade {n}".encode(),
        }
    return found


def test_what_webdataset_wrote(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "in-%05d.tar"), maxcount=20, verbose=0) as writer:
        for n in range(50):
            sample = {
                "__key__": f"k{n:03d}",
                "png": png(n),
                "txt": f"shade {n}",
                "cls": n % 3,
                "json": {"n": n},
            }
            writer.write(sample)
    source = WebDatasetSource(path=tmp_path / "in-{00000..00002}.tar")
    assert len(leaves(source)) == 3
    found = entries(source, tmp_path / "store")
    assert sorted(found) == [f"k{n:03d}" for n in range(50)]
    for n in range(50):
        assert dict(found[f"k{n:03d}"].facts) == {"text": f"shade {n}", "label": n % 3, "n": n}


def test_what_was_exported_comes_back(tmp_path: Path) -> None:
    """Keys, bytes, texts and labels, from our own tars."""
    made = toys(tmp_path / "made")
    export(made, tmp_path / "out", form="webdataset")
    found = entries(WebDatasetSource(path=tmp_path / "out"), tmp_path / "store")
    rows = [row for shard in made.shards for row in made.read(shard.name, columns=("image", "json", "cls"))]
    assert set(found) == {row.key for row in rows}
    for row in rows:
        entry = found[row.key]
        assert entry.digest == hashlib.sha256(row.members["image"]).hexdigest()
        assert entry.facts["text"] == json.loads(row.members["json"])["text"]
        assert str(entry.facts["label"]) == row.members["cls"].decode()


@pytest.mark.parametrize("seed", range(12))
def test_the_order_of_members_changes_nothing(seed: int, tmp_path: Path) -> None:
    """Ray Data's reader splits samples whose members do not lie side by side, without a word (ray#44068)."""
    ordered = members(40)
    names = list(ordered)
    draw = random.Random(seed)
    if seed == 0:
        names.sort(key=lambda name: (name.rpartition(".")[2], name))
    elif seed == 1:
        names.sort(key=lambda name: (name.rpartition(".")[2], name), reverse=True)
    else:
        draw.shuffle(names)
    for folder, order in (("a", list(ordered)), ("b", names)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.tar").write_bytes(plain({name: ordered[name] for name in order}))
    one, other = (entries(WebDatasetSource(path=tmp_path / f), tmp_path / f"store-{f}") for f in "ab")
    assert len(one) == 40
    for key, entry in one.items():
        assert (entry.digest, dict(entry.facts)) == (other[key].digest, dict(other[key].facts))
        assert entry.facts["text"] == f"a thing of shade {int(key)}"
        assert entry.facts["label"] == ("a name" if int(key) % 2 else int(key) % 7)


def test_every_member_is_counted(tmp_path: Path) -> None:
    draw = random.Random(0)
    names = [
        f"{n}.{end}" for n in range(30) for end in draw.sample(["png", "txt", "json", "cls", "mp3", "pyd"], 3)
    ]
    draw.shuffle(names)
    content = {"png": PNG, "txt": b"words", "json": b'{"a": 1}', "cls": b"1", "mp3": b"ID3", "pyd": b"\x80"}
    (tmp_path / "x.tar").write_bytes(plain({name: content[name.partition(".")[2]] for name in names}))
    found = everything(WebDatasetSource(path=tmp_path / "x.tar"), tmp_path)
    pictured = {name.partition(".")[0] for name in names if name.endswith("png")}
    told = {name.partition(".")[0] for name in names if name.endswith(("txt", "json", "cls"))}
    assert len(images(found)) == len(pictured)
    assert set(rejects(found)) == {f"x.tar/{key}" for key in told - pictured}
    assert sum(one.side == "file" for one in found) == sum(name.endswith(("mp3", "pyd")) for name in names)


def test_samples_of_one_name(tmp_path: Path) -> None:
    """Twice in one tar and once in another: three inputs, each with its own text, and keys that differ."""
    twice = [("0.png", png(1)), ("0.txt", b"one"), ("0.png", png(2)), ("0.txt", b"two")]
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in twice:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "a.tar").write_bytes(sink.getvalue())
    (tmp_path / "b.tar").write_bytes(plain({"0.png": png(3), "0.txt": b"three"}))
    found = entries(WebDatasetSource(path=tmp_path), tmp_path / "store")
    assert sorted((entry.name, entry.facts["text"]) for entry in found.values()) == [
        ("a.tar/0.png", "one"), ("a.tar/0.png#2", "two"), ("b.tar/0.png", "three"),
    ]  # fmt: skip
    assert "0" in found


def test_endings_of_two_parts(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(
        plain(
            {
                "a.jpg": PNG,
                "a.mask.png": png(1),
                "b.input.png": png(2),
                "b.target.png": png(3),
                "b.txt": b"pair",
            }
        )
    )
    found = images(everything(WebDatasetSource(path=tmp_path / "x.tar"), tmp_path))
    assert set(found) == {"x.tar/a.jpg", "x.tar/b.input.png", "x.tar/b.target.png"}
    assert found["x.tar/b.target.png"].facts == {"text": "pair"}
    chosen = images(everything(WebDatasetSource(path=tmp_path / "x.tar", image="target.png"), tmp_path))
    assert set(chosen) == {"x.tar/b.target.png"}


def test_fields_of_the_json_and_folders(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(
        plain(
            {
                "cat/a.png": PNG,
                "cat/a.json": b'{"TEXT": "meow", "k": 4, "caption": "x"}',
                "dog/b.image": png(1),
            }
        )
    )
    source = WebDatasetSource(path=tmp_path / "x.tar", text="TEXT", label="k", labels="member_folders")
    found = images(everything(source, tmp_path))
    assert found["x.tar/cat/a.png"].facts == {"text": "meow", "label": 4, "caption": "x"}
    assert found["x.tar/dog/b.image"].facts == {"label": "dog"}


def test_splits_by_file_name(tmp_path: Path) -> None:
    for name in ("train-0.tar", "val-0.tar", "other.tar"):
        (tmp_path / name).write_bytes(plain({f"{name[0]}.png": PNG}))
    found = images(everything(WebDatasetSource(path=tmp_path), tmp_path))
    assert [one.split for one in found.values()] == [None, "train", "validation"]


@pytest.mark.parametrize("ending", inflated.ENDINGS)
def test_packed_tars_are_copied_once(ending: str, tmp_path: Path) -> None:
    data = plain(members(30))
    packed = gzip.compress(data, 1) if "gz" in ending else pa.compress(data, "zstd", asbytes=True)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / f"x{ending}").write_bytes(packed)
    (tmp_path / "a" / "y.tar").write_bytes(data)
    found = images(everything(WebDatasetSource(path=tmp_path / "a"), tmp_path))
    assert len(found) == 60
    blobs = list((tmp_path / "blobs").iterdir())
    assert sum(path.stat().st_size for path in blobs) == sum(len(png(n)) for n in range(30))
    (tmp_path / "a" / f"x{ending}").write_bytes(packed[: len(packed) // 2])
    cut = everything(WebDatasetSource(path=tmp_path / "a" / f"x{ending}"), tmp_path / "cut")
    assert rejects(cut) == {f"x{ending}": "truncated_tar"}
    assert len(images(cut)) < 30


@pytest.mark.parametrize("ending", [".tar.gz", ".tar.zst"])
def test_a_bomb_ends(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflated, "FREE", 1 << 20)
    data = plain({"a.png": PNG, "b.png": bytes(1 << 24), "c.png": PNG})
    packed = gzip.compress(data) if "gz" in ending else pa.compress(data, "zstd", asbytes=True)
    (tmp_path / f"x{ending}").write_bytes(packed)
    found = everything(WebDatasetSource(path=tmp_path / f"x{ending}"), tmp_path)
    assert rejects(found)[f"x{ending}"] == "bomb"
    assert list(images(found)) == [f"x{ending}/a.png"]


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(plain({"a.png": PNG, "b.png": bytes(5000), "b.txt": b"words"}))
    found = everything(WebDatasetSource(path=tmp_path / "x.tar"), tmp_path, limit=1000)
    assert rejects(found) == {"x.tar/b.png": "too_large"}
    assert next(one for one in found if one.reject).facts == {"text": "words"}


def test_a_tar_that_changes_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(plain({"a.png": PNG}))
    source = WebDatasetSource(path=tmp_path)
    (before,) = leaves(source)
    (tmp_path / "x.tar").write_bytes(plain({"a.png": PNG, "b.png": PNG}))
    (after,) = leaves(source)
    assert before.stamp != after.stamp


def test_braces() -> None:
    assert expanded("a-{08..11}.{x,y}") == [f"a-{n:02d}.{end}" for n in range(8, 12) for end in "xy"]
    assert expanded("{9..11}") == ["9", "10", "11"]
    for bomb in ("{0..1000000}", "{0..999}{0..1001}", "{a,b}" * 20, "{{a,b},c}", "{3..1}", "{a"):
        with pytest.raises(ValueError, match="names|braces"):
            expanded(bomb)


def test_a_tar_that_braces_name_has_to_be_there(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(plain({"a.png": PNG}))
    with pytest.raises(ValueError, match=r"1\.tar is not there, and 2 more"):
        leaves(WebDatasetSource(path=tmp_path / "{0..3}.tar"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"ends in \.tar"):
        leaves(WebDatasetSource(path=tmp_path / "empty"))
