"""Pipelines with several text encoders, trained here and drawn with by diffusers from prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.storage import Storage
from diffusion import randomness
from diffusion.config import EulerConfig
from pipelines import embedders, models
from pipelines.arrays import to_npy
from pipelines.embedders.embedding import caption_digest
from pipelines.export.pipeline import write
from pipelines.models import SnapshotFolder
from pipelines.pretrained.adoption import adopted
from pipelines.pretrained.denoiser_folder import network_of
from pipelines.pretrained.text_encoders import called_so
from pipelines.shards import canonical
from tests.pipelines import tiny
from tests.pipelines.pretrained.pretrained_line import latents, train
from tests.pipelines.pretrained.tiny_pipelines import drawn, pipeline

torch.set_num_threads(1)
STEPS, SEED = 3, 3
PROMPTS = ["a red fox", "snow"]
SHIFTS = {"sd3": 3.0}


def line(shape: str, folder: Path) -> dict[str, Any]:
    """The inputs of a train stage that begins with a whole pipeline, captions by its own encoders."""
    pipeline(shape, folder)
    store, made = Storage.at(folder / "store"), dict[str, Any]()
    for name in ("autoencoder", "denoiser", "pipeline"):
        found = adopted(str(folder / "sd"), store, part=name, fetch=lambda done, of: None)
        assert found is not None
        made[name] = SnapshotFolder.open(found)
    record = made.pop("pipeline").text()
    encoder = embedders.load_text(record)
    known = dict(zip(PROMPTS, encoder.encode(PROMPTS), strict=True))

    def members(key: str, n: int) -> dict[str, bytes]:
        return {"text.json": canonical([{"digest": caption_digest(PROMPTS[n % 2]), "weight": 1.0}])}

    def shared(key: str, n: int) -> dict[str, bytes]:
        one, digest = known[PROMPTS[n % 2]], caption_digest(PROMPTS[n % 2])
        parts = {f"{digest}.text.{n}.npy": to_npy(part) for n, part in enumerate(one.parts)}
        states = parts or {f"{digest}.text.npy": to_npy(one.states)}
        return {**states, f"{digest}.pooled.npy": to_npy(one.pooled)}

    made["text"] = tiny.dataset(folder / "text", members, shared=shared, statistics={"text": record})
    made["latents"] = latents(folder / "latents", made["autoencoder"])
    return made


@pytest.mark.parametrize(
    "shape", ["sdxl", *(pytest.param(s, marks=pytest.mark.slow) for s in ("sd3", "flux"))]
)
def test_what_is_exported_draws_the_same_of_prompts(shape: str, tmp_path: Path):
    import diffusers

    stage = train(shape, images_seen=16, validate_every=16, samples_every=16)
    snapshot = tiny.run(stage, tiny.session(tmp_path, line(shape, tmp_path)))
    made = write(snapshot, tmp_path / "out")
    assert made.lacking == ()
    loaded: Any = getattr(diffusers, made.pipeline).from_pretrained(tmp_path / "out")
    loaded.set_progress_bar_config(disable=True)

    generator = models.load(tmp_path / "output", device="cpu")
    _, sigma = generator.model.denoiser.schedule.at(1.0)
    noise = sigma * randomness.normal(SEED, np.arange(2), generator.model.shape, "generate")
    scale = 1.0 if shape == "flux" else 3.0
    # FLUX is told its guidance; a tiny picture has its times shifted by little.
    theirs = drawn(loaded, shape, noise, STEPS, 3.5 if shape == "flux" else scale, prompt=PROMPTS)
    sampler = EulerConfig(steps=STEPS, shift=_shift(shape))
    ours = generator.generate(PROMPTS, seed=SEED, sampler=sampler, guidance=scale, micro_batch=2)
    got = np.stack([np.asarray(image) for image in ours]).astype(np.float32)
    assert np.abs(got - theirs * 255).max() <= 0.5 + 2e-3 * 255
    assert np.abs(theirs[0] - theirs[1]).max() > 0.05


def _shift(shape: str) -> float:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    return float(np.exp(calculate_shift(16))) if shape == "flux" else SHIFTS.get(shape, 1.0)


def test_encoders_that_were_called_otherwise_are_told(tmp_path: Path):
    pipeline("sdxl", tmp_path)
    folder = models.find(tmp_path / "sd", store=tmp_path / "store")
    network, text = network_of(folder.record), folder.text()
    assert called_so(network, text)
    first, second = text["encoders"]
    for changed in (
        {"join": "tokens"},
        {"encoders": [first]},
        {"encoders": [first, {**second, "layer": -1}]},
        {"encoders": [{**first, "padded": False}, second]},
        {"encoders": [first, {**second, "pooled": "mean"}]},
    ):
        assert not called_so(network, {**text, **changed})
    with pytest.raises(ValueError, match="came as a pipeline of diffusers"):
        write(folder, tmp_path / "out")
