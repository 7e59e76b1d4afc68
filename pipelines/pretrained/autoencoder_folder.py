"""An autoencoder's folder in diffusers' format, alone or in its pipeline, judged and taken into a store."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage import Storage
from pipelines import weights
from pipelines.pretrained.folder import CONFIG, PART, PIPELINE, DiffusersFolder, weights_in
from pipelines.stage import jsonable

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion.config import AutoencoderConfig

WEIGHTS = "autoencoder.safetensors"
RESOLUTION = 512
"""px, where the config states none (AutoencoderTiny, AutoencoderDC): what those that are known were made for.
It only says with which side costs are reckoned, until there are images."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderFolder(DiffusersFolder):
    """An autoencoder in diffusers' format."""

    @staticmethod
    def of(storage: Storage, name: str) -> AutoencoderFolder:
        """The folder itself, or the `vae` folder of a pipeline.

        Raises:
            ValueError: it has no config or no weights that can be read; says what to do.
        """
        if storage.exists(PIPELINE) and not storage.exists(CONFIG):
            storage, name = storage.folder(PART), f"{name}/{PART}"
        if not storage.exists(CONFIG):
            raise ValueError(f"{name} has no {CONFIG}: name a folder that diffusers' save_pretrained wrote.")
        return AutoencoderFolder(storage=storage, name=name, files=weights_in(storage, name))

    def config(self) -> AutoencoderConfig:
        """Ours; `ValueError` for another class of model, or one whose settings are not supported."""
        return config(self.settings, self.name)

    def resolution(self, factor: int) -> int:
        """Side of the images that it was trained on, px."""
        side: Any = self.settings.get("sample_size")
        side = side[0] if isinstance(side, list) and side else side
        known = isinstance(side, int) and not isinstance(side, bool) and side >= factor
        return int(side) if known and side % factor == 0 else RESOLUTION

    def check(self) -> None:
        self.config()

    def commit(self, target: Storage) -> dict[str, Any]:
        """As ours, in the dtype that the weights have."""
        record = self.weights_to(target)
        target.put_if_absent(CONFIG, self.storage.read(CONFIG))
        return {"task": "autoencoder", "class": str(self.settings.get("_class_name")), **record}

    def weights_to(self, target: Storage) -> dict[str, Any]:
        """Writes the weights alone; gives what the record of any snapshot with them says of them."""
        from diffusion.autoencoders.diffusers_format import state_from

        config = self.config()
        try:
            state = dict(state_from(config, self.tensors()))
        except KeyError as error:
            raise ValueError(f"{self.name}: its weights lack {error.args[0]}: get it again.") from error
        _check(config, state, self.name)
        return {
            "autoencoder": jsonable(config),
            "resolution": self.resolution(config.factor),
            "parameters": sum(tensor.numel() for tensor in state.values()),
            "files": {WEIGHTS: _write(state, target)},
        }


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


def _check(config: AutoencoderConfig, state: Mapping[str, Tensor], name: str) -> None:
    """`ValueError` where the weights are not those of the network that the config describes."""
    import torch

    with torch.device("meta"):
        expected = config.build().state_dict()
    lacking, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if lacking or unknown:
        both = ((lacking, "missing"), (unknown, "unknown"))
        told = [f"{len(names)} {word} ({names[0]})" for names, word in both if names]
        raise ValueError(f"{name}: its weights are not those that its config names: {', '.join(told)}.")
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise ValueError(
                f"{name}: {key} is {list(state[key].shape)}, and by its config {list(tensor.shape)}."
            )
        if state[key].is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{name}: {key} is {state[key].dtype}, and by its config {tensor.dtype}.")


def _write(state: Mapping[str, Tensor], target: Storage) -> str:
    """Commits the weights without their file's metadata, which nobody vouches for; gives their sha256."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix="latentmill-", ignore_cleanup_errors=True) as scratch:
        path = Path(scratch, WEIGHTS)
        save_file({key: state[key].contiguous() for key in sorted(state)}, path)
        sha256 = weights.file_digest(path)
        # A driver killed before its manifest has left the same bytes, or those of another safetensors.
        if not target.put_if_absent(WEIGHTS, path) and weights.file_digest(target.local(WEIGHTS)) != sha256:
            target.replace(WEIGHTS, path.read_bytes())
    return sha256
