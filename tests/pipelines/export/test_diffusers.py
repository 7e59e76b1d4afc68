"""Autoencoders written for diffusers: its class loads them, and encodes and decodes the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from cluster.storage import Storage
from pipelines.__main__ import main
from pipelines.dataset import write_manifest
from pipelines.export.diffusers import write
from pipelines.models import SnapshotFolder
from pipelines.pretrained.adoption import adopted
from pipelines.stage import jsonable
from tests.pipelines import tiny
from tests.pipelines.pretrained import foreign

torch.set_num_threads(1)


def taken(folder: Path, store: Path) -> SnapshotFolder:
    place = adopted(str(folder), Storage.at(store), fetch=lambda done, of: None)
    assert place is not None
    return SnapshotFolder.open(place)


@pytest.mark.parametrize("name", foreign.SETTINGS)
def test_diffusers_loads_what_is_written_and_encodes_the_same(name: str, tmp_path: Path) -> None:
    import diffusers

    settings: dict[str, Any] = {} if name == "AutoencoderTiny" else {"scaling_factor": 0.36}
    theirs = foreign.model(name, **settings)
    snapshot = taken(foreign.save(theirs, tmp_path / "vae"), tmp_path / "store")
    write(snapshot, tmp_path / "out")
    again = getattr(diffusers, name).from_pretrained(tmp_path / "out").eval()
    images = torch.randn(2, 3, 32, 16).clamp(-1, 1)
    wanted = foreign.moments(theirs, images)
    torch.testing.assert_close(foreign.moments(again, images), wanted, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        latents = torch.randn_like(wanted[:, :4])
        torch.testing.assert_close(
            again.decode(latents).sample, theirs.decode(latents).sample, atol=1e-5, rtol=1e-5
        )
    assert again.config["scaling_factor"] == theirs.config["scaling_factor"]
    assert taken(tmp_path / "out", tmp_path / "store").record["files"] == snapshot.record["files"]


def test_half_precision_stays_and_a_models_latents_give_the_scale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = taken(foreign.save(foreign.model().half(), tmp_path / "vae"), tmp_path / "store")
    record = {**snapshot.record, "task": "denoiser"}
    record["statistics"] = {"mean": [0.0] * 4, "std": [4.0] * 4}
    model = Storage.at(tmp_path / "model")
    model.replace("autoencoder.safetensors", snapshot.read("autoencoder.safetensors"))
    write_manifest(model, {"snapshot": record}, kind="snapshot")
    assert main(["export", model.url, str(tmp_path / "out"), "--form", "diffusers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["scaling_factor"] == pytest.approx(0.25)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["scaling_factor"] == pytest.approx(0.25)
    tensors = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_what_diffusers_has_not_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = tiny.autoencoder(tmp_path / "ours")
    assert main(["export", ours.storage.url, str(tmp_path / "out"), "--form", "diffusers"]) != 0
    line = capsys.readouterr().err.strip()
    assert "diffusers has no autoencoder of kind kl" in line
    assert "\n" not in line
    assert not (tmp_path / "out").exists()

    from diffusion.config import IdentityAutoencoderConfig

    pixels, data = Storage.at(tmp_path / "pixels"), save({})
    pixels.replace("autoencoder.safetensors", data)
    record = {"task": "autoencoder", "autoencoder": jsonable(IdentityAutoencoderConfig()), "resolution": 8,
              "files": {"autoencoder.safetensors": hashlib.sha256(data).hexdigest()}}  # fmt: skip
    write_manifest(pixels, {"snapshot": record}, kind="snapshot")
    with pytest.raises(ValueError, match="diffusers has no autoencoder of kind identity"):
        write(SnapshotFolder.open(pixels), tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ValueError, match="is not empty"):
        write(ours, tmp_path / "used")
    images = tiny.images(tmp_path / "images")
    with pytest.raises(ValueError, match="not a snapshot"):
        SnapshotFolder.open(images.storage)
