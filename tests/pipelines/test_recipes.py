from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pipelines
from pipelines import config
from pipelines.stages.encode import Encode
from pipelines.stages.evaluate_upscaler import EvaluateUpscaler
from pipelines.stages.generate import Generate
from pipelines.stages.ingest import Ingest
from pipelines.stages.train import Train
from pipelines.stages.train_autoencoder import TrainAutoencoder

RECIPES = sorted((Path(pipelines.__file__).parent / "recipes").glob("*.yaml"))
TRAINING = [path for path in RECIPES if path.stem not in ("edit", "curate", "captioner", "clip")]
DRAWING = [path for path in TRAINING if path.stem != "fashion_mnist_anomaly"]
LARGEST = 20_000_000
"""Bytes of the shipped model, at most."""


def parts(path: Path) -> tuple[Ingest, TrainAutoencoder, Train]:
    stages = config.load(path.stem, []).stages.values()
    by_type = {type(stage): stage for stage in stages}
    images, autoencoder, model = (by_type[kind] for kind in (Ingest, TrainAutoencoder, Train))
    assert isinstance(images, Ingest)
    assert isinstance(autoencoder, TrainAutoencoder)
    assert isinstance(model, Train)
    return images, autoencoder, model


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command_its_cost_and_what_to_expect(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == f"# latentmill run {path.stem}"
    assert "2 cores" in lines[1] or "8 GPUs" in lines[1]
    assert lines[2].startswith("# To expect:")


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_sizes_of_a_recipe_fit_each_other(path: Path) -> None:
    images, autoencoder, model = parts(path)
    assert images.size % autoencoder.autoencoder.factor == 0
    side = images.size // autoencoder.autoencoder.factor
    with torch.device("meta"):
        network = model.network.build(channels=4, size=side, classes=8 if model.images else 0, text_width=384)
        built = autoencoder.autoencoder.build()
        pixels = built.decode(torch.zeros(1, built.latent_channels, side, side))
    assert pixels.shape == (1, 3, images.size, images.size)
    if path.stem == "emoji3d":
        parameters = (*network.parameters(), *built.parameters())
        assert 2 * sum(p.numel() for p in parameters) < LARGEST


@pytest.mark.parametrize("path", DRAWING, ids=lambda path: path.stem)
def test_a_recipe_draws_as_its_live_row_does(path: Path) -> None:
    stages = config.load(path.stem, []).stages
    *_, model = parts(path)
    drawing = [stage for stage in stages.values() if isinstance(stage, (Generate, EvaluateUpscaler))]
    assert drawing
    for stage in drawing:
        if isinstance(stage, Generate):
            assert (stage.sampler, stage.guidance) == (model.sampler, model.guidance)
        else:
            first = stages[stage.models[0]]
            assert isinstance(first, Train)
            assert stage.sampler == first.sampler


def test_a_progressive_training_grows_and_ends_with_all_tokens() -> None:
    stages = config.load("progressive", []).stages
    trained = {name: stage for name, stage in stages.items() if isinstance(stage, Train)}
    images, latents = stages["images"], stages["latents"]
    assert isinstance(images, Ingest)
    assert isinstance(latents, Encode)
    sides = [stage.resolution or images.size for stage in trained.values()]
    assert sides == sorted(sides)
    assert sides[0] in latents.also
    assert sides[-1] == images.size
    assert [stage.initial for stage in trained.values()] == [None, *trained][:-1]
    assert len({stage.network for stage in trained.values()}) == 1
    *routed, last = trained.values()
    assert all(stage.tokens < 1 and not stage.optimization.cooldown for stage in routed)
    assert last.tokens == 1
    assert last.optimization.cooldown


def test_the_quickstart_is_the_training_of_the_shipped_model_made_shorter() -> None:
    quick, shipped = (config.load(name, []).stages for name in ("quickstart", "emoji3d"))
    assert shipped.keys() - quick.keys() == {"gate"}
    assert quick.keys() < shipped.keys()
    for name in ("images", "captions", "text"):
        assert quick[name].meaning() == shipped[name].meaning()
