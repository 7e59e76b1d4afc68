"""Whether what a training reads suits it: by the recipe before anything runs, and by what then lies there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.buckets import known
from pipelines.encoding.columns import column, statistics_at
from pipelines.stage import Inputs
from pipelines.stages.embed import Embed
from pipelines.stages.encode import Encode
from pipelines.stages.train_autoencoder import TrainAutoencoder
from pipelines.training.tasks.initial import differing

if TYPE_CHECKING:
    from pipelines.stages.train import Train

FLIPS = "has no mirrored moments: set `flips: true` in its encode stage too."
EMPTY = "keeps no empty caption: set `empty: true` in its embed stage."
AUTOENCODER = "name the autoencoder that encode was given."


def unsuited(stage: Train, made: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with stages of the same recipe that this one reads, by field.

    `made`: field -> that stage, of those that the recipe makes itself. Only what is certain is told: a place
    outside is judged when it is opened (`check_inputs`).
    """
    from pipelines.stages.train import Train

    wrong: dict[str, str] = {}
    latents, autoencoder = made.get("latents"), made.get("autoencoder")
    if isinstance(latents, Encode):
        if stage.flips and not latents.flips:
            wrong["flips"] = f"{stage.latents} {FLIPS}"
        if stage.resolution is not None and stage.resolution not in latents.also:
            wrong["resolution"] = (
                f"{stage.latents} makes none of {stage.resolution} px: name it in `also` of the encode stage."
            )
        # One whose decoder alone was trained on gives latents of the one that it began with.
        if (
            isinstance(autoencoder, TrainAutoencoder)
            and autoencoder.train == "all"
            and "/" not in latents.autoencoder + stage.autoencoder
            and latents.autoencoder != stage.autoencoder
        ):
            wrong["autoencoder"] = f"{stage.latents} is encoded by {latents.autoencoder}: {AUTOENCODER}"
    text, initial = made.get("text"), made.get("initial")
    if stage.null == "encoded" and isinstance(text, Embed) and not text.empty:
        wrong["null"] = f"{stage.text} {EMPTY}"
    if isinstance(initial, Train) and (stage.denoiser or initial.denoiser) is None:
        words = differing(stage.network, initial.network, name=str(stage.initial))
        wrong |= {"network": words} if words else {}
    return wrong


def check_inputs(stage: Train, inputs: Inputs) -> None:
    """`ValueError` where latents and autoencoder do not belong together, or mirrored ones are missing."""
    latents, autoencoder = inputs["latents"], inputs["autoencoder"]
    statistics = latents.manifest.get("statistics", {})
    if "latents" not in statistics:
        raise ValueError(f"{stage.latents} holds no latents: name an encode stage.")
    if statistics.get("autoencoder", "") not in (autoencoder.digest(), autoencoder.record.get("encodes_as")):
        raise ValueError(f"{stage.latents} was not encoded by {stage.autoencoder}: {AUTOENCODER}")
    if stage.null == "encoded" and "empty" not in inputs["text"].manifest["statistics"]["text"]:
        raise ValueError(f"{stage.text} {EMPTY}")
    if stage.low_resolution is not None and known(statistics):
        raise ValueError(
            f"{stage.latents} has images of several sizes, and an upscaler trains on one: "
            "give its ingest a `size` instead of `buckets`."
        )
    statistics_at(statistics, stage.resolution)
    if stage.flips and column(stage.resolution, flipped=True) not in latents.columns:
        raise ValueError(f"{stage.latents} {FLIPS}")
