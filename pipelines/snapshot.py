"""A finished training's folder: its record, its weights, and what is made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage import Storage
from pipelines.dataset import read_manifest
from pipelines.shards import canonical

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion.autoencoders.autoencoder import Autoencoder

MEANING = (
    "task",
    "resolution",
    "autoencoder",
    "network",
    "statistics",
    "latent_shape",
    "classes",
    "caption",
    "text",
    "files",
)
"""Fields of a snapshot's record that decide what it draws."""
SPECIAL = ("upscaling", "objective", "sizes")
"""More of them, of an upscaler, and of one that was trained on several sizes."""


@dataclass(frozen=True, eq=False)
class SnapshotFolder:
    """A finished training's weights and what is needed to use them."""

    storage: Storage
    manifest: dict[str, Any]

    @staticmethod
    def open(storage: Storage) -> SnapshotFolder:
        """`ValueError` if the folder holds no finished snapshot, or one that was changed since."""
        manifest = read_manifest(storage)
        if manifest.get("kind") != "snapshot":
            raise ValueError(f"{storage.url} is a {manifest.get('kind')}, not a snapshot.")
        return SnapshotFolder(storage, manifest)

    @property
    def record(self) -> dict[str, Any]:
        """What the training said of it."""
        return self.manifest["snapshot"]

    @property
    def classes(self) -> list[str]:
        return list(self.record.get("classes") or ())

    def digest(self, columns: Sequence[str] = ()) -> str:
        """Of the weights and of how they are used; never of paths, times or how they were trained."""
        deciding = {name: self.record.get(name) for name in MEANING}
        deciding |= {name: self.record[name] for name in SPECIAL if name in self.record}
        return hashlib.sha256(canonical(deciding)).hexdigest()

    def read(self, name: str) -> bytes:
        """A file of the snapshot. `ValueError` if it is missing or not the one that was written."""
        try:
            data = self.storage.read(name)
        except FileNotFoundError as error:
            raise ValueError(
                f"{self.storage.url} lacks {name}: copy the whole folder, or train again."
            ) from error
        if hashlib.sha256(data).hexdigest() != self.record["files"].get(name):
            raise ValueError(
                f"{self.storage.url}/{name} has other bytes than were written; get the snapshot again."
            )
        return data

    def local(self) -> Path:
        """A folder of this machine with the snapshot's files, for libraries that read folders: its own, or a
        copy of what lies in a bucket. `ValueError` as for `read`."""
        from pipelines import weights
        from pipelines.places import at_hand

        folder = at_hand(self.storage.url)
        for name, digest in self.record["files"].items():
            if not (folder / name).is_file() or weights.file_digest(folder / name) != digest:
                raise ValueError(
                    f"{folder / name} has other bytes than were written; get the snapshot again."
                )
        return folder

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Weights of a file, in fp32."""
        from safetensors.torch import load

        return {key: t.float() if t.is_floating_point() else t for key, t in load(self.read(name)).items()}

    def text(self) -> dict[str, Any]:
        """What it says of its text encoders, with the folders of those that lie within it."""
        told = dict(self.record.get("text") or {})
        encoders = [dict(one) for one in told.get("encoders") or [told]]
        for one in encoders:
            if f"{one.get('path')}/config.json" in self.record["files"]:
                here = self.local()
                one |= {name: str(here / one[name]) for name in ("path", "tokenizer")}
        return {**told, "encoders": encoders} if told.get("encoders") else encoders[0]

    def autoencoder(self) -> Autoencoder:
        """On the CPU, in evaluation mode."""
        autoencoder = autoencoder_config(self.record["autoencoder"]).build()
        autoencoder.load_state_dict(self.tensors("autoencoder.safetensors"))
        return autoencoder.eval()


def autoencoder_config(record: dict[str, Any]) -> Any:
    from diffusion.config import AutoencoderConfig

    return _config(AutoencoderConfig, record)


def network_config(record: dict[str, Any]) -> Any:
    from diffusion.config import NetworkConfig

    if record.get("kind") != "diffusers":
        return _config(NetworkConfig, record)
    from pipelines.pretrained.denoiser_folder import network_of

    return network_of({"network": record})


def sampler_config(record: dict[str, Any]) -> Any:
    from diffusion.config import SamplerConfig

    return _config(SamplerConfig, record)


def guidance_config(record: dict[str, Any]) -> Any:
    from diffusion.config import GuidanceConfig

    return _config(GuidanceConfig, record)


def _config(kind: Any, record: dict[str, Any]) -> Any:
    """The config dataclass that a manifest's JSON stands for."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(record)
    except ValidationError as error:
        raise ValueError(
            f"This version does not know the configuration {record}: {error.errors()[0]['msg']}."
        ) from error
