"""Images to moments: the mean and standard deviation of the autoencoder's posterior, unscaled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pipelines import buckets
from pipelines.arrays import to_npy
from pipelines.encoding.columns import MOMENTS, column
from pipelines.stage import (
    KEEP,
    Input,
    Inputs,
    Row,
    Sample,
    ShardPlan,
    ShardStage,
    Spread,
    added,
    execution,
    in_turn,
)

if TYPE_CHECKING:
    from pipelines.encoding.network import Encoded, Encoder
    from pipelines.encoding.pictures import Batch
    from pipelines.encoding.statistics import Sums

_AHEAD = 2
"""Batches that lie decoded before the network asks for them, and that it has begun before they are stored."""
_BYTES = 256 * 2**20
"""Of moments; above, workers read them for the statistics, as the driver would take long."""


@dataclass(frozen=True, kw_only=True)
class Encode(ShardStage):
    """Writes `moments.npy`, fp16 [2c, h, w]: c channels of mean, then c of standard deviation.

    Images that ingest brought to several sizes (`buckets`) have moments of as many; a forward call has one.
    An image whose moments are not finite, even in float32, is rejected as `not_finite`.
    """

    version: ClassVar[int] = 1
    primary: ClassVar[str] = "images"
    accelerated: ClassVar[bool] = True

    images: Annotated[str, Input("dataset", ("image",))]
    autoencoder: Annotated[str, Input("snapshot")]
    keep: Annotated[str | None, Input("dataset", (KEEP,))] = added(None)
    """A filter or deduplicate stage: only images that it keeps are encoded."""
    flips: bool = False
    """Encodes each image mirrored left to right as well, into `flipped.moments.npy`."""
    micro_batch: int = 32
    """Images a forward call, which the last is padded to: float results depend on it."""
    also: tuple[int, ...] = added(())
    """Smaller resolutions, px, that each image is encoded at as well, into `at32.moments.npy` and
    `flipped.at32.moments.npy` for 32: multiples of the autoencoder's factor. The image is decoded once, and
    shrunk by Lanczos in the values it is stored in; of several sizes, each to the area of that square."""
    tile: int = added(1024)
    """Side of the largest image, px, that the network sees whole; larger ones go through it in tiles. That
    changes nothing but rounding where the network sees a limited way, as ours do; where it sees all of the
    image (Stable Diffusion's), tiles overlap by a quarter and are blended."""
    precision: Literal["float32", "bfloat16", "float16"] = added("float32")
    """Of the network. Images that overflow in half precision are encoded again in float32, and counted."""
    compile: bool = added(False)
    """Compiles the encoder in the first batch: for a GPU, and datasets that take longer than that."""
    decoders: int = execution(2)
    """Threads of a worker that decode images ahead of the network."""

    def __post_init__(self) -> None:
        if self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}; it must be at least 1.")
        if self.decoders < 1:
            raise ValueError(f"decoders is {self.decoders}; it must be at least 1.")
        if self.tile < 64:
            raise ValueError(f"tile is {self.tile} px; it must be at least 64.")
        if any(side < 1 for side in self.also) or sorted(set(self.also)) != sorted(self.also):
            raise ValueError(f"also is {list(self.also)}; name each smaller resolution once, in px.")

    def summary(self) -> str:
        return "images and their mirror images to moments" if self.flips else "images to moments"

    def rows(self, inputs: Inputs, shard: ShardPlan) -> list[Row]:
        rows = super().rows(inputs, shard)
        if not _several(inputs):
            return rows
        # The index of one that was made when all had one size does not say which.
        return [dataclasses.replace(row, reads=(*row.reads, "sized")) for row in rows]

    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        from pipelines.embedders.embedding import device_at_hand
        from pipelines.encoding.ahead import ahead
        from pipelines.encoding.network import Encoder
        from pipelines.encoding.pictures import Sizing, batches

        device = device_at_hand()
        autoencoder, several = inputs["autoencoder"].autoencoder(), _several(inputs)
        for side in self.also:
            if side % autoencoder.factor:
                raise ValueError(f"`also` has {side} px, no multiple of the factor {autoencoder.factor}.")
        sizing = Sizing(
            factor=autoencoder.factor,
            several=several,
            also=self.also,
            resolution=buckets.resolution(inputs["images"].manifest["statistics"]) if several else None,
        )
        encoder = Encoder(
            autoencoder, device=device, precision=self.precision, compiled=self.compile, tile=self.tile
        )

        def encode(shard: ShardPlan, rows: Sequence[Row]) -> Iterator[Sample]:
            wanted = [row.key for row in rows if not row.reject]
            records = inputs["images"].read(shard.name, wanted, ("image",))
            decoded = batches(
                records,
                self.micro_batch,
                sizing,
                threads=self.decoders,
                pinned=device.type == "cuda",
            )
            begun = self._begun(encoder, ahead(decoded, depth=_AHEAD))
            made: dict[str, Sample] = {}
            left = iter(rows)
            row = next(left, None)
            for batch, results in ahead(begun, depth=_AHEAD):
                made |= self._samples(batch, {name: one.result() for name, one in results.items()}, several)
                while row is not None and (row.reject or row.key in made):
                    yield made.pop(row.key, Sample(key=row.key, reject=row.reject))
                    row = next(left, None)
            while row is not None:
                yield made.pop(row.key, Sample(key=row.key, reject=row.reject or "no_image"))
                row = next(left, None)

        return encode

    def _begun(self, encoder: Encoder, decoded: Iterator[Batch]) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """Each batch with what becomes its columns. A GPU is given work here, and waited for elsewhere."""
        import torch

        torch.set_num_threads(torch.get_num_threads())  # a new thread takes all cores otherwise
        for batch in decoded:
            yield (
                batch,
                {
                    column(side, flipped=flip): encoder.start(images, flip=flip)
                    for side, images in batch.images.items()
                    for flip in ((False, True) if self.flips else (False,))
                },
            )

    def _samples(self, batch: Batch, columns: dict[str, Encoded], several: bool) -> dict[str, Sample]:
        """Samples of a batch by key, those that are not finite rejected."""
        _, height, width, _ = batch.images[None].shape
        # Where sizes differ, training groups rows by them before it reads any.
        size: dict[str, Any] = {"width": width, "height": height} if several else {}
        found = {}
        for n, key in enumerate(batch.keys):
            if all(of.finite[n] for of in columns.values()):
                again = {"retried": True} if any(of.retried[n] for of in columns.values()) else {}
                members = {name: to_npy(of.moments[n]) for name, of in columns.items()}
                found[key] = Sample(key=key, members=members, meta={**size, **again})
            else:
                found[key] = Sample(key=key, reject="not_finite")
        return found

    def finish(self, inputs: Inputs, dataset: Any) -> dict[str, Any]:
        return self.gathered(inputs, dataset, in_turn)

    def gathered(self, inputs: Inputs, dataset: Any, spread: Spread) -> dict[str, Any]:
        """Statistics of the latents over the train split (over all where there is none)."""
        from pipelines.encoding.statistics import Summing, Sums
        from pipelines.models import autoencoder_config

        shards = [s for s in dataset.shards if s.split == "train"] or list(dataset.shards)
        columns = [column(side) for side in (None, *self.also)]
        size = sum(s.columns[c]["bytes"] for s in shards for c in columns if c in s.columns)
        totals = {name: Sums() for name in columns}
        given = [dataclasses.asdict(shard) for shard in shards]
        for sums in (spread if size > _BYTES else in_turn)(Summing(dataset.storage, columns), given):
            for name in columns:
                totals[name].add(sums[name])
        factor = autoencoder_config(inputs["autoencoder"].record["autoencoder"]).factor
        whole = self._said(inputs, totals[MOMENTS], factor, None)
        others = {str(side): self._said(inputs, totals[column(side)], factor, side) for side in self.also}
        statistics = {
            **whole,
            **({"resolutions": others} if others else {}),
            "autoencoder": inputs["autoencoder"].digest(),
        }
        if self.precision == "float32" and not self.compile:
            return {"statistics": statistics}
        retried = sum(bool(m.get("retried")) for s in dataset.shards for m in dataset.index(s.name).meta)
        note = f"{retried:,} images overflowed in {self.precision} and were encoded in float32."
        return {"statistics": statistics, "retried": retried, **({"notes": [note]} if retried else {})}

    def _said(self, inputs: Inputs, sums: Sums, factor: int, side: int | None) -> dict[str, Any]:
        """What the manifest says of the moments at one resolution."""
        from pipelines.encoding.pictures import REMEDY

        if sums.latents is None:
            raise ValueError("There is no image to encode.")
        said: dict[str, Any] = {}
        (channels, height, width), *more = sums.shapes
        resolution = side or height * factor
        if _several(inputs):
            # What stands for all of them is the square that has their area.
            resolution = side or buckets.resolution(inputs["images"].manifest["statistics"])
            height = width = resolution // factor
            counts = {(w * factor, h * factor): count for (_, h, w), count in sums.shapes.items()}
            said = {"sizes": buckets.listed(counts)}
        elif more:
            raise ValueError(f"The images differ in size from shard to shard; {REMEDY}")
        return {
            "latents": sums.latents.statistics().to_json(),
            "shape": [channels, height, width],
            "resolution": resolution,
            **said,
        }


def _several(inputs: Inputs) -> bool:
    """Whether ingest brought the images to sizes by their ratio, and training batches them by size."""
    return bool(buckets.known(inputs["images"].manifest.get("statistics", {})))
