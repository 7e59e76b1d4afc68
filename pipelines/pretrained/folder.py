"""A folder in diffusers' format: its config.json and safetensors, judged before anything is made of them."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cluster.storage import LocalStorage, Storage
from pipelines import weights
from pipelines.shards import canonical

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion.config import AutoencoderConfig

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
RESOLUTION = 512
"""px, where the config states none (AutoencoderTiny, AutoencoderDC): what those that are known were made for.
It only says with which side costs are reckoned, until there are images."""


@dataclass(frozen=True, kw_only=True)
class DiffusersFolder:
    """An autoencoder in diffusers' format."""

    storage: Storage
    name: str
    """As the user knows it."""
    files: tuple[str, ...]
    """Of the weights, in order of their names; without those of a variant, where there are others."""
    whole: ClassVar[bool] = False
    """Whether its files are taken as they are, by `commit`."""

    def commit(self, target: Storage) -> dict[str, Any]:
        """Writes the files into a folder of the store; gives the record of the snapshot that they are."""
        raise NotImplementedError

    @staticmethod
    def there(storage: Storage) -> bool:
        """Whether it looks like one, or like a pipeline."""
        return storage.exists(CONFIG) or storage.exists(PIPELINE)

    @staticmethod
    def of(storage: Storage, name: str) -> DiffusersFolder:
        """The folder itself, or the `vae` folder of a pipeline.

        Raises:
            ValueError: it has no config or no weights that can be read; says what to do.
        """
        if storage.exists(PIPELINE) and not storage.exists(CONFIG):
            storage, name = storage.folder(PART), f"{name}/{PART}"
        if not storage.exists(CONFIG):
            raise ValueError(f"{name} has no {CONFIG}: name a folder that diffusers' save_pretrained wrote.")
        return DiffusersFolder(storage=storage, name=name, files=weights_in(storage, name))

    @property
    def settings(self) -> dict[str, Any]:
        """config.json; `ValueError` if it is none."""
        return settings(self.storage.read(CONFIG), self.name)

    def config(self) -> AutoencoderConfig:
        """Ours; `ValueError` for another class of model, or one whose settings are not supported."""
        return config(self.settings, self.name)

    def stamp(self) -> str | None:
        """Changes when a file does, without reading any; None where one changed so lately that another change
        might not show in its times."""
        names = (CONFIG, *self.files)
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

    def resolution(self, factor: int) -> int:
        """Side of the images that it was trained on, px."""
        side: Any = self.settings.get("sample_size")
        side = side[0] if isinstance(side, list) and side else side
        known = isinstance(side, int) and not isinstance(side, bool) and side >= factor
        return int(side) if known and side % factor == 0 else RESOLUTION

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


def config(settings: Mapping[str, Any], name: str) -> AutoencoderConfig:
    from diffusion.autoencoders.diffusers_format import config_of

    try:
        return config_of(settings)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except (TypeError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"{name}/{CONFIG} has values of other kinds than diffusers writes ({error})."
        ) from error


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
