from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.storage import Storage
from pipelines import pipeline
from pipelines.dataset import Dataset, describe, write_manifest
from pipelines.runner.fingerprint import Identity
from pipelines.scorers import Sharpness, Size
from pipelines.scorers.thresholds import Threshold
from pipelines.shards import canonical, write_shard
from pipelines.stage import Row, Sample
from pipelines.stages.embed import Embed
from pipelines.stages.encode import Encode
from pipelines.stages.filter import Filter
from pipelines.stages.score import Score
from pipelines.stages.train import Train
from tests.pipelines import tiny
from tests.pipelines.stages.making import column, made
from tests.pipelines.toys import ToyRecipe

KEYS = [f"k{n:03d}" for n in range(tiny.TRAIN + tiny.HELD_OUT)]


def scored(
    folder: Path, values: Mapping[str, Mapping[str, float] | None], *, reason: str = "unscored"
) -> Dataset:
    """A score stage's output; None: `reason` is why there is none."""
    storage, infos = Storage.at(folder), []
    names = sorted({name for of in values.values() for name in of or {}})
    for shard, keys in {"00000": KEYS[:12], "00001": KEYS[12:24], "00002": KEYS[24:]}.items():
        pairs = []
        for key in keys:
            of = values.get(key)
            sample = (
                Sample(key=key, reject=reason)
                if of is None
                else Sample(key=key, members={"scores.json": canonical(of)}, meta=dict(of))
            )
            pairs.append((Row(key=key), sample))
        split = "validation" if shard == "00002" else "train"
        infos.append(write_shard(storage, shard, pairs, split=split))
    statistics = {"scores": {name: {} for name in names}}
    write_manifest(storage, describe(infos, stage="score", statistics=statistics))
    return Dataset.open(storage)


def kept(folder: Path, *scores: Dataset, images: Dataset | None = None, **fields: Any) -> Dataset:
    names = tuple(f"s{n}" for n in range(len(scores)))
    stage = Filter(scores=names, images="images" if images else None, **fields)
    return made(stage, {"scores": scores, "images": images}, folder)


def dropped(dataset: Dataset) -> dict[str, str]:
    found = {}
    for shard in dataset.shards:
        index = dataset.index(shard.name)
        found |= {k: m["dropped"] for k, m in zip(index.keys, index.meta, strict=True) if "dropped" in m}
    return found


@pytest.fixture
def numbers(tmp_path: Path) -> tuple[Dataset, dict[str, dict[str, float]]]:
    chance = np.random.default_rng(0)
    values = {key: {"a": float(chance.normal()), "b": float(chance.integers(4))} for key in KEYS}
    return scored(tmp_path / "numbers", values), values


def test_thresholds_keep_what_they_say_and_the_first_that_fails_is_named(
    numbers: Any, tmp_path: Path
) -> None:
    scores, values = numbers
    rules = {"b": Threshold(max=2), "a": Threshold(min=-0.5, max=1)}
    found = kept(tmp_path / "kept", scores, keep=rules)
    wanted = {k: -0.5 <= v["a"] <= 1 and v["b"] <= 2 for k, v in values.items()}
    assert set(column(found, "keep")) == {k for k, good in wanted.items() if good}
    assert set(column(found, "keep").values()) == {b"1"}
    assert dropped(found) == {
        k: "b" if -0.5 <= values[k]["a"] <= 1 else "a" for k, good in wanted.items() if not good
    }
    counts, statistics = found.manifest["counts"], found.manifest["statistics"]
    assert (counts["inputs"], counts["committed"], counts["rejected"]) == (30, 30, 0)
    alone = {n: sum(not r.limits().keeps(v[n]) for v in values.values()) for n, r in rules.items()}
    assert {n: statistics["rules"][n]["alone"] for n in rules} == alone
    first = {n: sum(why == n for why in dropped(found).values()) for n in rules}
    assert {n: statistics["rules"][n]["first"] for n in rules} == first
    assert sum(statistics["rules"]["a"]["counts"]) == 30
    assert (statistics["rules"]["a"]["min"], statistics["rules"]["a"]["max"]) == (-0.5, 1)
    total = {split: c["kept"] + c["dropped"] for split, c in statistics["splits"].items()}
    assert total == {"train": 24, "validation": 6}


def test_the_order_of_the_rules_changes_nothing(numbers: Any, tmp_path: Path) -> None:
    rules = {"b": Threshold(max=2), "a": Threshold(min=-0.5, max=1)}
    a = kept(tmp_path / "a", numbers[0], keep=rules)
    b = kept(tmp_path / "b", numbers[0], keep=dict(reversed(rules.items())))
    assert [s.index for s in a.shards] == [s.index for s in b.shards]


def test_a_share_is_taken_of_the_training_split(numbers: Any, tmp_path: Path) -> None:
    scores, values = numbers
    found = kept(tmp_path / "kept", scores, keep={"a": Threshold(top=0.5)})
    train = sorted(values[k]["a"] for k in KEYS[:24])
    limit = train[12]
    assert set(column(found, "keep")) == {k for k in KEYS if values[k]["a"] >= limit}
    assert found.manifest["statistics"]["rules"]["a"]["min"] == limit
    assert found.manifest["statistics"]["splits"]["train"] == {"kept": 12, "dropped": 12}


def test_splits_that_are_not_filtered_stay_whole(numbers: Any, tmp_path: Path) -> None:
    scores, _ = numbers
    found = kept(tmp_path / "kept", scores, keep={"b": Threshold(max=0)}, splits=("train",))
    assert set(KEYS[24:]) <= set(column(found, "keep"))
    assert found.manifest["statistics"]["splits"]["validation"] == {"kept": 6, "dropped": 0}
    with pytest.raises(ValueError, match="no split trian; there are train, validation"):
        kept(tmp_path / "other", scores, keep={"b": Threshold(max=0)}, splits=("trian",))


def test_several_stages_score_and_drop_together(numbers: Any, tmp_path: Path) -> None:
    scores, values = numbers
    more = scored(tmp_path / "more", {k: {"c": float(n)} for n, k in enumerate(KEYS) if n != 3})
    first = kept(tmp_path / "first", scores, keep={"b": Threshold(min=1)})
    found = kept(tmp_path / "found", more, first, scores, keep={"c": Threshold(min=2), "a": Threshold(max=1)})
    wanted = {
        k for n, k in enumerate(KEYS)
        if n not in (0, 1, 3) and values[k]["b"] >= 1 and values[k]["a"] <= 1
    }  # fmt: skip
    assert set(column(found, "keep")) == wanted
    # What another stage dropped keeps that stage's reason; what is unscored comes before the rules.
    assert {dropped(found)[k] for k in dropped(first)} == {"b"}
    assert values[KEYS[3]]["b"] < 1 or dropped(found)[KEYS[3]] == "unscored"
    same = scored(tmp_path / "same", {k: {"a": 1.0} for k in KEYS})
    with pytest.raises(ValueError, match="two of `scores` give a"):
        kept(tmp_path / "twice", scores, same, keep={"a": Threshold(max=1)})


def test_one_that_dropped_all_is_no_open_door(numbers: Any, tmp_path: Path) -> None:
    """Its column is not there at all: that must not read as a dataset without a verdict."""
    storage = Storage.at(tmp_path / "none")
    infos = []
    for shard in numbers[0].shards:
        index = numbers[0].index(shard.name)
        pairs = [(Row(key=k), Sample(key=k, meta={"dropped": "duplicate"})) for k in index.keys]
        infos.append(write_shard(storage, shard.name, pairs, split=shard.split))
    write_manifest(storage, describe(infos, stage="deduplicate"))
    none = Dataset.open(storage)
    with pytest.raises(ValueError, match=r"keeps none of 30 samples \(30 duplicate\)"):
        kept(tmp_path / "kept", numbers[0], none)
    with pytest.raises(ValueError, match="keeps none of 30 samples"):
        kept(tmp_path / "b", numbers[0], keep={"a": Threshold(min=1000)})


def test_rejects_of_the_input_stay_rejects_and_mistakes_are_told(numbers: Any, tmp_path: Path) -> None:
    broken = scored(tmp_path / "broken", {k: {"a": 1.0} for k in KEYS[4:]}, reason="truncated")
    found = kept(tmp_path / "kept", broken, keep={"a": Threshold(min=0)})
    assert found.manifest["counts"]["reasons"] == {"truncated": 4}
    assert set(column(found, "keep")) == set(KEYS[4:])
    with pytest.raises(ValueError, match="no sample has the score sharpnes; there are a, b"):
        kept(tmp_path / "typo", numbers[0], keep={"sharpnes": Threshold(min=0)})
    images = tiny.images(tmp_path / "images")
    with pytest.raises(ValueError, match="s0 has neither scores nor a `keep` column"):
        kept(tmp_path / "wrong", images, keep={})


def test_counts_go_by_class(numbers: Any, tmp_path: Path) -> None:
    storage, infos = Storage.at(tmp_path / "labelled"), []
    for shard in numbers[0].shards:
        pairs = [
            (
                Row(key=k),
                Sample(key=k, members={"cls": b"0"}, meta={"label": "odd" if int(k[1:]) % 2 else "even"}),
            )
            for k in numbers[0].index(shard.name).keys
        ]
        infos.append(write_shard(storage, shard.name, pairs, split=shard.split))
    write_manifest(storage, describe(infos, stage="ingest"))
    found = kept(tmp_path / "kept", numbers[0], images=Dataset.open(storage), keep={"b": Threshold(max=1)})
    good = set(column(found, "keep"))
    wanted = {
        name: {"kept": len(of & good), "dropped": len(of - good)}
        for name, of in (("even", set(KEYS[::2])), ("odd", set(KEYS[1::2])))
    }
    assert found.manifest["statistics"]["classes"] == wanted


# -- a small line --------------------------------------------------------------------------------------------


def half_noise(folder: Path) -> None:
    """Every other picture is noise, the others flat, so that sharpness tells them apart."""

    def members(key: str, n: int) -> dict[str, bytes]:
        chance = np.random.default_rng(n)
        noise = chance.integers(0, 256, (16, 16, 3), np.uint8)
        flat = np.full((16, 16, 3), (n * 8, 90, 255 - n * 8), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise if n % 2 else flat).save(buffer, "PNG")
        return {"png": buffer.getvalue(), "json": canonical({"label": "x"})}

    tiny.dataset(folder, members)


def line(root: Path, *, least: float = 100, keep: str | None = "kept") -> ToyRecipe:
    images = str(root / "images")
    return ToyRecipe(
        {
            "scores": Score(images=images, scorers=(Size(), Sharpness(size=16))),
            "kept": Filter(scores=("scores",), images=images, keep={"sharpness": Threshold(min=least)}),
            "latents": Encode(images=images, autoencoder=str(root / "vae"), keep=keep, micro_batch=4),
        }
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    half_noise(tmp_path / "images")
    tiny.autoencoder(tmp_path / "vae")
    return tmp_path


def run(root: Path, recipe: ToyRecipe, events: list[dict[str, Any]] | None = None) -> list[str]:
    listeners = [] if events is None else [events.append]
    return list(
        pipeline.run(
            recipe, Storage.at(root / "store"), executor="inline", record=False, listeners=listeners
        ).ran
    )


def opened(root: Path, recipe: ToyRecipe, name: str) -> Dataset:
    folder = pipeline.plan(recipe, Storage.at(root / "store"))[name].folder
    assert folder is not None
    return Dataset.open(folder)


def test_another_threshold_scores_nothing_again_and_encodes_only_what_is_new(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = line(root)
    assert run(root, recipe) == ["scores", "kept", "latents"]
    latents = opened(root, recipe, "latents")
    assert set(column(latents, "moments.npy")) == set(KEYS[1::2])
    counts = latents.manifest["counts"]
    assert (counts["inputs"], counts["committed"], counts["rejected"], counts["dropped"]) == (30, 15, 0, 15)
    assert counts["reasons"] == {}

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("a byte of an image was read")

    looser = line(root, least=-1)
    events: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        for name in ("read", "read_member"):
            patch.setattr(Dataset, name, fail)
        patch.setattr("pipelines.dataset.verify_shard", fail)
        assert list(pipeline.run(
            looser, Storage.at(root / "store"), executor="inline", record=False, until="kept"
        ).ran) == ["kept"]  # fmt: skip
    # The fifteen that were encoded before are copied.
    assert run(root, looser, events) == ["latents"]
    told = next(e for e in events if e["kind"] == "rejects" and e["stage"] == "latents")
    assert (told["committed"], told["copied"], "dropped" in told) == (30, 15, False)

    # Without a filter: the same samples again, all copied, and byte for byte the same.
    bare, events = line(root, keep=None), []
    assert run(root, bare, events) == ["latents"]
    told = next(e for e in events if e["kind"] == "rejects" and e["stage"] == "latents")
    assert (told["committed"], told["copied"]) == (30, 30)
    with_all, without = opened(root, looser, "latents"), opened(root, bare, "latents")
    assert [s.sha256 for s in with_all.shards] == [s.sha256 for s in without.shards]


def test_a_limit_that_changes_no_row_makes_nothing_again(root: Path) -> None:
    run(root, line(root, least=100))
    assert run(root, line(root, least=101)) == ["kept"]


def test_the_line_goes_on_where_it_stopped(root: Path, tmp_path: Path) -> None:
    recipe = line(root)
    run(root, recipe)
    store = Storage.at(root / "store")
    for name in ("scores", "kept"):
        folder = pipeline.plan(recipe, store)[name].folder
        assert folder is not None
        before = {s.name: s.sha256 for s in Dataset.open(folder).shards}
        shard = sorted(before)[0]
        for part in ("manifest.json", f"{shard}.tar", f"{shard}.parquet"):
            folder.delete(part)
        assert run(root, recipe) == [name]
        assert {s.name: s.sha256 for s in opened(root, recipe, name).shards} == before


# -- whoever reads `keep` ------------------------------------------------------------------------------------


def keeping(folder: Path, good: set[str]) -> Dataset:
    def members(key: str, n: int) -> dict[str, bytes]:
        return {"keep": b"1"} if key in good else {}

    return tiny.dataset(folder, members)


GOOD = set(KEYS[::3])


def test_dropped_rows_are_not_embedded_and_are_no_rejects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.embedders import MiniLM

    monkeypatch.setattr(MiniLM, "build", lambda self, **_: tiny.Embedder())
    captions, keep = tiny.captions(tmp_path / "captions"), keeping(tmp_path / "keep", GOOD)
    stage = Embed(captions="captions", keep="keep")
    found = made(stage, {"captions": captions, "images": None, "keep": keep}, tmp_path / "text")
    assert set(column(found, "text.json")) == GOOD
    assert found.manifest["counts"] == {
        "inputs": 30, "committed": len(GOOD), "rejected": 0, "dropped": 30 - len(GOOD), "reasons": {}
    }  # fmt: skip
    assert found.manifest["splits"]["validation"] == {"shards": 1, "samples": 6, "rejected": 0, "dropped": 4}
    # Nor does what reads them in turn count them.
    row = stage.rows({"captions": captions, "keep": found}, stage.plan({"captions": captions})[0])[1]
    assert row.reject == "dropped"


def test_training_passes_over_what_is_dropped(tmp_path: Path) -> None:
    import torch

    from pipelines.stages.train_autoencoder import TrainAutoencoder
    from pipelines.training.tasks.autoencoder import AutoencoderTask
    from pipelines.training.tasks.denoiser import DenoiserTask

    autoencoder = tiny.autoencoder(tmp_path / "vae")
    images, keep = tiny.images(tmp_path / "images"), keeping(tmp_path / "keep", GOOD)
    latents = tiny.latents(tmp_path / "latents", autoencoder)
    stage = Train(
        latents="l",
        autoencoder="a",
        keep="k",
        network=tiny.NETWORK,
        optimization=tiny.OPTIMIZATION,
        images_seen=64,
    )
    inputs = {"latents": latents, "autoencoder": autoencoder, "text": None, "images": None, "keep": keep}
    device = torch.device("cpu")
    assert DenoiserTask(stage, inputs, device=device, workers=1).length == 8
    assert DenoiserTask(stage, {**inputs, "keep": None}, device=device, workers=1).length == 24
    trained = TrainAutoencoder(
        images="i", keep="k", autoencoder=tiny.AUTOENCODER, optimization=tiny.OPTIMIZATION
    )
    assert AutoencoderTask(trained, images, keep=keep, device=device, workers=1).length == 8
    # A filter that keeps nothing of the training images is no filter that is not there.
    none = keeping(tmp_path / "none", set())
    with pytest.raises(ValueError, match="train split has no sample with .*keep"):
        DenoiserTask(stage, {**inputs, "keep": none}, device=device, workers=1)


@pytest.mark.parametrize(
    ("stage", "columns"),
    [
        (Encode(images="images", autoencoder="vae"), {"images": ("image",)}),
        (Embed(captions="captions"), {"captions": ("captions.json",)}),
    ],
)
def test_without_a_filter_fingerprints_and_work_are_what_they_were(
    stage: Any, columns: dict[str, Any], tmp_path: Path
) -> None:
    from pipelines.runner.fingerprint import work_of

    class Whole:
        def digest(self, columns: Any = ()) -> str:
            return f"digest of {','.join(columns)}"

    inputs: dict[str, Any] = {name: Whole() for name in stage.inputs() if getattr(stage, name)}
    inputs |= {name: None for name in stage.inputs() if name not in inputs}
    identity = Identity.of(stage, inputs)
    assert "keep" not in identity.inputs
    assert "keep" not in identity.meaning
    filtered = Identity.of(stage, {**inputs, "keep": Whole()})
    assert filtered.inputs["keep"] == "digest of keep"
    assert filtered.fingerprint != identity.fingerprint
    assert work_of(stage, {**inputs, "keep": Whole()}) == work_of(stage, inputs)
