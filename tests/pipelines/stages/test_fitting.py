"""What does not go together is told when a recipe is read, and not after hours of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import config

RECIPE: dict[str, Any] = {
    "name": "line",
    "stages": {
        "images": {"stage": "ingest", "source": {"kind": "folder", "path": "pictures"}, "size": 48},
        "vae": {"stage": "train_autoencoder", "images": "images"},
        "other": {"stage": "train_autoencoder", "images": "images", "seed": 1},
        "latents": {"stage": "encode", "images": "images", "autoencoder": "vae", "also": [24]},
        "captions": {"stage": "caption", "images": "images"},
        "text": {"stage": "embed", "captions": "captions"},
        "small": {"stage": "train", "latents": "latents", "autoencoder": "vae", "resolution": 24},
        "large": {"stage": "train", "latents": "latents", "autoencoder": "vae", "initial": "small"},
    },
}


def read(change: Callable[[dict[str, Any]], None]) -> config.Recipe:
    recipe = copy.deepcopy(RECIPE)
    change(recipe["stages"])
    return config.parse(yaml.safe_dump(recipe, sort_keys=False), name="line.yaml", folder=Path("/"))


def test_what_goes_together_is_read() -> None:
    assert read(lambda stages: None).stages["large"].named()["initial"] == "small"
    # Positions and skipped tokens may differ, and a decoder of its own goes with the latents of the first.
    read(lambda stages: stages["large"].update(network={"kind": "dit", "route": [1, 2]}))
    only = {"stage": "train_autoencoder", "images": "images", "initial": "vae", "train": "decoder"}
    read(lambda stages: (stages.update(other=only), stages["large"].update(autoencoder="other")))
    read(lambda stages: stages["large"].update(autoencoder="/elsewhere/vae"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"flips": True},
            "flips: latents has no mirrored moments: set `flips: true` in its encode stage too.",
        ),
        (
            {"resolution": 32},
            "resolution: latents makes none of 32 px: name it in `also` of the encode stage.",
        ),
        (
            {"autoencoder": "other"},
            "autoencoder: latents is encoded by vae: name the autoencoder that encode was given.",
        ),
        (
            {"text": "text", "null": "encoded"},
            "null: text keeps no empty caption: set `empty: true` in its embed stage.",
        ),
        (
            {"network": {"kind": "dit", "width": 96}},
            "network: small has a network of width 256 (here 96): `network` must be the same.",
        ),
        (
            {"network": {"kind": "unet"}},
            "network: small is a network of kind dit and this one is unet: give `network` the kind and the "
            "fields of small's.",
        ),
        (
            {"resources": {"workers": 65}},
            "A batch of 64 leaves some of 65 workers without an image: raise `batch`, or lower "
            "`resources.workers`.",
        ),
        (
            {"resources": {"workers": 4}, "parallel": {"kind": "fsdp", "replicas": 3}},
            "parallel.replicas is 3, and resources.workers 4: set `replicas` to a number that divides them.",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_is_one_line_with_its_place(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=r"^line\.yaml:\d+: large") as error:
        read(lambda stages: stages["large"].update(change))
    said = str(error.value)
    assert said.endswith(told)
    assert "\n" not in said
