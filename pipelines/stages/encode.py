"""Images to moments: the mean and standard deviation of the autoencoder's posterior, unscaled."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pipelines import buckets
from pipelines.arrays import from_npy, pixels, to_npy
from pipelines.stage import KEEP, Input, Inputs, Row, Sample, ShardPlan, ShardStage, added

if TYPE_CHECKING:
    import numpy as np

_AHEAD = 2
"""Batches decoded before the network asks for them."""
_CHUNK = 256
"""Samples added to the statistics at once; in the order of shards and keys, so that sums repeat."""
_REMEDY = "give ingest a size and a resize, or `buckets`."


@dataclass(frozen=True, kw_only=True)
class Encode(ShardStage):
    """Writes `moments.npy`, fp16 [2c, h, w]: c channels of mean, then c of standard deviation.

    Images that ingest brought to several sizes (`buckets`) have moments of as many; a forward call has one.
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

    def __post_init__(self) -> None:
        if self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}; it must be at least 1.")

    def summary(self) -> str:
        return "images and their mirror images to moments" if self.flips else "images to moments"

    def rows(self, inputs: Inputs, shard: ShardPlan) -> list[Row]:
        rows = super().rows(inputs, shard)
        if not _several(inputs):
            return rows
        # The index of one that was made when all had one size does not say which.
        return [dataclasses.replace(row, reads=(*row.reads, "sized")) for row in rows]

    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        import torch

        from pipelines.embedders.embedding import device_at_hand
        from pipelines.models import load_autoencoder

        device = device_at_hand()
        # Channels-last, as the decoded pixels lie: a tenth faster on a CPU.
        autoencoder = load_autoencoder(inputs["autoencoder"]).eval().to(device)
        autoencoder = autoencoder.to(memory_format=torch.channels_last)
        several = _several(inputs)

        def forward(batch: np.ndarray) -> np.ndarray:
            images = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            with torch.inference_mode():
                moments = autoencoder.encode(images)
                return torch.cat([moments.mean, moments.std], dim=1).half().cpu().numpy()

        def encode(shard: ShardPlan, rows: Sequence[Row]) -> Iterator[Sample]:
            wanted = [row.key for row in rows if not row.reject]
            records = inputs["images"].read(shard.name, wanted, ("image",))
            made: dict[str, Sample] = {}
            for keys, batch in _ahead(
                _batches(records, self.micro_batch, autoencoder.factor, several=several)
            ):
                columns = {"moments.npy": forward(batch)}
                if self.flips:
                    columns["flipped.moments.npy"] = forward(batch[:, :, ::-1].copy())
                for n, key in enumerate(keys):
                    members = {name: to_npy(moments[n]) for name, moments in columns.items()}
                    # Where sizes differ, training groups rows by them before it reads any.
                    meta = {"width": batch.shape[2], "height": batch.shape[1]} if several else {}
                    made[key] = Sample(key=key, members=members, meta=meta)
            for row in rows:
                yield made.pop(row.key, Sample(key=row.key, reject=row.reject or "no_image"))

        return encode

    def finish(self, inputs: Inputs, dataset: Any) -> dict[str, Any]:
        """Statistics of the latents over the train split (over all where there is none)."""
        import numpy as np
        import torch

        from diffusion.latents import LatentSums, Moments
        from pipelines.models import autoencoder_config

        shards = [s.name for s in dataset.shards if s.split == "train"] or [s.name for s in dataset.shards]
        several = _several(inputs)
        factor = autoencoder_config(inputs["autoencoder"].record["autoencoder"]).factor
        records = (r for name in shards for r in dataset.read(name, columns=("moments.npy",)))
        sums, shape, counts = None, None, Counter()
        for chunk in iter(lambda: list(itertools.islice(records, _CHUNK)), []):
            alike: dict[tuple[int, ...], list[np.ndarray]] = {}
            for record in chunk:
                array = from_npy(record.members["moments.npy"])
                shape = shape or array.shape
                if array.shape != shape and not several:
                    raise ValueError(f"The images differ in size from shard to shard; {_REMEDY}")
                alike.setdefault(array.shape, []).append(array)
                counts[array.shape[2] * factor, array.shape[1] * factor] += 1
            for _, arrays in sorted(alike.items()):
                mean, std = torch.from_numpy(np.stack(arrays)).chunk(2, dim=1)
                part = LatentSums.of(Moments(mean=mean.float(), std=std.float()))
                sums = part if sums is None else sums + part
        if sums is None or shape is None:
            raise ValueError("There is no image to encode.")
        channels, height, width = shape[0] // 2, shape[1], shape[2]
        said: dict[str, Any] = {}
        if several:
            # What stands for all of them is the square that has their area.
            resolution = buckets.resolution(inputs["images"].manifest["statistics"])
            height = width = resolution // factor
            said = {"sizes": buckets.listed(counts)}
        else:
            image = next(inputs["images"].read(shards[0], columns=("image",)))
            resolution = pixels(image.members["image"]).shape[0]
        return {
            "statistics": {
                "latents": sums.statistics().to_json(),
                "shape": [channels, height, width],
                "resolution": resolution,
                **said,
                "autoencoder": inputs["autoencoder"].digest(),
            }
        }


def _several(inputs: Inputs) -> bool:
    """Whether ingest brought the images to sizes by their ratio, and training batches them by size."""
    return bool(buckets.known(inputs["images"].manifest.get("statistics", {})))


def _batches(
    records: Iterable[Any], size: int, factor: int, *, several: bool
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Keys and uint8 pixels [size, h, w, 3], each batch of one size; the last image fills up the last batch
    of each. `ValueError` where sizes differ, unless there may be `several`."""
    import numpy as np

    waiting: dict[tuple[int, ...], tuple[list[str], list[np.ndarray]]] = {}
    for record in records:
        image = pixels(record.members["image"])
        height, width = image.shape[:2]
        if height % factor or width % factor:
            raise ValueError(
                f"{record.key} is {width} x {height} px, not a multiple of the autoencoder's factor "
                f"{factor}; give ingest such a size."
            )
        keys, images = waiting.setdefault(image.shape, ([], []))
        if len(waiting) > 1 and not several:
            raise ValueError(f"{record.key} differs in size from the others; {_REMEDY}")
        keys.append(record.key)
        images.append(image)
        if len(keys) == size:
            yield keys, np.stack(images)
            waiting[image.shape] = ([], [])
    for keys, images in waiting.values():
        if keys:
            yield keys, np.stack(images + images[-1:] * (size - len(images)))


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same, made in a thread while the caller works on those before."""
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as thread:
        coming = [thread.submit(next, batches, None) for _ in range(_AHEAD)]
        try:
            while (batch := coming.pop(0).result()) is not None:
                coming.append(thread.submit(next, batches, None))
                yield batch
        finally:
            for future in coming:
                future.cancel()
