"""How diffusers' pipelines call their text encoders, by our configs of the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.pretrained.denoiser import FLUX, SD3, UNET, DiffusersNetwork

if TYPE_CHECKING:
    from pipelines.embedders import TextEmbedderConfig

CLIP, PROJECTED, T5 = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"
SDXL = "SDXL"
READ = {UNET: (CLIP,), SDXL: (CLIP, PROJECTED), SD3: (PROJECTED, PROJECTED, T5), FLUX: (CLIP, T5)}
"""Classes of the text encoders that a denoiser is drawn with, in the order of their folders."""
JOINS: dict[str, Any] = {SDXL: "channels", SD3: "tokens", FLUX: "last"}
TOKENS = {SD3: 256, FLUX: 512}
"""That T5 makes of a caption, where a pipeline is told nothing else; a CLIP makes 77."""


def kind_of(network: DiffusersNetwork) -> str:
    """The denoiser's class, but SDXL's for a UNet that reads two encoders."""
    return SDXL if network.sized else network.name


def read_by(network: DiffusersNetwork) -> dict[str, str]:
    """Class of each text encoder, by what its folder and its tokenizer's have behind their names."""
    classes = READ.get(kind_of(network), ())
    return {f"_{n + 1}" if n else "": name for n, name in enumerate(classes)}


def called(network: DiffusersNetwork, place: str) -> TextEmbedderConfig | None:
    """The text encoders in folders of `place` ("" or with a slash behind) as a pipeline calls them; None
    where the denoiser reads no captions."""
    from pipelines.embedders import Several, Transformer

    kind = kind_of(network)
    encoders = tuple(
        Transformer(
            path=f"{place}text_encoder{behind}",
            tokenizer=f"{place}tokenizer{behind}",
            max_tokens=TOKENS[kind] if name == T5 else 77,
            # SDXL and SD3 read a CLIP's layer before the last.
            layer=-2 if name != T5 and kind in (SDXL, SD3) else -1,
            pooled="mean" if name == T5 else "own",
            padded=True,
        )
        for behind, name in read_by(network).items()
    )
    if len(encoders) < 2:
        return next(iter(encoders), None)
    return Several(encoders=encoders, join=JOINS[kind])


def called_so(network: DiffusersNetwork, text: Mapping[str, Any]) -> bool:
    """Whether what a record says of its texts is what a pipeline makes of them; of how many tokens T5 makes
    it can be told."""
    config = called(network, "")
    if config is None:
        return False
    wanted = dataclasses.asdict(config)
    if wanted.get("join") != text.get("join"):
        return False
    theirs, ours = (said.get("encoders") or [said] for said in (wanted, text))
    return len(ours) == len(theirs) and all(
        one.get(name) == other[name]
        for one, other in zip(ours, theirs, strict=True)
        for name in ("kind", "layer", "final_norm", "padded", *_weighty(network, other))
    )


def _weighty(network: DiffusersNetwork, encoder: Mapping[str, Any]) -> tuple[str, ...]:
    """What else matters of an encoder: a CLIP's pooled vector where the denoiser reads one."""
    if encoder["pooled"] != "own":
        return ()
    return ("max_tokens",) if network.pooled_width is None else ("max_tokens", "pooled")
