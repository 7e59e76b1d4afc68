"""Sizes and costs of what is finished, by its manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.storage import Storage
from pipelines.costs import columns, rates
from pipelines.costs.arithmetic import autoencoder, latent_shape, network, pretrained
from pipelines.costs.cost import Cost, Size


def known(size: Size, manifest: Mapping[str, Any]) -> Size:
    """What was reckoned, as far as the finished output does not say better."""
    counts = manifest.get("counts") or {}
    if "snapshot" in manifest:
        return learned(manifest["snapshot"])
    if counts.get("committed"):
        size = replace(size, samples=int(counts["committed"]))
    if manifest.get("classes"):
        size = replace(size, classes=len(manifest["classes"]))
    said = manifest.get("statistics") or {}
    if "shape" in said:
        size = replace(size, latents=(said["shape"][0], said["shape"][1]), side=said["resolution"])
    if "width" in (said.get("text") or {}):
        size = replace(size, text_width=said["text"]["width"], captions=said["text"].get("captions", 0))
    return size


def named(field: str, reference: str) -> str:
    """An input as an estimate keeps it: one pipeline may be named for its autoencoder and its denoiser."""
    return f"{reference} ({field})" if field == "denoiser" else reference


def learned(record: Mapping[str, Any]) -> Size:
    """What a snapshot says of its networks."""
    from pipelines.models import autoencoder_config, network_config

    if record.get("task") == "pretrained":  # its size is that of the latents it will be trained on
        return Size(denoiser=pretrained(network_config(record["network"]), int(record["parameters"]), size=1))
    side = int(record["resolution"])
    config = autoencoder_config(record["autoencoder"])
    encoder, decoder = autoencoder(config, side=side)
    size = Size(side=side, coder=config, encoder=encoder, decoder=decoder, latents=latent_shape(config, side))
    if "network" not in record:
        return size
    channels, of_latents, _ = record["latent_shape"]
    text, upscaling = record.get("text") or {}, record.get("upscaling")
    if record["network"].get("kind") == "diffusers":
        given = network_config(record["network"]), int(record["parameters"])
        return replace(size, denoiser=pretrained(*given, size=of_latents), latents=(channels, of_latents))
    work = network(
        network_config(record["network"]),
        channels=channels,
        size=upscaling["size"] if upscaling else of_latents,
        classes=len(record.get("classes") or ()),
        text_width=text.get("width"),
        tokens=rates.TOKENS if text else 0,
        low_channels=channels if upscaling else 0,
    )
    return replace(size, denoiser=work, latents=(channels, of_latents))


def foreign(reference: str) -> Size:
    """Of an autoencoder's folder in diffusers' format that is not in the store yet; nothing of what is not
    on this machine, or no such folder."""
    from pipelines.pretrained.autoencoder_folder import AutoencoderFolder

    if "/" not in reference or "://" in reference or not Path(reference).is_dir():
        return Size()
    try:
        found = AutoencoderFolder.of(Storage.at(reference), reference)
        config = found.config()
    except (ValueError, OSError):
        return Size()  # the run will say what is wrong with it
    side = found.resolution(config.factor)
    encoder, decoder = autoencoder(config, side=side)
    return Size(side=side, coder=config, encoder=encoder, decoder=decoder, latents=latent_shape(config, side))


def spent(artifact: Any, cost: Cost) -> Cost:
    """What a finished stage holds and took."""
    manifest = artifact.manifest
    files = (manifest.get("snapshot") or {}).get("files")
    execution = manifest.get("execution") or {}
    taken, held, samples = cost.bytes, {}, int((manifest.get("counts") or {}).get("committed", 0))
    if manifest.get("shards"):
        held = columns.held(manifest["shards"], samples, row=_row(artifact.storage, manifest["shards"]))
        taken = columns.total(held, samples)
    elif files:
        taken = float(sum(artifact.storage.size(name) for name in files))
    return Cost(bytes=taken, samples=samples, columns=held, seconds=execution.get("seconds"), measured=True)


def _row(storage: Any, shards: Sequence[Mapping[str, Any]]) -> float:
    """Bytes of a row in the tables of the first shards, which stand for the others."""
    some = shards[:4]
    rows = sum(int(shard["samples"]) for shard in some)
    return sum(storage.size(f"{shard['name']}.parquet") for shard in some) / max(1, rows)
