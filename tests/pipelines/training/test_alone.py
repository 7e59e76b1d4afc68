from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pipelines
from pipelines.training import alone

RECIPE = """
name: tiny
stages:
  images: {{stage: ingest, source: {{kind: zip, path: {data}}}, size: 16}}
  autoencoder: {{stage: train_autoencoder, images: images, images_seen: 32, batch: 8, perceptual_weight: 0,
    autoencoder: {{kind: kl, latent_channels: 2, channels: 8, multipliers: [1], stem: 4, blocks: 1}},
    optimization: {{warmup: 0, cooldown: 0}}}}
  latents: {{stage: encode, images: images, autoencoder: autoencoder}}
  model: {{stage: train, latents: latents, autoencoder: autoencoder, images_seen: {seen}, batch: 9,
    network: {{kind: dit, width: 16, depth: 2, heads: 2}}, parallel: {{kind: fsdp}}, recompute: true,
    optimization: {{warmup: 0, cooldown: 0}}, sampler: {{kind: heun, steps: 2}}}}
"""


@pytest.mark.slow
def test_torchrun_runs_a_recipe_and_goes_on_with_more(tmp_path: Path) -> None:
    data = Path(pipelines.__file__).parent / "data" / "emoji3d.zip"
    for workers, seen in ((2, 36), (3, 72)):
        recipe = tmp_path / "tiny.yaml"
        recipe.write_text(RECIPE.format(data=data, seen=seen))
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(workers)]
        command += ["-m", "pipelines.training.alone", str(recipe), str(tmp_path / "store"), "model"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "model: stage end, done" in done.stdout
        assert ("Continues from 36 images." in done.stdout) == (workers == 3)
        [parts] = {len(list(tmp_path.glob(f"store/checkpoints/*/{seen:012d}-*.safetensors")))}
        assert parts == workers


def test_who_was_not_started_by_torchrun_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="RANK is not set: start it as `torchrun"), alone.joined():
        pass
