"""Trainings that begin with a pretrained denoiser."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.config import DiTConfig, OptimizationConfig
from pipelines import editing, embedders
from pipelines.models import Generator, SnapshotFolder
from pipelines.pretrained.config import DiffusersConfig, LoRAConfig
from tests.pipelines import tiny
from tests.pipelines.pretrained.pretrained_line import SCALE, SHIFT, Embedder, line, train
from tests.pipelines.pretrained.tiny_denoisers import SHAPES, model


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Of each shape, as it is asked for."""

    class Lines(dict[str, dict[str, Any]]):
        def __missing__(self, shape: str) -> dict[str, Any]:
            self[shape] = line(shape, tmp_path_factory.mktemp(shape))
            return self[shape]

    return Lines()


@pytest.fixture(autouse=True)
def _encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedders, "load_text", lambda record: Embedder())


@pytest.mark.parametrize(
    "shape",
    [
        "sd1",
        *(pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES if shape not in ("sd1", "clean")),
    ],
)
def test_learns_draws_and_edits(shape: str, lines: dict[str, dict[str, Any]], tmp_path: Path):
    session = tiny.session(tmp_path, lines[shape])
    stage = train(shape)
    snapshot = tiny.run(stage, session)

    curve = [point[1]["validation_loss"] for point in snapshot.record["curve"]]
    assert curve[-1] < curve[0]
    assert snapshot.record["network"]["kind"] == "diffusers"
    # Of diffusers' pipelines only those of SD3 and FLUX shift.
    shift = SHIFT if shape in ("sd3", "flux") else 0.0
    assert snapshot.record["statistics"]["mean"] == pytest.approx([shift] * 4)
    assert snapshot.record["statistics"]["std"] == pytest.approx([1 / SCALE] * 4)
    moved = Path(shutil.copytree(tmp_path / "output", tmp_path / "moved"))
    shutil.rmtree(tmp_path / "output")
    generator = Generator(SnapshotFolder.open(tiny.Storage.at(moved)), device="cpu")
    given = {"prompts": ["thing 1"]} if stage.text else {"classes": ["cross"]} if stage.images else {}
    image = generator.generate(count=1, **given)[0]
    assert image.size == (tiny.SIZE, tiny.SIZE)
    editor = editing.load(moved, device="cpu")
    edited = editor.edit(
        [image], editing.ImageToImage(strength=0.4), prompts=["thing 2"] if stage.text else ()
    )
    assert edited[0].image.shape == (tiny.SIZE, tiny.SIZE, 3)


def test_begins_with_the_pretrained_weights_at_their_own_scale(lines: dict[str, Any], tmp_path: Path):
    stage = train("sd1")
    task = stage.task(stage.given(lines["sd1"]), torch.device("cpu"), 1)
    assert all(
        torch.equal(t, model("sd1").state_dict()[n]) for n, t in task.module.model.state_dict().items()
    )
    raw = task.samples.moments[np.arange(4)]
    drawn = task.samples.latents(0, np.arange(4), np.arange(4))
    assert float((drawn - torch.from_numpy(raw[:, :4]).float() * SCALE).abs().max()) < 0.2
    times = task.share(np.arange(8), np.arange(8)).t
    assert torch.equal((times * 1000).round() / 1000, times)


def test_adapters_alone_learn_and_are_all_that_is_kept(lines: dict[str, Any], tmp_path: Path):
    config = DiffusersConfig(path="/somewhere/pipeline", lora=LoRAConfig(rank=2, alpha=4))
    stage = train("sd3", denoiser=config)
    session = tiny.session(tmp_path, lines["sd3"])
    snapshot = tiny.run(stage, session)

    base, learned = model("sd3").state_dict(), snapshot.tensors("denoiser.safetensors")
    assert base.keys() == learned.keys()
    changed = {n for n, t in base.items() if not torch.allclose(t.half().float(), learned[n], atol=1e-7)}
    assert changed
    assert all(any(f".{part}." in n for part in ("attn", "attn2")) and n.endswith("weight") for n in changed)
    curve = [point[1]["validation_loss"] for point in snapshot.record["curve"]]
    assert curve[-1] < curve[0]
    assert Generator(snapshot, device="cpu").generate(["thing 1"])[0].size == (tiny.SIZE, tiny.SIZE)
    adapters = snapshot.tensors("pytorch_lora_weights.safetensors")
    name = "transformer_blocks.0.attn.to_q"
    grown = adapters[f"transformer.{name}.lora_B.weight"] @ adapters[f"transformer.{name}.lora_A.weight"]
    torch.testing.assert_close(
        base[f"{name}.weight"] + grown, learned[f"{name}.weight"], rtol=2e-3, atol=2e-3
    )
    sizes = [file.stat().st_size for file in (tmp_path / "checkpoints").rglob("*.safetensors")]
    whole = sum(t.numel() * 4 for t in base.values())
    assert sizes
    assert max(sizes) < whole


def test_variances_that_a_transformer_learned_are_left_as_they_were(lines: dict[str, Any], tmp_path: Path):
    """All else of the last layer is trained, and weights decay."""
    fast = OptimizationConfig(lr=1e-2, warmup=8, weight_decay=1.0)
    session = tiny.session(tmp_path, lines["dit"])
    snapshot = tiny.run(train("dit", optimization=fast, images_seen=16), session)
    base, learned = model("dit").state_dict(), snapshot.tensors("denoiser.safetensors")
    # Of a patch of 2 x 2 with 4 + 4 channels, which come last.
    told = torch.arange(2 * 2 * 8) % 8 >= 4
    for name in ("proj_out_2.weight", "proj_out_2.bias"):
        same = (base[name].half().float() == learned[name]).reshape(len(told), -1)
        assert same[told].all()
        assert not same[~told].all(1).any()


def test_a_training_is_told_by_its_weights_and_not_by_their_place():
    here, there = train("sd1"), train("sd1", denoiser=DiffusersConfig(path="/elsewhere"))
    assert here.meaning() == there.meaning()
    assert here.meaning() == train("sd1", network=DiTConfig(width=128)).meaning()
    lora = train("sd1", denoiser=DiffusersConfig(path="/x/y", lora=LoRAConfig(rank=4)))
    assert here.meaning() != lora.meaning()
    assert here.named()["denoiser"] == "/somewhere/pipeline"
    assert "denoiser" not in tiny.train().meaning()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"null": "learned"}, "set `null: encoded` here"),
        ({"text": None, "null": "learned"}, "reads token states of 8, and there are none"),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, Any], said: str, lines: dict[str, Any], tmp_path: Path):
    inputs = {k: v for k, v in lines["sd1"].items() if k != "text" or changes.get("text", "") is not None}
    with pytest.raises(ValueError, match=said):
        tiny.run(train("sd1", **changes), tiny.session(tmp_path, inputs))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"initial": "other"}, "Both `denoiser` and `initial`"),
        ({"tokens": 0.5}, "leave them or `denoiser` out"),
        ({"objective": "regression"}, "regression"),
    ],
)
def test_fields_of_a_new_network_are_refused(changes: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        train("sd1", **changes)
