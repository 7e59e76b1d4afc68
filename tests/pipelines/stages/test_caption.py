from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.captioners import Tags, Template
from pipelines.dataset import Dataset
from pipelines.shards import canonical
from pipelines.stages.caption import Caption
from tests.pipelines import tiny
from tests.pipelines.stages.making import column, made


@pytest.fixture
def images(tmp_path: Path) -> Dataset:
    return tiny.images(tmp_path / "images")


def test_captions_keep_order_weight_and_source(images: Dataset, tmp_path: Path) -> None:
    captioners = (Template(text="a drawing of {text}", weight=3), Template(text="{text}"))
    captions = made(
        Caption(images="images", captioners=captioners), {"images": images}, tmp_path / "captions"
    )
    found = column(captions, "captions.json")
    assert len(found) == len(images)
    assert json.loads(found["k007"]) == [
        {"text": "a drawing of thing 2", "weight": 3.0, "source": "template"},
        {"text": "thing 2", "weight": 1.0, "source": "template"},
    ]
    assert column(captions, "txt")["k007"] == b"a drawing of thing 2"
    assert captions.manifest["statistics"]["template"] == "a drawing of {text}"


def test_the_same_input_gives_the_same_shards(images: Dataset, tmp_path: Path) -> None:
    stage = Caption(images="images")
    first, second = (made(stage, {"images": images}, tmp_path / name) for name in "ab")
    assert [s.sha256 for s in first.shards] == [s.sha256 for s in second.shards]


def test_a_sample_without_the_field_is_rejected_by_name(tmp_path: Path) -> None:
    def members(key: str, n: int) -> dict[str, bytes]:
        return {"json": canonical({"label": "fox"} if n % 4 else {"label": None, "text": "x"})}

    images = tiny.dataset(tmp_path / "images", members)
    captions = made(
        Caption(images="images", captioners=(Template(text="a {label}"),)),
        {"images": images},
        tmp_path / "captions",
    )
    counts = captions.manifest["counts"]
    assert counts["reasons"] == {"no_label": 8}
    assert counts["inputs"] == counts["committed"] + counts["rejected"]
    # Where another captioner has something to say, nothing is lost.
    both = Caption(images="images", captioners=(Template(text="a {label}"), Template(text="a thing")))
    assert made(both, {"images": images}, tmp_path / "both").manifest["counts"]["rejected"] == 0


def test_a_field_that_no_image_has_is_an_error_that_names_those_there_are(images: Dataset) -> None:
    stage = Caption(images="images", captioners=(Template(text="{txt}"),))
    with pytest.raises(ValueError, match=r"field txt .* the fields are text"):
        stage.open({"images": images})


def test_tags_read_the_image_and_templates_do_not(images: Dataset, tmp_path: Path) -> None:
    template, tags = (
        Caption(images="images"),
        Caption(images="images", captioners=(Tags(top=2, threshold=0),)),
    )
    assert template.columns("images") == ("json",)
    assert tags.columns("images") == ("image",)
    assert template.external() == {}
    assert tags.external().keys() == {"efficientnet-lite0"}
    found = column(made(tags, {"images": images}, tmp_path / "tags"), "captions.json")
    listed = json.loads(found["k000"])
    assert [c["source"] for c in listed] == ["tags", "tags"]
    assert listed[0]["probability"] >= listed[1]["probability"]
    assert sum(c["weight"] for c in listed) == pytest.approx(1, abs=1e-4)
    # A single missing sample, as after ten images were added, comes out the same.
    inputs = {"images": images}
    shard = tags.plan(inputs)[1]
    (alone,) = tags.open(inputs)(shard, tags.rows(inputs, shard)[5:6])
    assert alone.members["captions.json"] == found[alone.key]


def test_the_stage_is_described_without_heavy_imports() -> None:
    code = (
        "import sys\n"
        "from pipelines.stages.caption import Caption\n"
        "from pipelines.stages.encode import Encode\n"
        "from pipelines.stages.embed import Embed\n"
        "Caption(images='a').summary(), Embed(captions='a').external()\n"
        "Encode(images='a', autoencoder='b').meaning()\n"
        "heavy = {'torch', 'numpy', 'transformers', 'open_clip', 'PIL', 'pyarrow', 'ray'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_golden(images: Dataset, tmp_path: Path) -> None:
    """When this fails, the stage's output has changed: raise `Caption.version`, then write the new digest."""
    captions = made(
        Caption(images="images", captioners=(Template(text="a {text}"),)), {"images": images}, tmp_path / "g"
    )
    assert (Caption.version, captions.digest()[:16]) == (2, "69f6c8ff084e4dcd")
