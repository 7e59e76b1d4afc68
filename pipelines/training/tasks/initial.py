"""A denoiser's training that begins with another's weights: those of a smaller resolution, say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffusion.config import DiTConfig, NetworkConfig

if TYPE_CHECKING:
    from torch import nn

    from pipelines.models import SnapshotFolder

WEIGHTS = "denoiser.safetensors"
FREE = ("route", "frame")
"""Fields of a network in which two of the same weights may differ."""


def carried(network: NetworkConfig, initial: SnapshotFolder, *, name: str) -> NetworkConfig:
    """`network` with the frame that `initial`, an input called `name`, counts its positions in: at any size a
    corner is where it was.

    `ValueError` where `initial` is no denoiser, or one of another network.
    """
    from pipelines.models import network_config

    record = initial.record
    if record.get("task") != "denoiser" or "network" not in record:
        raise ValueError(f"{name} holds no denoiser: name a train stage as `initial`.")
    theirs = network_config(record["network"])
    if words := differing(network, theirs, name=name):
        raise ValueError(words)
    if not isinstance(network, DiTConfig) or network.frame is not None:
        return network
    assert isinstance(theirs, DiTConfig)
    told = record.get("upscaling")
    side = told["size"] if told else record["latent_shape"][1]
    return replace(network, frame=theirs.frame or side // theirs.patch)


def differing(network: NetworkConfig, theirs: NetworkConfig, *, name: str) -> str:
    """In which fields weights of `theirs`, the network of an input called `name`, are none of `network`'s; ""
    where they are."""
    if theirs.kind != network.kind:
        return (
            f"{name} is a network of kind {theirs.kind} and this one is {network.kind}: give `network` "
            f"the kind and the fields of {name}'s."
        )
    fields = [
        f"{field.name} {_said(getattr(theirs, field.name))} (here {_said(getattr(network, field.name))})"
        for field in dataclasses.fields(network)
        if field.name not in FREE and getattr(theirs, field.name) != getattr(network, field.name)
    ]
    return f"{name} has a network of {', '.join(fields)}: `network` must be the same." if fields else ""


def begin(
    module: nn.Module,
    initial: SnapshotFolder,
    *,
    name: str,
    channels: int,
    classes: Sequence[str],
    text_width: int | None,
    pooled_width: int | None,
    upscales: bool,
) -> None:
    """Puts the weights of `initial` into a new network, of which the other arguments tell what is around it.

    `ValueError` where it was trained on something else: other channels, classes, texts, or a small image.
    """
    record = initial.record
    text = record.get("text") or {}
    if record["latent_shape"][0] != channels:
        raise ValueError(
            f"{name} was trained on latents of {record['latent_shape'][0]} channels, and these have "
            f"{channels}: encode with the autoencoder that it was trained with."
        )
    if initial.classes != list(classes):
        raise ValueError(
            f"{name} knows {_listed(initial.classes)}, and `images` has {_listed(classes)}: "
            "they must be the same, in the same order."
        )
    widths = {"states": (text.get("width"), text_width), "pooled states": (_pooled(text), pooled_width)}
    for word, (theirs, mine) in widths.items():
        if (theirs or 0) != (mine or 0):
            raise ValueError(
                f"{name} was trained with {_wide(word, theirs)}, and this training has {_wide(word, mine)}: "
                "embed with the encoder that it was trained with."
            )
    if ("upscaling" in record) != upscales:
        which = ("an upscaler", "none") if "upscaling" in record else ("no upscaler", "one")
        raise ValueError(f"{name} is {which[0]}, and this training makes {which[1]}: name another `initial`.")
    tensors, wanted = initial.tensors(WEIGHTS), module.state_dict()
    odd = sorted(
        key
        for key in tensors.keys() | wanted.keys()
        if key not in tensors or key not in wanted or tensors[key].shape != wanted[key].shape
    )
    if odd:
        raise ValueError(f"The weights of {name} are not of this network's shape: {', '.join(odd[:3])}.")
    module.load_state_dict(tensors)


def _pooled(text: dict[str, Any]) -> int | None:
    return text.get("pooled_width") or text.get("width")


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _listed(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return f"{len(classes)} classes ({shown})" if classes else "no classes"


def _wide(word: str, width: int | None) -> str:
    return f"text {word} of width {width}" if width else f"no text {word}"
