"""A folder in diffusers' format: its config.json and safetensors, judged before anything is made of them."""

from __future__ import annotations

import hashlib
import json
import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage import LocalStorage, Storage
from pipelines import weights
from pipelines.shards import canonical

if TYPE_CHECKING:
    from torch import Tensor


CONFIG, PIPELINE = "config.json", "model_index.json"
PART = "vae"
"""Where the autoencoder of a whole pipeline lies."""
WHOLE = "diffusion_pytorch_model.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
HALF = "diffusion_pytorch_model.fp16.safetensors"
HALF_INDEX = "diffusion_pytorch_model.safetensors.index.fp16.json"
SHARD = re.compile(r"[A-Za-z0-9_][\w.-]*\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
FRESH = 2.0
"""Seconds; some file systems tell times no finer."""


@dataclass(frozen=True, kw_only=True)
class DiffusersFolder(ABC):
    """A model in diffusers' format: its config, and its weights."""

    storage: Storage
    name: str
    """As the user knows it."""
    files: tuple[str, ...]
    """Of the weights, in order of their names; without those of a variant, where there are others."""

    @abstractmethod
    def check(self) -> None:
        """`ValueError` where it can be seen without its weights that it is of no use here."""

    @abstractmethod
    def commit(self, target: Storage) -> dict[str, Any]:
        """Writes what is needed of it into a folder of the store; gives the record of the snapshot that this
        is.

        Raises:
            ValueError: the weights are not those of the network that the config describes, or damaged.
        """

    @staticmethod
    def there(storage: Storage) -> bool:
        """Whether it looks like one, or like a pipeline."""
        return storage.exists(CONFIG) or storage.exists(PIPELINE)

    @property
    def settings(self) -> dict[str, Any]:
        """config.json; `ValueError` if it is none."""
        return settings(self.storage.read(CONFIG), self.name)

    @property
    def read(self) -> tuple[str, ...]:
        """All files that decide what it is."""
        return (CONFIG, *self.files)

    def stamp(self) -> str | None:
        """Changes when a file does, without reading any; None where one changed so lately that another change
        might not show in its times."""
        names = self.read
        if not isinstance(self.storage, LocalStorage):
            found = self.storage.files()
            return _sha256([[name, *found.get(name, ())] for name in names])
        states = [self.storage.local(name).stat() for name in names]
        if max(state.st_ctime for state in states) > time.time() - FRESH:
            return None
        return _sha256([[s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev] for s in states])

    def digest(self) -> str:
        """sha256 over config and weights, whatever their files are called."""
        config_digest = hashlib.sha256(canonical(self.settings)).hexdigest()
        return _sha256([config_digest, *self.digests().values()])

    def digests(self) -> dict[str, str]:
        """sha256 of each file of weights; each is read once a process while it stands still."""
        return {name: weights.file_digest(self.storage.local(name)) for name in self.files}

    def tensors(self) -> dict[str, Tensor]:
        """All weights, in the dtype they have. `ValueError` for damaged files, or numbers that are none."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        found: dict[str, Tensor] = {}
        for name in self.files:
            try:
                part = load_file(self.storage.local(name))
            except (SafetensorError, OSError) as error:
                line = next(iter(str(error).splitlines()), "")
                raise ValueError(f"{self.name}/{name} is damaged ({line}): get it again.") from error
            if twice := found.keys() & part.keys():
                raise ValueError(f"{self.name}: {min(twice)} is in two of its files: get it again.")
            found |= part
        for key, tensor in found.items():
            if not tensor.isfinite().all():
                raise ValueError(f"{self.name}: {key} holds infinite numbers or none (NaN): get it again.")
        return found


def settings(data: bytes, name: str) -> dict[str, Any]:
    """A config.json's mapping; `ValueError` if it holds none."""
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{name}/{CONFIG} is no JSON: get it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name}/{CONFIG} is no config of a model: get it again.")
    return found


def shards(data: bytes, name: str) -> tuple[str, ...]:
    """The files that an index names; `ValueError` where it names any that are not beside it."""
    try:
        found = sorted(set(json.loads(data)["weight_map"].values()))
        plain = all(SHARD.fullmatch(file) for file in found)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{name}/{INDEX} is damaged: get it again.") from error
    if not found or not plain:
        raise ValueError(f"{name}/{INDEX} names files that are not safetensors beside it: get it again.")
    return tuple(found)


def weights_in(storage: Storage, name: str) -> tuple[str, ...]:
    """The files of a folder's weights, without those of a variant where there are others. `ValueError` where
    there are none, or pickles alone."""
    for whole, index in ((WHOLE, INDEX), (HALF, HALF_INDEX)):
        if storage.exists(whole):
            return (whole,)
        if storage.exists(index):
            files = shards(storage.read(index), name)
            for file in files:
                if not storage.exists(file):
                    raise ValueError(f"{name} lacks {file}, which {index} names: get it again.")
            return files
    pickle = next((file for file in storage.list() if Path(file).suffix in PICKLES and "/" not in file), None)
    if pickle:
        raise ValueError(
            f"{name} has its weights in {pickle}, a pickle, which can run code and is not read: convert it "
            "where you trust it, by diffusers' from_pretrained(IN).save_pretrained(OUT)."
        )
    raise ValueError(f"{name} has no {WHOLE}.")


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()
