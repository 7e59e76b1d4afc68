from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipelines.captioners import Answer, Endpoint, Subject, Tags, Template, exchange
from pipelines.captioners import Caption as Saying
from pipelines.dataset import Dataset
from pipelines.shards import canonical
from pipelines.stages.caption import Caption
from tests.pipelines import tiny
from tests.pipelines.captioners.serving import Question, Reply, said, serving
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
    assert (template.accelerated, tags.accelerated) == (False, True)
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


@dataclass(frozen=True, kw_only=True)
class Counting:
    """A captioner that leaves a mark of every subject that it is asked for."""

    text: str = "seen"
    only_missing: bool = False
    dumb: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)
    columns = ("json",)

    def external(self) -> dict[str, str]:
        return {}

    def build(self) -> Counting:
        return self

    def answers(self, subjects: Sequence[Subject]) -> list[Answer]:
        words = [subject.fields["text"] for subject in subjects]
        self.asked.extend(words)
        caption = Saying(text=self.text, weight=1, source="counting")
        return [Answer(reject="no_idea") if w in self.dumb else Answer(captions=(caption,)) for w in words]


def test_one_that_is_asked_for_what_is_missing_is_asked_for_nothing_else(
    images: Dataset, tmp_path: Path
) -> None:
    first = Counting(text="first", dumb=("thing 1", "thing 2"))
    second = Counting(text="second", only_missing=True, dumb=("thing 2",))
    stage = Caption(images="images", captioners=(first, second))  # pyright: ignore[reportArgumentType]
    captions = made(stage, {"images": images}, tmp_path / "captions")
    assert set(second.asked) == {"thing 1", "thing 2"}
    assert Counter(first.asked)["thing 1"] == Counter(second.asked)["thing 1"] == 6
    texts = {key: data.decode() for key, data in column(captions, "txt").items()}
    assert Counter(texts.values()) == {"first": 18, "second": 6}
    assert texts["k001"] == "second"
    assert captions.manifest["counts"]["reasons"] == {"no_idea": 6}
    with pytest.raises(ValueError, match="first captioner is `only_missing`"):
        Caption(images="images", captioners=(Template(only_missing=True),))


def test_captions_of_other_stages_are_merged_and_no_row_is_lost_that_one_of_them_has(
    images: Dataset, tmp_path: Path
) -> None:
    inputs = {"images": images}
    words = made(Caption(images="i", captioners=(Template(text="{text}"),)), inputs, tmp_path / "words")
    seeing = Counting(text="thing 3", dumb=("thing 0", "thing 4"))
    seen = made(Caption(images="i", captioners=(seeing,)), inputs, tmp_path / "seen")  # pyright: ignore
    assert seen.manifest["counts"]["rejected"] == 12

    stage = Caption(images="i", captions=("seen", "words"), captioners=())
    inputs = {"images": images, "captions": (seen, words)}
    merged = made(stage, inputs, tmp_path / "merged")
    listed = {key: json.loads(data) for key, data in column(merged, "captions.json").items()}
    assert merged.manifest["counts"]["rejected"] == 0
    assert [(c["text"], c["weight"]) for c in listed["k001"]] == [("thing 3", 1.0), ("thing 1", 1.0)]
    assert [(c["text"], c["weight"]) for c in listed["k003"]] == [("thing 3", 2.0)]  # both said it
    assert [c["source"] for c in listed["k004"]] == ["template"]
    assert merged.manifest["statistics"]["template"] == "{text}"
    assert stage.columns("images") == ()
    # What another stage says of a row is what its work is made of: a changed caption is merged again.
    rows = stage.rows(inputs, stage.plan(inputs)[0])
    assert all(len(row.reads) == 2 and row.reject is None for row in rows)
    assert [row.reads[0] == "" for row in rows[:5]] == [True, False, False, False, True]

    late = Counting(text="late", only_missing=True)
    rest = Caption(images="i", captions=("seen",), captioners=(late,))  # pyright: ignore
    filled = made(rest, {"images": images, "captions": (seen,)}, tmp_path / "filled")
    assert set(late.asked) == {"thing 0", "thing 4"}
    assert Counter(column(filled, "txt").values()) == {b"thing 3": 18, b"late": 12}


def test_hostile_metadata_is_a_plain_caption(tmp_path: Path) -> None:
    def members(key: str, n: int) -> dict[str, bytes]:
        return {
            "json": canonical(
                {"text": ("\x1b[31mred\u202e fox\n" if n % 9 else "\u200b\x07") + "!" * (n % 2)}
            )
        }

    images = tiny.dataset(tmp_path / "images", members)
    stage = Caption(images="images", max_rejects=1.0)
    captions = made(stage, {"images": images}, tmp_path / "captions")
    texts = column(captions, "txt")
    assert set(texts.values()) == {b"red fox", b"red fox !", b"!"}
    assert captions.manifest["counts"]["reasons"] == {"no_caption": 2}


def test_what_is_not_kept_is_not_captioned(images: Dataset, tmp_path: Path) -> None:
    keep = tiny.dataset(tmp_path / "keep", lambda key, n: {"keep": b"1"} if n % 3 else {})
    counting = Counting()
    stage = Caption(images="images", keep="keep", captioners=(counting,))  # pyright: ignore
    captions = made(stage, {"images": images, "keep": keep}, tmp_path / "captions")
    assert len(counting.asked) == len(captions) == 20
    assert captions.manifest["counts"]["dropped"] == 10


def test_an_endpoints_failures_are_rejects_and_what_it_took_is_counted(
    images: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "FIRST_WAIT", 0.001)
    bad = images.read_member("00000", 3, "image"), images.read_member("00001", 4, "image")
    flaky = Counter[bytes]()

    def behave(question: Question) -> Reply:
        flaky[question.image] += 1
        if question.image in bad:
            return Reply(status=(503, 400)[bad.index(question.image)], body=b"\x1b[2Jbusy")
        return Reply(status=429) if flaky[question.image] == 1 else said("a square", tokens=(50, 4))

    with serving(behave) as server:
        config = Endpoint(
            url=server.url, model="tiny-vl", retries=2, concurrency=4, price_in=2.0, price_out=10.0
        )
        stage = Caption(images="images", captioners=(config,))
        captions = made(stage, {"images": images}, tmp_path / "captions")
    counts = captions.manifest["counts"]
    distinct = {images.read_member(s.name, n, "image") for s in images.shards for n in range(s.samples)}
    reasons = Counter[str]()
    for shard in images.shards:
        for n in range(shard.samples):
            image = images.read_member(shard.name, n, "image")
            if image in bad:
                reasons[("endpoint_unavailable", "endpoint_refused")[bad.index(image)]] += 1
    assert counts["reasons"] == dict(reasons)
    assert counts["inputs"] == 30 == counts["committed"] + counts["rejected"]
    (took,) = captions.manifest["statistics"]["endpoints"]
    assert took["model"] == "tiny-vl"
    assert took["images"] == 30
    assert took["requests"] == len(server.questions)
    assert took["tokens_in"] == 50 * counts["committed"]
    assert took["cost"] == pytest.approx((50 * 2 + 4 * 10) * counts["committed"] / 1e6)
    assert took["failed"] == dict(reasons)
    assert took["retries"] == len(server.questions) - 30 >= len(distinct) - 1
    (note,) = captions.manifest["notes"]
    assert "tiny-vl: 30 images" in note
    assert "--retry-rejects" in note
    index = captions.index("00000")
    assert index.meta[3]["caption.0.error"] == "503 busy"
    assert index.reasons[3] == "endpoint_unavailable"


def test_the_stage_is_described_without_heavy_imports() -> None:
    code = (
        "import sys\n"
        "from pipelines.stages.caption import Caption\n"
        "from pipelines.stages.encode import Encode\n"
        "from pipelines.stages.embed import Embed\n"
        "from pipelines.captioners import ClipTags, Endpoint, ImageToText\n"
        "several = (ClipTags(path='x', tags=('a', 'b')), Endpoint(url='http://x', model='m'), "
        "ImageToText(path='x'))\n"
        "Caption(images='a', captioners=several).summary()\n"
        "Caption(images='a').summary(), Embed(captions='a').external()\n"
        "Encode(images='a', autoencoder='b').meaning()\n"
        "heavy = {'torch', 'numpy', 'aiohttp', 'transformers', 'open_clip', 'PIL', 'pyarrow', 'ray'}\n"
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
