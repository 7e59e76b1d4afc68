"""A tiny line on an S3 server gives the bytes that it gives on a disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cluster.storage import Storage
from pipelines import config, pipeline
from tests import s3
from tests.test_end_to_end import emoji

RECIPE = """
name: small
stages:
  images: {stage: ingest, source: {kind: folder, path: emoji}, size: 16, samples_per_shard: 8,
    split: {validation: 0.2, test: 0.1}}
  captions: {stage: caption, images: images, captioners: [{kind: template, text: "a 3D emoji of {text}"}]}
  vae: {stage: train_autoencoder, images: images, images_seen: 16, batch: 8,
    autoencoder: {kind: kl, channels: 8, multipliers: [1, 2], latent_channels: 2},
    optimization: {warmup: 8, cooldown: 8}, checkpoint_every: 8, resources: {cpus: 1}}
  latents: {stage: encode, images: images, autoencoder: vae, micro_batch: 8}
  model: {stage: train, latents: latents, images: images, autoencoder: vae, images_seen: 16, batch: 8,
    network: {kind: dit, width: 16, depth: 1, heads: 2, patch: 2}, optimization: {warmup: 8, cooldown: 8},
    checkpoint_every: 8, sampler: {kind: euler, steps: 2}, resources: {cpus: 1}}
  drawn: {stage: generate, model: model, images: images, count: 4, sampler: {kind: euler, steps: 2}}
"""


def outputs(store: Storage) -> dict[str, str]:
    """sha256 of every shard, index and weight."""
    return {
        name: hashlib.sha256(store.read(name)).hexdigest()
        for name in store.list()
        if name.endswith((".tar", ".parquet", ".safetensors"))
        and not name.startswith(("checkpoints/", "cache/"))
    }


@pytest.mark.timeout(600)
def test_a_line_on_s3_gives_the_bytes_of_the_line_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    emoji(tmp_path / "emoji", slice(0, 1600, 66))
    (tmp_path / "small.yaml").write_text(RECIPE)
    recipe = config.load(tmp_path / "small.yaml", [])
    with s3.serving() as endpoint:
        for name, value in s3.credentials(endpoint).items():
            monkeypatch.setenv(name, value)
        stores = [Storage.at(tmp_path / "store"), Storage.at(f"s3://{s3.new_bucket()}/store")]
        for store in stores:
            pipeline.run(recipe, store, executor="inline", record=False)
        first, second = map(outputs, stores)
        assert first == second
        assert {name.partition("/")[0] for name in first} == {
            "ingest", "caption", "train_autoencoder", "encode", "train", "generate",
        }  # fmt: skip
        assert pipeline.plan(recipe, stores[1]).done
        assert [n for n in stores[1].list("checkpoints/") if "/lease/" in n and n.endswith(".json")]
        assert pipeline.run(recipe, stores[1], executor="inline", record=False).ran == ()
