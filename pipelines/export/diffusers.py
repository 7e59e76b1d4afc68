"""An autoencoder as a folder that diffusers' class loads with `from_pretrained`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.pretrained.folder import CONFIG, WHOLE

if TYPE_CHECKING:
    from pipelines.models import SnapshotFolder

WEIGHTS = "autoencoder.safetensors"
OWN = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "sample_size", "force_upcast")
"""What foreign weights' own config says beside their shape; it stands where no data say otherwise."""


def write(snapshot: SnapshotFolder, out: Path, *, scaling: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Writes config.json and the weights, in the dtype they have, of an autoencoder's snapshot, or of the
    autoencoder in a model's. The scale of latents is that of the data a model was trained on, where the
    snapshot is a model's; gives what the config says.

    Args:
        scaling: fields of the config that say it otherwise.

    Raises:
        ValueError: `out` is in use, the snapshot has no autoencoder, or diffusers has none of its kind.
    """
    from safetensors.torch import load, save_file

    from diffusion.autoencoders.diffusers_format import settings_of, state_to
    from diffusion.latents import LatentStatistics
    from pipelines.models import autoencoder_config

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty; name a folder that is not there yet.")
    record = snapshot.record
    if WEIGHTS not in record.get("files", {}):
        raise ValueError(f"{snapshot.storage.url} is a snapshot without an autoencoder.")
    config, measured = autoencoder_config(record["autoencoder"]), record.get("statistics")
    statistics = LatentStatistics.from_json(measured) if measured else None
    settings = settings_of(config, statistics=statistics)
    if statistics is None:
        settings |= {name: value for name, value in _own(snapshot).items() if name in OWN}
    settings |= scaling or {}
    state = state_to(config, load(snapshot.read(WEIGHTS)))
    out.mkdir(parents=True, exist_ok=True)
    save_file(dict(sorted(state.items())), out / WHOLE, metadata={"format": "pt"})
    (out / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return settings


def _own(snapshot: SnapshotFolder) -> Mapping[str, Any]:
    """The config.json that adopted weights came with; empty for those that were trained here."""
    if "adopted" not in snapshot.manifest or not snapshot.storage.exists(CONFIG):
        return {}
    return json.loads(snapshot.storage.read(CONFIG))
