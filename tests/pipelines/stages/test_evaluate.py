from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.resources import Resources
from cluster.storage import Storage
from diffusion.autoencoders.identity import IdentityAutoencoder
from diffusion.latents import LatentStatistics
from diffusion.noise import RectifiedFlow
from pipelines.arrays import to_npy
from pipelines.dataset import Dataset, describe, write_manifest
from pipelines.sampling import LatentModel
from pipelines.scoring.judgement import Judge
from pipelines.shards import write_shard
from pipelines.stage import Row, Sample
from pipelines.stages.evaluate import Evaluate

SIZE = 8


@dataclass(frozen=True, kw_only=True)
class MeanColours:
    """A feature extractor whose answers are known: mean and spread of each colour."""

    kind: str = "mean_colours"
    label: str = "Colours"
    calls: list[int] = field(default_factory=list, compare=False)

    def identity(self) -> str:
        return "colours-1"

    def build(self) -> Callable[[Sequence[Image.Image]], np.ndarray]:
        def extract(images: Sequence[Image.Image]) -> np.ndarray:
            self.calls.append(len(images))
            pixels = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])
            return np.concatenate([pixels.mean((1, 2)), pixels.std((1, 2))], axis=1)

        return extract


@dataclass
class ToySession:
    inputs: dict[str, Any]
    output: Any
    scratch: Path
    backwards: bool = False
    checkpoints: Any = None
    resources: Resources = Resources()
    lease: int = 1
    events: list[dict[str, Any]] = field(default_factory=list)

    def event(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def gang(self, worker: Any, config: Any) -> dict[str, Any]:
        raise NotImplementedError

    def map(self, factory: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> Iterator[Any]:
        call = factory()
        for item in reversed(items) if self.backwards else items:
            yield call(item)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))


def png(colour: np.ndarray) -> bytes:
    pixels = np.broadcast_to(np.clip(colour * 255, 0, 255).astype(np.uint8), (SIZE, SIZE, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()


def dataset(folder: Path, splits: dict[str, list[dict[str, Any]]], **fields: Any) -> Dataset:
    """`splits`: split -> the members of each sample; a member name with two dots is shared in its shard."""
    storage, infos = Storage.at(folder), []
    for number, (split, samples) in enumerate(splits.items()):
        rows = []
        for n, members in enumerate(samples):
            shared = {name: data for name, data in members.items() if name.count(".") == 2}
            own = {name: data for name, data in members.items() if name not in shared}
            key = f"{split}{n:04d}"
            rows.append((Row(key=key), Sample(key=key, members=own, shared=shared)))
        infos.append(write_shard(storage, f"{number:05d}", rows, split=split))
    write_manifest(storage, describe(infos, stage="toy", fingerprint="f", **fields))
    return Dataset.open(storage)


def colours(count: int, *, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.2, 0.6, (count, 3)) + shift


def images(folder: Path, **splits: np.ndarray) -> Dataset:
    return dataset(folder, {name: [{"png": png(c)} for c in of] for name, of in splits.items()})


def evaluate(
    tmp_path: Path, *, name: str = "out", backwards: bool = False, stage: dict[str, Any], **inputs: Any
):
    every = dict.fromkeys(("images", "generated", "model", "latents", "text"))
    session = ToySession(
        inputs={**every, **inputs}, output=Storage.at(tmp_path / name), scratch=tmp_path, backwards=backwards
    )
    named = {key: "x" for key, value in inputs.items() if value is not None}
    settings = {"features": MeanColours(), "bootstrap": 200, "micro_batch": 4, "shown": 3, **stage}
    result = Evaluate(**named, **settings).run(session)
    return result["metrics"], session


def row(scores: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in scores["rows"] if row["name"] == name)


def test_like_images_are_at_the_floor_and_others_are_not(tmp_path: Path):
    real = images(tmp_path / "real", train=colours(120, seed=0), test=colours(60, seed=1))
    like = images(tmp_path / "like", train=colours(60, seed=2))
    other = images(tmp_path / "other", train=colours(60, seed=3, shift=0.25))
    good, session = evaluate(tmp_path, name="a", stage={}, images=real, generated=like)
    bad, _ = evaluate(tmp_path, name="b", stage={}, images=real, generated=other)
    for name in ("generated", "real", "halves"):
        kid = row(good, name)["kid"]
        assert kid["low"] <= 0.0 + 3 * kid["stderr"]
        assert abs(kid["value"]) < 4 * kid["stderr"]
    assert row(bad, "generated")["kid"]["low"] > 10 * abs(row(bad, "real")["kid"]["high"])
    assert row(good, "generated")["precision"] > 0.8 > 0.1 > row(bad, "generated")["precision"]
    assert row(good, "generated")["n"] == [60, 120]
    assert row(good, "generated")["frechet"]["biased"] is True
    assert good["name"] == "KID-Colours"
    written = json.loads(session.output.read("metrics.json"))
    assert written == json.loads(json.dumps(good))
    assert all(session.output.read(name)[:4] == b"\x89PNG" for name in good["pictures"])
    values = next(e["values"] for e in session.events if e["kind"] == "metrics")
    assert values["kid_generated"] == row(good, "generated")["kid"]["value"]
    progress = [e for e in session.events if e["kind"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == 2 * 240  # features, and thumbnails


def test_what_a_filter_drops_is_not_compared_with(tmp_path: Path):
    strange = np.concatenate([colours(60, seed=0), colours(60, seed=3, shift=0.25)])
    real = images(tmp_path / "real", train=strange, test=colours(40, seed=1))
    keep = dataset(
        tmp_path / "keep",
        {"train": [{"keep": b"1"}] * 60 + [{}] * 60, "test": [{"keep": b"1"}] * 30 + [{}] * 10},
    )
    like = images(tmp_path / "like", train=colours(60, seed=2))
    whole, _ = evaluate(tmp_path, name="a", stage={}, images=real, generated=like)
    kept, _ = evaluate(tmp_path, name="b", stage={}, images=real, generated=like, keep=keep)
    assert row(whole, "generated")["n"] == [60, 120]
    assert row(kept, "generated")["n"] == [60, 60]
    assert row(kept, "real")["n"] == [30, 60]
    assert abs(row(kept, "generated")["kid"]["value"]) < 0.1 * row(whole, "generated")["kid"]["value"]


def test_copies_are_found(tmp_path: Path):
    train = colours(120, seed=0)
    real = images(tmp_path / "real", train=train, validation=colours(100, seed=1))
    half = np.concatenate([train[:20], colours(20, seed=2)])
    scores, _ = evaluate(tmp_path, stage={}, images=real, generated=images(tmp_path / "fake", train=half))
    closer = scores["neighbours"]["closer"]
    assert closer["value"] >= 0.5
    assert closer["low"] > 0.2
    honest = images(tmp_path / "honest", train=colours(40, seed=3))
    scores, _ = evaluate(tmp_path, name="b", stage={}, images=real, generated=honest)
    assert scores["neighbours"]["closer"]["value"] <= 0.1


def test_the_order_in_which_workers_answer_does_not_matter(tmp_path: Path):
    real = images(tmp_path / "real", train=colours(90, seed=0), test=colours(30, seed=1))
    fake = images(tmp_path / "fake", train=colours(33, seed=2))
    one, a = evaluate(tmp_path, name="a", stage={}, images=real, generated=fake)
    two, b = evaluate(tmp_path, name="b", backwards=True, stage={}, images=real, generated=fake)
    assert one == two
    assert a.output.read("metrics.json") == b.output.read("metrics.json")
    assert a.output.read("neighbours_closest.png") == b.output.read("neighbours_closest.png")


def test_features_of_the_same_images_are_not_taken_twice(tmp_path: Path):
    real = images(tmp_path / "real", train=colours(40, seed=0), test=colours(12, seed=1))
    fake = images(tmp_path / "fake", train=colours(16, seed=2))
    first, second = MeanColours(), MeanColours()
    one, _ = evaluate(tmp_path, name="a", stage={"features": first}, images=real, generated=fake)
    two, _ = evaluate(tmp_path, name="b", stage={"features": second}, images=real, generated=fake)
    assert one == two
    assert set(first.calls) == {4}
    assert second.calls == []


def test_too_few_images_are_refused(tmp_path: Path):
    real = images(tmp_path / "real", train=colours(10, seed=0))
    fake = images(tmp_path / "fake", train=colours(16, seed=2))
    with pytest.raises(ValueError, match="training images"):
        evaluate(tmp_path, stage={}, images=real, generated=fake)
    with pytest.raises(ValueError, match="set `generated`, `model` or both"):
        Evaluate(images="x")


CLASSES = 4
WIDTH = 6


def mean_of(kind: int) -> np.ndarray:
    """The mean of a kind's latents, [3, 1, 1]."""
    return np.random.default_rng(kind).normal(size=(3, 1, 1)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class KnowsTheMean:
    """E[x | x_t, kind] for latents N(mean of the kind, 0.3^2): what perfect training would give.

    It reads the kind from the label or from the pooled caption; `deaf`, from neither.
    """

    by: str
    deaf: bool = False
    schedule: RectifiedFlow = field(default_factory=RectifiedFlow)

    def __call__(self, x_t: torch.Tensor, t: Any, conditioning: Any) -> torch.Tensor:
        if self.deaf:
            kinds = torch.zeros(len(x_t), dtype=torch.long)
        elif self.by == "classes":
            kinds = conditioning.label
        else:
            kinds = conditioning.pooled.argmax(1)
        mean = torch.from_numpy(np.stack([mean_of(int(k)) for k in kinds]))
        alpha, sigma = self.schedule.spread(t, x_t)
        gain = alpha * 0.09 / (alpha**2 * 0.09 + sigma**2)
        return mean + gain * (x_t - alpha * mean)


@pytest.mark.parametrize("by", ["classes", "captions"])
def test_conditions_that_matter_are_told_from_those_that_do_not(tmp_path: Path, by: str, monkeypatch):
    draws = np.random.default_rng(0)
    splits: dict[str, tuple[list[Any], list[Any], list[Any]]] = {}
    for split, count in (("train", 24), ("validation", 32), ("test", 32)):
        pictures, latents, texts = [], [], []
        for n in range(count):
            kind = n % CLASSES
            mean = mean_of(kind) + 0.3 * draws.normal(size=(3, SIZE, SIZE))
            moments = np.concatenate([mean, np.zeros_like(mean)]).astype(np.float16)
            digest = hashlib.sha256(str(kind).encode()).hexdigest()[:20]
            pooled = np.eye(WIDTH, dtype=np.float16)[kind]
            pictures.append({"png": png(draws.uniform(size=3)), "cls": str(kind).encode()})
            latents.append({"moments.npy": to_npy(moments)})
            texts.append({
                "text.json": json.dumps([{"digest": digest, "weight": 1.0}]).encode(),
                f"{digest}.text.npy": to_npy(np.ones((2, WIDTH), np.float16)),
                f"{digest}.pooled.npy": to_npy(pooled),
            })  # fmt: skip
        splits[split] = (pictures, latents, texts)
    names = [str(n) for n in range(CLASSES)]
    real = dataset(tmp_path / "images", {s: of[0] for s, of in splits.items()}, classes=names)
    latents = dataset(tmp_path / "latents", {s: of[1] for s, of in splits.items()})
    record = {"text": {"width": WIDTH, "longest": 2}}
    text = dataset(tmp_path / "text", {s: of[2] for s, of in splits.items()}, statistics=record)
    text = text if by == "captions" else None

    found = {}
    for deaf in (False, True):
        model = LatentModel(
            denoiser=KnowsTheMean(by=by, deaf=deaf),
            autoencoder=IdentityAutoencoder(),
            statistics=LatentStatistics(mean=(0.0,) * 3, std=(1.0,) * 3),
            shape=(3, SIZE, SIZE),
            classes=CLASSES if by == "classes" else 0,
            text_width=WIDTH if by == "captions" else None,
            device=torch.device("cpu"),
        )
        snapshot = SimpleNamespace(
            record={"task": "denoiser", "text": record["text"] if text else None, "classes": names},
            storage=SimpleNamespace(url="toy"),
            autoencoder=IdentityAutoencoder,
        )
        monkeypatch.setattr("pipelines.models.SnapshotFolder.open", lambda storage, s=snapshot: s)
        monkeypatch.setattr("pipelines.models.Generator", lambda folder, m=model: SimpleNamespace(model=m))
        stage = {"untrained": 0, "losses": 48}
        scores, _ = evaluate(
            tmp_path, name=f"{deaf}", stage=stage, images=real, model=snapshot, latents=latents, text=text
        )
        found[deaf] = scores["conditioning"]
        assert row(scores, "reconstructions")["kid"]["value"] == pytest.approx(
            row(scores, "real")["kid"]["value"], abs=1e-4
        )
    assert found[False]["n"] == found[True]["n"] == 48
    assert found[False]["by"] == by
    assert found[False]["low"] > 0.1
    assert found[True]["difference"] == 0.0


def test_paired_intervals_cover_the_truth():
    draws = np.random.default_rng(5)
    hard = draws.uniform(1, 3, 200)  # how hard an image is moves both losses and not their difference
    said = Judge(bootstrap=500).paired(hard, hard + 0.02 + 0.05 * draws.normal(size=200))
    assert said["low"] < 0.02 < said["high"]
    assert said["low"] > 0


class Grey(IdentityAutoencoder):
    """An autoencoder that loses all colour: what it gives back lies far from what it was given."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.mean(1, keepdim=True).expand(-1, 3, -1, -1)


def test_copies_behind_a_poor_autoencoder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train, held_out = colours(120, seed=0), colours(100, seed=1)
    real = images(tmp_path / "real", train=train, validation=held_out)
    grey = np.repeat(train[:40].mean(1, keepdims=True), 3, axis=1)
    copies = images(tmp_path / "copies", train=grey)
    snapshot = SimpleNamespace(
        record={"task": "autoencoder"}, storage=SimpleNamespace(url="toy"), autoencoder=Grey
    )
    monkeypatch.setattr("pipelines.models.SnapshotFolder.open", lambda storage: snapshot)
    stage = {"untrained": 0, "losses": 0, "count": 30}  # the originals are mostly not among those
    scores, _ = evaluate(tmp_path, stage=stage, images=real, generated=copies, model=snapshot)
    near = scores["neighbours"]
    assert near["generated"]["n"] == 30
    assert near["generated"]["q95"] < 0.01
    nearest_as_they_are = Judge(bootstrap=50).copies(
        *(np.tile(colour.astype(np.float32), (1, 4)) for colour in (grey, held_out, train))
    )
    assert nearest_as_they_are.said["generated"]["median"] > 5 * near["generated"]["median"]
