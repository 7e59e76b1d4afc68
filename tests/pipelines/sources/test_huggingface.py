"""Dataset folders as `datasets` writes them, read without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.sources.card import card
from pipelines.sources.huggingface import HuggingFaceSource
from tests.pipelines.sources.hostile_tars import png
from tests.pipelines.sources.reading import everything, images, leaves

datasets = pytest.importorskip("datasets", reason="needs datasets: pip install latentmill[dev]")

NAMES = ["cat", "dog", "axolotl"]


def written(folder: Path, *, split: str, start: int, number: int, shards: int = 1) -> None:
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "mask": datasets.Image(),
            "kind": datasets.ClassLabel(names=NAMES),
            "caption": datasets.Value("string"),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
                "id": datasets.Value("int64"),
            },
        }
    )
    rows = range(start, start + number)
    made = datasets.Dataset.from_dict(
        {
            "picture": [{"bytes": png(n), "path": f"{n}.png"} for n in rows],
            "mask": [{"bytes": png(0), "path": None} for _ in rows],
            "kind": [n % 3 for n in rows],
            "caption": [f"image {n}" for n in rows],
            "objects": [{"bbox": [[0, 0, n, 1]], "id": n} for n in rows],
        },
        features=features,
    )
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for n in range(shards):
        shard = made.shard(shards, n, contiguous=True)
        shard.to_parquet(folder / "data" / f"{split}-{n:05d}-of-{shards:05d}.parquet", batch_size=10)


def test_a_dataset_that_datasets_wrote(tmp_path: Path) -> None:
    written(tmp_path / "set", split="train", start=0, number=60, shards=2)
    written(tmp_path / "set", split="test", start=60, number=20)
    source = HuggingFaceSource(path=tmp_path / "set")
    assert len(leaves(source)) == 8
    found = images(everything(source, tmp_path))
    theirs = datasets.load_dataset(
        "parquet", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache")
    )
    for split, number in (("train", 60), ("test", 20)):
        ours = [one for one in found.values() if one.split == split]
        assert len(ours) == number
        rows = theirs[split].cast_column("picture", datasets.Image(decode=False))
        for one, row in zip(ours, rows, strict=True):
            assert one.data == row["picture"]["bytes"]
            assert one.facts["label"] == NAMES[row["kind"]]
            assert one.facts["text"] == row["caption"]
            assert one.facts["objects"] == row["objects"]


def test_a_readme_chooses_files_splits_and_names(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("a/one.parquet", "a/two.parquet", "b/one.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": [png(1)], "label": [1]}), tmp_path / name)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: first\n  data_files:\n  - {split: train, path: a/one.parquet}\n"
        "  - {split: validation, path: a/t*.parquet}\n- config_name: second\n  data_files: b/*.parquet\n"
        "dataset_info:\n- config_name: first\n  features:\n  - name: label\n    dtype:\n      class_label:\n"
        "        names: {'0': cat, '1': dog}\n---\n# Cats\n"
    )
    with pytest.raises(ValueError, match="choose one by `config:` first, second"):
        leaves(HuggingFaceSource(path=tmp_path))
    with pytest.raises(ValueError, match="no configuration 'third'; there are: first, second"):
        leaves(HuggingFaceSource(path=tmp_path, config="third"))
    found = images(everything(HuggingFaceSource(path=tmp_path, config="first"), tmp_path / "out"))
    assert {name: (one.split, one.facts["label"]) for name, one in found.items()} == {
        "a/one.parquet/0": ("train", "dog"), "a/two.parquet/0": ("validation", "dog"),
    }  # fmt: skip
    assert list(images(everything(HuggingFaceSource(path=tmp_path, config="second"), tmp_path / "out"))) == [
        "b/one.parquet/0"
    ]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00005.parquet", "train"),
        ("validation-00000-of-00001-abcdef.parquet", "validation"),
        ("default/test/0000.parquet", "test"),
        ("data/eval.parquet", "test"),
        ("plain.parquet", ""),
        ("latest.parquet", ""),
    ],
)
def test_splits_by_name(name: str, split: str) -> None:
    assert card(None, None).files([name]) == {name: split}


def test_a_dataset_of_another_kind_says_what_to_do(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(ValueError, match="to_parquet"):
        HuggingFaceSource(path=tmp_path / "set").roots()


USELESS = [
    b"",
    b"---\n: :\n---\n",
    b"---\n- 1\n---",
    b"---\nconfigs: 7\ndataset_info: [x]\n---\n",
    b"---\na: &a [x]\nb: &b [*a, *a]\nc: !!python/object/apply:os.system [id]\n---\n",
]


@pytest.mark.parametrize("readme", USELESS)
def test_a_readme_that_says_nothing_of_use(readme: bytes) -> None:
    assert card(readme, None).files(["train.parquet"]) == {"train.parquet": "train"}


def test_image_bytes_are_never_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    written(tmp_path / "set", split="train", start=0, number=3)
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("decoded"))
    assert len(images(everything(HuggingFaceSource(path=tmp_path / "set"), tmp_path))) == 3
