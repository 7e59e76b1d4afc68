"""A training on several datasets: whether they go together, told before any of them is read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pipelines.buckets import known
from pipelines.encoding.columns import column, statistics_at
from pipelines.stage import Inputs

if TYPE_CHECKING:
    from pipelines.stages.train import Train

FIELDS = {"latents": "mix_latents", "text": "mix_text", "images": "mix_images", "keep": "mix_keep"}
"""Field of the first dataset's part -> the field that names it of the others."""


def check_mixing(stage: Train) -> None:
    """`ValueError` where the fields do not go together."""
    count = len(stage.mix_latents)
    for first, name in FIELDS.items():
        named = getattr(stage, name)
        if named and len(named) != count:
            raise ValueError(
                f"{name} names {len(named)}, and mix_latents {count}: name one for each, or none."
            )
        if named and name in ("mix_text", "mix_images") and getattr(stage, first) is None:
            raise ValueError(f"`{name}` needs `{first}`: set it, or leave {name} out.")
    if stage.mix_weights and len(stage.mix_weights) != count + 1:
        raise ValueError(
            f"mix_weights has {len(stage.mix_weights)} numbers: latents and mix_latents have {count + 1}."
        )
    if not all(math.isfinite(weight) and weight > 0 for weight in stage.mix_weights):
        raise ValueError(f"mix_weights is {list(stage.mix_weights)}; each must be above 0.")
    if count and (stage.low_resolution is not None or stage.alignment is not None):
        raise ValueError("Upscalers and `alignment` take one dataset: leave mix_latents out.")


def mixed_with(inputs: Inputs, count: int) -> list[dict[str, Any]]:
    """Datasets of each of `count` others, by the names that the first one's have."""
    return [
        {first: inputs[name][n] for first, name in FIELDS.items() if inputs.get(name)} for n in range(count)
    ]


def check_mixed(stage: Train, inputs: Inputs) -> None:
    """`ValueError` where another autoencoder, text encoder, shape or column does not suit the first's."""
    first = inputs["latents"].manifest["statistics"]
    for n, others in enumerate(stage.mixed(inputs)):
        name, latents = stage.mix_latents[n], others["latents"]
        said = latents.manifest.get("statistics", {})
        if "latents" not in said:
            raise ValueError(f"{name} holds no latents: name an encode stage.")
        autoencoder = inputs["autoencoder"]
        if said.get("autoencoder") not in (autoencoder.digest(), autoencoder.record.get("encodes_as")):
            raise ValueError(
                f"{name} was not encoded by {stage.autoencoder}: encode it by that, as {stage.latents} was."
            )
        if bool(known(said)) != bool(known(first)):
            raise ValueError(
                f"One of {name} and {stage.latents} has `buckets`, and one has not: ingest both alike."
            )
        shapes = [statistics_at(one, stage.resolution)["shape"] for one in (first, said)]
        if shapes[0] != shapes[1] and not known(said):
            raise ValueError(
                f"{name} has latents of {_shape(shapes[1])}, and {stage.latents} of {_shape(shapes[0])}: "
                "ingest both at one size."
            )
        if stage.flips and column(stage.resolution, flipped=True) not in latents.columns:
            raise ValueError(f"{name} has no mirrored moments: set `flips: true` in its encode stage too.")
        if "text" in others:
            mine, theirs = (_encoder(one) for one in (inputs["text"], others["text"]))
            if mine != theirs:
                raise ValueError(
                    f"{stage.mix_text[n]} is not of the encoder of {stage.text}: embed both by one."
                )


def _shape(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def _encoder(text: Any) -> tuple[Any, ...]:
    """What makes two datasets' embeddings those of one encoder; a dataset without any has no digest."""
    said = text.manifest.get("statistics", {}).get("text") or {}
    return tuple(said.get(name) for name in ("kind", "digest", "layer", "width", "pooled_width"))
