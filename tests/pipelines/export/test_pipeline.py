"""What was trained here, loaded and sampled by diffusers' own pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffusion.config import EulerConfig, GuidanceConfig, OptimizationConfig
from pipelines import embedders, sampling
from pipelines.__main__ import main
from pipelines.models import Generator, SnapshotFolder
from pipelines.pretrained.config import DiffusersConfig, LoRAConfig
from tests.pipelines import tiny
from tests.pipelines.pretrained.pretrained_line import Embedder, embedding, line, pipeline, train

torch.set_num_threads(1)
STEPS, SEED = 5, 3


@pytest.fixture(autouse=True)
def _encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedders, "load_text", lambda record: Embedder())


def trained(shape: str, folder: Path, **changes: Any) -> SnapshotFolder:
    fields: dict[str, Any] = {"images_seen": 16, "sampler": EulerConfig(steps=STEPS)}
    stage = train(shape, **fields | changes)
    return tiny.run(stage, tiny.session(folder, line(shape, folder)))


def ours(snapshot: SnapshotFolder, scale: float, shift: float = 1.0, **given: Any) -> np.ndarray:
    model = Generator(snapshot, device="cpu").model
    drawn = sampling.draw(
        model,
        [sampling.Drawing(index=n, **given) for n in range(2)],
        seed=SEED,
        sampler=EulerConfig(steps=STEPS, shift=shift),
        guidance=GuidanceConfig(scale=scale),
        micro_batch=2,
    )
    return np.stack(drawn)


def noise(snapshot: SnapshotFolder) -> torch.Tensor:
    """What our sampler begins with."""
    from diffusion import randomness

    model = Generator(snapshot, device="cpu").model
    _, sigma = model.denoiser.schedule.at(1.0)
    return sigma * randomness.normal(SEED, np.arange(2), model.shape, "generate")


def exported(snapshot: SnapshotFolder, out: Path) -> Path:
    assert main(["export", snapshot.storage.url, str(out), "--form", "diffusers", "--json"]) == 0
    return out


def close(found: np.ndarray, expected: Any) -> None:
    """To 2e-3 of the range, and what rounding to 8 bits adds."""
    wanted = np.asarray(expected, np.float32) * 255
    assert np.abs(found.astype(np.float32) - wanted).max() <= 0.5 + 2e-3 * 255


def texts(rows: int = 2) -> dict[str, torch.Tensor]:
    made = {}
    for name, words in (("", "thing 1"), ("negative_", "")):
        one = embedding(words)
        made[f"{name}prompt_embeds"] = torch.from_numpy(one.states).float()[None].repeat(rows, 1, 1)
        made[f"{name}pooled_prompt_embeds"] = torch.from_numpy(one.pooled).float()[None].repeat(rows, 1)
    return made


def test_stable_diffusion(tmp_path: Path):
    import diffusers

    snapshot = trained("sd1", tmp_path)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(
        exported(snapshot, tmp_path / "out"), text_encoder=None, tokenizer=None
    )
    loaded.set_progress_bar_config(disable=True)
    given = {name: t for name, t in texts().items() if "pooled" not in name}
    images = loaded(
        **given, latents=noise(snapshot), num_inference_steps=STEPS, guidance_scale=2.0, output_type="np"
    ).images
    close(ours(snapshot, 2.0, text=embedding("thing 1")), images)


def test_stable_diffusion_3_and_its_adapters(tmp_path: Path):
    import diffusers

    lora = DiffusersConfig(path="/somewhere/pipeline", lora=LoRAConfig(rank=2, alpha=6))
    fast = OptimizationConfig(lr=5e-2, warmup=8, ema=0.28)
    snapshot = trained("sd3", tmp_path, denoiser=lora, optimization=fast, images_seen=64)
    out = exported(snapshot, tmp_path / "out")

    def drawn(folder: Path, adapters: Path | None = None) -> Any:
        loaded = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, **ABSENT)
        loaded.set_progress_bar_config(disable=True)
        if adapters is not None:
            loaded.load_lora_weights(adapters)
        return loaded(
            **texts(),
            latents=noise(snapshot),
            num_inference_steps=STEPS,
            sigmas=np.linspace(1, 1 / STEPS, STEPS).tolist(),
            guidance_scale=2.0,
            output_type="np",
        ).images

    found = ours(snapshot, 2.0, shift=3.0, text=embedding("thing 1"))
    close(found, drawn(out))
    base = pipeline("sd3", tmp_path / "base")
    index = {"_class_name": "StableDiffusion3Pipeline"}
    index |= {"transformer": ["diffusers", "SD3Transformer2DModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index |= {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    (base / "model_index.json").write_text(json.dumps(index))
    close(found, drawn(base, out))
    assert np.abs(drawn(base) - drawn(out)).max() > 0.01


ABSENT: dict[str, Any] = {
    f"{part}{behind}": None for part in ("text_encoder", "tokenizer") for behind in ("", "_2", "_3")
}


def test_a_class_transformer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import diffusers
    from diffusers.pipelines.dit import pipeline_dit

    snapshot = trained("dit", tmp_path)
    loaded = diffusers.DiTPipeline.from_pretrained(exported(snapshot, tmp_path / "out"))
    loaded.set_progress_bar_config(disable=True)
    assert loaded.labels == {name: n for n, name in enumerate(sorted(tiny.CLASSES, key=tiny.CLASSES.index))}
    monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda **given: noise(snapshot))
    images = loaded([2, 2], guidance_scale=2.0, num_inference_steps=STEPS, output_type="np").images
    close(ours(snapshot, 2.0, label=2), images)


def test_what_is_exported_can_be_trained_again(tmp_path: Path):
    from pipelines.pretrained.denoiser_folder import DenoiserFolder

    snapshot = trained("sdxl", tmp_path)
    out = exported(snapshot, tmp_path / "out")
    found = DenoiserFolder.of(tiny.Storage.at(out), "out")
    assert found.network.name == "UNet2DConditionModel"
    assert found.vae["scaling_factor"] == pytest.approx(0.5)
    stored = load_file(out / "unet/diffusion_pytorch_model.safetensors")
    assert all(
        torch.equal(t.float(), stored[n].float()) for n, t in snapshot.tensors("denoiser.safetensors").items()
    )


def test_no_pipeline_has_a_plain_unet_on_latents(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    snapshot = trained("plain", tmp_path)
    assert main(["export", snapshot.storage.url, str(tmp_path / "out"), "--form", "diffusers"]) != 0
    line = capsys.readouterr().err.strip()
    assert "diffusers has no pipeline of a UNet2DModel on latents" in line
    assert "\n" not in line
    assert not (tmp_path / "out").exists()
