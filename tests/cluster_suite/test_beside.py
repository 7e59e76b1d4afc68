"""Pictures and KID by an actor beside a gang of Ray Train: they show what the gang itself would see."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster_suite.place import begun, placed

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(1500)]
SEEN = 1600
RECIPE = f"""
name: beside
stages:
  images: {{stage: ingest, source: {{kind: folder, path: emoji}}, size: 16, samples_per_shard: 16,
    split: {{validation: 0.3}}}}
  vae: {{stage: train_autoencoder, images: images, images_seen: 64, batch: 8,
    autoencoder: {{kind: kl, channels: 8, multipliers: [1, 2], latent_channels: 2}},
    optimization: {{warmup: 8, cooldown: 16}}, checkpoint_every: 64, validate_every: 64, samples_every: 64,
    resources: {{cpus: 1}}}}
  latents: {{stage: encode, images: images, autoencoder: vae, micro_batch: 8}}
  model: {{stage: train, latents: latents, images: images, autoencoder: vae, images_seen: {SEEN}, batch: 8,
    network: {{kind: dit, width: 32, depth: 2, heads: 2, patch: 1}},
    optimization: {{warmup: 8, cooldown: 160}}, checkpoint_every: 400, validate_every: 400,
    samples_every: 200, kid_every: 400, kid_samples: 8,
    validation_samples: 8, sampler: {{kind: euler, steps: 2}}, resources: {{cpus: 1, workers: 2}}}}
"""


@pytest.fixture
def place() -> Iterator[Path]:
    with placed(RECIPE, every=33) as folder:
        yield folder


def latentmill(place: Path, store: str, *words: str) -> str:
    run = begun(place, "--store", store, *words)
    said, _ = run.communicate(timeout=700)
    assert run.returncode == 0, said[-3000:]
    return said


def events(store: Path) -> list[dict[str, Any]]:
    lines = (store / "runs" / "beside" / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["stage"] == "model"]


def pictures(store: Path) -> dict[int, bytes]:
    runs = store / "runs" / "beside"
    told = [event for event in events(store) if event["kind"] == "picture"]
    return {event["step"]: (runs / event["file"]).read_bytes() for event in told}


def snapshot(store: Path) -> dict[str, Any]:
    (manifest,) = (store / "train").glob("*/manifest.json")
    return json.loads(manifest.read_text())["snapshot"]


def kids(store: Path) -> dict[int, float]:
    return {seen: values["kid"] for seen, values in snapshot(store)["curve"] if "kid" in values}


def test_an_actor_beside_a_gang_sees_what_the_gang_would(place: Path) -> None:
    latentmill(place, "here", "--until", "latents", "--executor", "inline")
    shutil.copytree(place / "here", place / "aside")
    latentmill(place, "here", "--model.beside", "False")
    said = latentmill(place, "aside", "--model.beside", "True")
    here, aside = place / "here", place / "aside"
    assert "is lost" not in said
    # The first look is begun at once, the last is waited for; of those between, what there was time for.
    assert list(pictures(here)) == list(range(200, SEEN + 1, 200))
    assert {200, SEEN} <= set(pictures(aside)) <= set(pictures(here))
    assert {SEEN} <= set(kids(aside)) <= set(kids(here)) == {400, 800, 1200, SEEN}
    for step, png in pictures(aside).items():
        assert png == pictures(here)[step], step
    for step, kid in kids(aside).items():
        assert kid == pytest.approx(kids(here)[step], rel=1e-4), step
    assert snapshot(aside)["files"] == snapshot(here)["files"]
    left_out = len(pictures(here)) - len(pictures(aside))
    assert (snapshot(aside).get("looks_skipped", 0) > 0) == (left_out > 0)
    print(f"\nlooks beside: {len(pictures(aside))}, left out: {snapshot(aside).get('looks_skipped', 0)}")
    assert not list((aside / "checkpoints").glob("*/looks/*"))
