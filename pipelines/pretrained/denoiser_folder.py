"""A denoiser's folder in diffusers' format, alone or within its pipeline, judged and taken into a store."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage import Storage
from pipelines.pretrained.denoiser import LEFT_OUT, DiffusersNetwork
from pipelines.pretrained.folder import (
    CONFIG,
    HALF,
    INDEX,
    PART,
    PIPELINE,
    WHOLE,
    DiffusersFolder,
    settings,
    weights_in,
)
from pipelines.shards import canonical
from pipelines.stage import jsonable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipelines.models import SnapshotFolder

PARTS = ("transformer", "unet")
"""Where the denoiser of a whole pipeline lies."""
SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""Of an autoencoder's config.json: how its latents are scaled."""
SCHEDULER, SCHEDULING = "scheduler", "scheduler_config.json"
BESIDE = (f"{SCHEDULER}/{SCHEDULING}", f"{PART}/{CONFIG}", PIPELINE)
"""What of a pipeline is read beside the denoiser itself."""


@dataclass(frozen=True, kw_only=True)
class DenoiserFolder(DiffusersFolder):
    """A denoiser in diffusers' format, with what its pipeline says of its training."""

    network: DiffusersNetwork
    vae: Mapping[str, Any] = field(default_factory=dict)
    """config.json of its pipeline's autoencoder; empty where there is none."""

    @staticmethod
    def of(storage: Storage, name: str) -> DenoiserFolder:
        """The folder itself, or the `transformer` or `unet` folder of a pipeline.

        Raises:
            ValueError: it has no config or no weights that can be read, is of a class that is not supported,
                or does not say how it was trained; says what to do.
        """
        pipeline = storage
        if not storage.exists(CONFIG):
            part = next((part for part in PARTS if storage.exists(f"{part}/{CONFIG}")), None)
            if part is None:
                raise ValueError(
                    f"{name} has no {CONFIG}, and no {' or '.join(PARTS)}: name a pipeline's folder."
                )
            storage, name = storage.folder(part), f"{name}/{part}"
        else:
            pipeline = Storage.at(storage.url.rstrip("/").rpartition("/")[0] or "/")
        said = settings(storage.read(CONFIG), name)
        if "quantization_config" in said:
            raise ValueError(f"{name} is quantized, and is not read: name one with whole weights.")
        own = _read(storage, SCHEDULING)
        beside = {place: _read(pipeline, place) for place in BESIDE}
        try:
            network = DiffusersNetwork(
                settings=_kept(said),
                scheduler=_kept(own or beside[BESIDE[0]]),
                zeros=bool(beside[PIPELINE].get("force_zeros_for_empty_prompt")),
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        vae = {key: value for key, value in beside[BESIDE[1]].items() if key in ("_class_name", *SCALING)}
        return DenoiserFolder(
            storage=storage, name=name, files=weights_in(storage, name), network=network, vae=vae
        )

    def stamp(self) -> str | None:
        found = super().stamp()
        return found and hashlib.sha256(canonical([found, self._said()])).hexdigest()

    def digest(self) -> str:
        """sha256 over the weights and all that decides how they are used."""
        return hashlib.sha256(canonical([self._said(), *self.digests().values()])).hexdigest()

    def check(self) -> None:
        """Done by `of`."""

    def _said(self) -> Any:
        return ["denoiser", jsonable(self.network), dict(self.vae)]

    def commit(self, target: Storage) -> dict[str, Any]:
        """Writes config and weights, file by file as they are; gives the snapshot's record.

        Raises:
            ValueError: the weights are not those of the network that the config describes, or damaged.
        """
        import torch

        with torch.device("meta"):
            expected = self.network.module().state_dict()
        self._check({name: tuple(tensor.shape) for name, tensor in expected.items()})
        digests = self.digests()
        renamed = {HALF: WHOLE}
        for name in self.files:
            target.put_if_absent(renamed.get(name, name), self.storage.local(name))
        if len(self.files) > 1:
            shapes = {key: name for name in self.files for key, _ in _header(self.storage.local(name))}
            index = {"metadata": {}, "weight_map": dict(sorted(shapes.items()))}
            target.replace(INDEX, canonical(index))
        target.replace(CONFIG, canonical(self.network.settings))
        files = {renamed.get(name, name): digest for name, digest in digests.items()}
        for name in (CONFIG, INDEX):
            if target.exists(name):
                files[name] = hashlib.sha256(target.read(name)).hexdigest()
        return {
            "task": "pretrained",
            "class": self.network.name,
            "network": jsonable(self.network),
            "vae": dict(self.vae),
            "parameters": sum(tensor.numel() for tensor in expected.values()),
            "files": files,
        }

    def _check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        from safetensors import SafetensorError, safe_open

        from diffusion.autoencoders.diffusers_format import modern_name

        found: set[str] = set()
        for name in self.files:
            try:
                with safe_open(self.storage.local(name), "pt") as file:
                    for key in file.keys():  # noqa: SIM118
                        tensor = file.get_tensor(key)
                        self._fits(modern_name(key), key, tensor, expected, found)
            except (SafetensorError, OSError) as error:
                line = next(iter(str(error).splitlines()), "")
                raise ValueError(f"{self.name}/{name} is damaged ({line}): get it again.") from error
        if lacking := sorted(expected.keys() - found):
            raise ValueError(
                f"{self.name}: its weights are not those that its config names: {len(lacking)} missing "
                f"({lacking[0]})."
            )

    def _fits(
        self, name: str, key: str, tensor: Tensor, expected: Mapping[str, tuple[int, ...]], found: set[str]
    ) -> None:
        if name in found:
            raise ValueError(f"{self.name}: {key} is there twice: get it again.")
        if name not in expected:
            raise ValueError(
                f"{self.name}: its weights are not those that its config names: {key} is unknown."
            )
        shape = tuple(tensor.shape)
        # Convolutions of old attention layers are the linear ones of today.
        if shape != expected[name] and tensor.numel() != math.prod(expected[name]):
            named = list(expected[name])
            raise ValueError(f"{self.name}: {key} is {list(shape)}, and by its config {named}.")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{self.name}: {key} holds infinite numbers or none (NaN): get it again.")
        found.add(name)


def module_of(snapshot: SnapshotFolder, *, half: bool = False) -> nn.Module:
    """The module of an adopted denoiser on the CPU, in fp32.

    With `half` its matrices (`matrices`) are in bf16, and nothing of it was in fp32 on the way: autocast to
    bf16 rounds each of them before every product, so under it what comes out has the same bits.

    `ValueError` where a file was changed since, or diffusers is not installed.
    """
    import torch

    from pipelines.pretrained.denoiser import known_class

    made = known_class(network_of(snapshot.record).name).from_pretrained(
        snapshot.local(),
        torch_dtype=torch.bfloat16 if half else torch.float32,
        use_safetensors=True,
        local_files_only=True,
    )
    if half:
        exact = {**dict(made.named_parameters()), **dict(made.named_buffers())}
        exact = {name: tensor for name, tensor in exact.items() if name not in matrices(made)}
        for tensor in exact.values():
            if tensor.is_floating_point():
                tensor.data = tensor.data.float()
        for name, tensor in stored(snapshot, only=exact.keys()):
            exact[name].data.copy_(tensor.view_as(exact[name]))
    return made


def matrices(module: nn.Module) -> set[str]:
    """Names of the weights that autocast rounds before it multiplies with them: of linear layers and
    convolutions."""
    from torch import nn

    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, layers)}


def stored(snapshot: SnapshotFolder, *, only: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """The weights of an adopted denoiser as its files have them, one at a time, by diffusers' names of today.

    Args:
        only: names; all if None.
    """
    from safetensors import safe_open

    from diffusion.autoencoders.diffusers_format import modern_name

    folder = snapshot.local()
    for file in sorted(snapshot.record["files"]):
        if not file.endswith(".safetensors"):
            continue
        with safe_open(folder / file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                name = modern_name(key)
                if only is None or name in only:
                    yield name, opened.get_tensor(key)


def network_of(record: Mapping[str, Any], **fields: Any) -> DiffusersNetwork:
    """The network that a snapshot's record names, with some fields set anew."""
    said = {k: v for k, v in record["network"].items() if k in DiffusersNetwork.__dataclass_fields__}
    return dataclasses.replace(DiffusersNetwork(**said), **fields)


def _kept(said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name not in LEFT_OUT}


def _read(storage: Storage, name: str) -> dict[str, Any]:
    """A JSON file's mapping; an empty one where there is none."""
    with suppress(FileNotFoundError, ValueError):
        found = json.loads(storage.read(name)) if storage.exists(name) else {}
        return found if isinstance(found, dict) else {}
    return {}


def _header(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118
            yield key, tuple(file.get_slice(key).get_shape())
