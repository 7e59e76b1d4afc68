"""Denoisers of diffusers, taken into a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.storage import Storage
from pipelines.models import SnapshotFolder
from pipelines.pretrained.adoption import adopted
from pipelines.pretrained.denoiser_folder import module_of, network_of
from pipelines.stage import TooMany
from tests.pipelines.pretrained.tiny_denoisers import model, save

WEIGHTS = "diffusion_pytorch_model.safetensors"


def quiet(done: int, of: int) -> None:
    pass


def adopt(reference: Path, store: Path) -> SnapshotFolder:
    place = adopted(str(reference), Storage.at(store), part="denoiser", fetch=quiet)
    assert place is not None
    return SnapshotFolder.open(place)


@pytest.mark.parametrize("shape", ["sd1", "plain", "dit", "sd3", "flux"])
def test_the_module_in_the_store_is_the_one_in_the_folder(shape: str, tmp_path: Path):
    found = adopt(save(shape, tmp_path / "pipeline", max_shard_size="30KB"), tmp_path / "store")
    expected, got = model(shape).state_dict(), module_of(found).state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_pipeline_and_part_are_one_and_read_once(tmp_path: Path):
    folder, store = save("sd1", tmp_path / "pipeline"), tmp_path / "store"
    (folder / "vae").mkdir()
    (folder / "vae/config.json").write_text('{"scaling_factor": 0.18215, "sample_size": 512}')
    with pytest.raises(TooMany):
        adopted(str(folder), Storage.at(store), part="denoiser")
    found = adopt(folder, store)
    assert adopt(folder / "unet", store).storage.url == found.storage.url
    network = network_of(found.record, tokens=77)
    assert (network.chain, network.tokens, network.text_width) == (1000, 77, 8)
    statistics = network.statistics(found.record["vae"], 4)
    assert statistics.std == pytest.approx((1 / 0.18215,) * 4)
    scheduling = folder / "scheduler/scheduler_config.json"
    said = json.loads(scheduling.read_text())
    scheduling.write_text(json.dumps({**said, "prediction_type": "v_prediction"}))
    assert adopt(folder, store).digest() != found.digest()


def test_a_variant_in_half_precision_is_taken_where_it_is_all(tmp_path: Path):
    folder = save("dit", tmp_path / "pipeline", variant="fp16")
    got = module_of(adopt(folder, tmp_path / "store")).state_dict()
    assert all(torch.equal(got[name], t) for name, t in model("dit").state_dict().items())


def _shape(weights: Path) -> None:
    tensors = load_file(weights)
    tensors["proj_out_1.bias"] = torch.zeros(3)
    save_file(tensors, weights)


def _nan(weights: Path) -> None:
    tensors = load_file(weights)
    tensors["proj_out_1.bias"][0] = torch.nan
    save_file(tensors, weights)


def _missing(weights: Path) -> None:
    tensors = load_file(weights)
    del tensors["proj_out_1.bias"]
    save_file(tensors, weights)


def _config(weights: Path, **settings: Any) -> None:
    config = weights.with_name("config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_shape, r"proj_out_1.bias is \[3\], and by its config"),
        (_nan, "proj_out_1.bias holds infinite numbers or none"),
        (_missing, "1 missing"),
        (lambda w: w.write_bytes(w.read_bytes()[:500]), "is damaged"),
        (lambda w: w.rename(w.with_suffix(".bin")), "a pickle, which can run code"),
        (lambda w: _config(w, _class_name="PixArtTransformer2DModel"), "is not supported"),
        (lambda w: _config(w, quantization_config={}), "is quantized"),
        (lambda w: _config(w, num_attention_heads="two"), "diffusers makes no DiTTransformer2DModel"),
        (lambda w: (w.parents[1] / "scheduler/scheduler_config.json").unlink(), "name the whole pipeline"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(harm: Any, said: str, tmp_path: Path):
    folder = save("dit", tmp_path / "pipeline")
    harm(folder / "transformer" / WEIGHTS)
    with pytest.raises(ValueError, match=said) as told:
        adopt(folder, tmp_path / "store")
    assert "\n" not in str(told.value)
    assert not list((tmp_path / "store").rglob("manifest.json"))
