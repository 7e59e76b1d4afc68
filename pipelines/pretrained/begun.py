"""The pretrained denoiser that a training begins with: weights, adapters, and the scale of its latents."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.dataset import Dataset
from pipelines.pretrained.config import DiffusersConfig, LoRAConfig
from pipelines.pretrained.denoiser import FLOWS, DiffusersNetwork
from pipelines.pretrained.denoiser_folder import module_of, network_of, stored
from pipelines.pretrained.folder import CONFIG

if TYPE_CHECKING:
    from torch import Tensor, nn

    from diffusion.networks.foreign import Foreign
    from pipelines.models import SnapshotFolder

PIXELS = "identity"
"""Kind of the autoencoder whose latents are the pixels."""


@dataclass(frozen=True, kw_only=True)
class Begun(DiffusersNetwork):
    """A network that is built with the weights of an adopted one.

    Learned variances (DiT's second half of channels) are not trained: the loss is that of what is predicted,
    and no sampler here, nor DDIM, asks for them. Their rows of the last layer are in the snapshot as they
    were, so that DDPM in diffusers has what it asks for; where more than adapters are trained, they read
    what nobody taught them to.
    """

    snapshot: SnapshotFolder = field(metadata={"execution": True})
    lora: LoRAConfig | None = field(default=None, metadata={"execution": True})
    half: bool = field(default=False, metadata={"execution": True})
    """Whether weights that adapters leave as they are may be in bf16, as all arithmetic with them is."""

    def module(self) -> nn.Module:
        made = module_of(self.snapshot, half=self._halved)
        if self.lora is None:
            return made.requires_grad_(True)
        from pipelines.pretrained.lora import inject

        return inject(made, self.lora)

    def around(self, module: nn.Module, *, classes: int = 0) -> Foreign:
        import torch

        made = super().around(module, classes=classes)
        made.arithmetic = torch.bfloat16 if self._halved else None
        return made

    def weights(self, module: Any) -> dict[str, Tensor]:
        """Of the snapshot: by diffusers' names, adapters merged into weights that nothing has rounded."""
        from pipelines.pretrained.lora import merged

        state = merged(module.model, stored(self.snapshot) if self._halved else None)
        if self.variances is not None:
            layer, rows = self.variances
            # They have no gradient, but weight decay has shrunk them.
            for name, before in stored(self.snapshot, only={f"{layer}.weight", f"{layer}.bias"}):
                state[name] = state[name].detach().clone()
                state[name][rows] = before[rows].to(state[name])
        return state

    @property
    def _halved(self) -> bool:
        return self.half and self.lora is not None

    def adapters(self, module: Any) -> dict[str, dict[str, Tensor]]:
        """In a file as diffusers reads it; none where all weights are trained."""
        from pipelines.pretrained.lora import FILE, alone

        if self.lora is None:
            return {}
        return {FILE: alone(module.model, part="transformer" if self.transformer else "unet")}


def begun(config: DiffusersConfig, inputs: Mapping[str, Any], *, null: str, half: bool = False) -> Begun:
    """What a training's inputs and its `denoiser` stand for.

    Args:
        half: whether its arithmetic is bf16's.

    Raises:
        ValueError: its captions are not those that the denoiser reads; says which are.
    """
    snapshot: SnapshotFolder = inputs["denoiser"]
    text = inputs.get("text")
    record = text.manifest["statistics"]["text"] if text is not None else None
    network = network_of(snapshot.record)
    tokens = None
    if record is not None:
        tokens = _tokens(record, network)
        if null != "encoded" and not network.zeros:
            raise ValueError(
                f"{network.name} was trained to see the empty caption where there is none: set "
                "`null: encoded` here, and `empty: true` in the embed stage."
            )
    factor = _factor(inputs["latents"].manifest["statistics"])
    said = {f.name: getattr(network, f.name) for f in dataclasses.fields(network)}
    said |= {"tokens": tokens, "factor": factor, "guidance": config.guidance}
    return Begun(**said, snapshot=snapshot, lora=config.lora, half=half)


def scaled(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a training, with latents scaled as the denoiser knows them, not to unit variance.

    `ValueError` where nothing says how its autoencoder scales them.
    """
    denoiser, autoencoder, latents = inputs["denoiser"], inputs["autoencoder"], inputs["latents"]
    vae = _vae(denoiser, autoencoder)
    statistics = dict(latents.manifest["statistics"])
    scale = network_of(denoiser.record).statistics(vae, statistics["shape"][0]).to_json()
    statistics["latents"] = scale
    statistics["resolutions"] = {
        name: {**said, "latents": scale} for name, said in statistics.get("resolutions", {}).items()
    }
    manifest = {**latents.manifest, "statistics": statistics}
    return {**inputs, "latents": Dataset(latents.storage, manifest)}


def _vae(denoiser: SnapshotFolder, autoencoder: SnapshotFolder) -> Mapping[str, Any]:
    """What is said of the scale of latents, by the denoiser's own pipeline or by the autoencoder's."""
    if denoiser.record.get("vae"):
        return denoiser.record["vae"]
    if "adopted" in autoencoder.manifest and autoencoder.storage.exists(CONFIG):
        return json.loads(autoencoder.storage.read(CONFIG))
    if autoencoder.record["autoencoder"]["kind"] == PIXELS:
        return {}
    raise ValueError(
        f"Nothing says how {network_of(denoiser.record).name} expects its latents to be scaled: name its "
        "whole pipeline as `denoiser.path`, whose vae says so."
    )


def _tokens(record: Mapping[str, Any], network: DiffusersNetwork) -> int | None:
    """Of every caption; None where they differ, and a mask says so. `ValueError` where that cannot be."""
    encoders = record.get("encoders") or [record]
    if not all(encoder.get("padded") for encoder in encoders):
        if network.name in FLOWS:
            raise ValueError(
                f"{network.name} takes captions of one length alone: set `padded: true` in each encoder of "
                "the embed stage."
            )
        return None
    if "empty" in record:
        from pipelines.embedders.storing import empty

        return len(empty(record).states)
    return int(record["longest"])


def _factor(statistics: Mapping[str, Any]) -> int:
    return int(statistics["resolution"]) // int(statistics["shape"][-1])
