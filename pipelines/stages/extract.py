"""Images to features: what a frozen network sees of them, for alignment and for evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pipelines import buckets
from pipelines.arrays import from_npy, pixels, to_npy
from pipelines.extractors import EfficientNetMaps, ExtractorConfig, OpenClipMaps
from pipelines.stage import KEEP, Input, Inputs, Row, Sample, ShardPlan, ShardStage, added

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Extract(ShardStage):
    """Writes `features.npy`, fp16: [c, rows, columns] of a network that keeps places, or [c].

    Each network brings the whole image to its own size, whatever its shape: places in the map are places in
    the image.
    """

    version: ClassVar[int] = 1
    primary: ClassVar[str] = "images"
    accelerated: ClassVar[bool] = True

    images: Annotated[str, Input("dataset", ("image",))]
    keep: Annotated[str | None, Input("dataset", (KEEP,))] = added(None)
    """A filter or deduplicate stage: only images that it keeps are looked at."""
    clip: Annotated[str | None, Input("snapshot")] = None
    """A train_clip stage, for a network of kind open_clip without a `path`."""
    network: ExtractorConfig = EfficientNetMaps()
    grid: int | None = None
    """Maps are averaged down to so many rows and columns, such as the tokens that a denoiser has of the same
    image (latents' side over `patch`); None keeps the network's own."""
    micro_batch: int = 16
    """Images a forward call, which the last is padded to: float results depend on it."""

    def __post_init__(self) -> None:
        if self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}; it must be at least 1.")
        if self.grid is not None and self.grid < 1:
            raise ValueError(f"grid is {self.grid}; it must be at least 1.")
        if self.grid is not None and getattr(self.network, "layer", "") == "pooled":
            raise ValueError("extract has a `grid`, and a pooled vector has no places: leave one out.")
        if self.clip is not None and not self._trained:
            raise ValueError(
                "extract has a `clip` that no network uses: set `network: {kind: open_clip}` without `path`."
            )

    @property
    def _trained(self) -> bool:
        return isinstance(self.network, OpenClipMaps) and not self.network.path

    def external(self) -> dict[str, str]:
        if self._trained and self.clip is not None:
            return {}  # its snapshot stands for it
        return {"network": self.network.identity()}

    def summary(self) -> str:
        return f"features by {self.network.kind}"

    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        import torch

        from pipelines.embedders.embedding import device_at_hand

        device, config = device_at_hand(), self.network
        if self._trained and isinstance(config, OpenClipMaps):
            config = dataclasses.replace(config, path=str(inputs["clip"].local()))
        network = config.build()

        def forward(batch: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                seen = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float().div_(255)
                found = network(seen).float()
                if self.grid is not None and found.ndim == 4:
                    found = torch.nn.functional.adaptive_avg_pool2d(found, self.grid)
                return found.cpu().numpy()

        def extract(shard: ShardPlan, rows: Sequence[Row]) -> Iterator[Sample]:
            import numpy as np

            wanted = [row.key for row in rows if not row.reject]
            made: dict[str, Sample] = {}
            for keys, batch in _batches(
                inputs["images"].read(shard.name, wanted, ("image",)), self.micro_batch
            ):
                with np.errstate(over="ignore"):
                    found = forward(batch).astype(np.float16)
                for key, features in zip(keys, found, strict=False):
                    whole = bool(np.isfinite(features).all())
                    made[key] = (
                        Sample(key=key, members={"features.npy": to_npy(features)})
                        if whole
                        else Sample(key=key, reject="not_finite")
                    )
            for row in rows:
                yield made.pop(row.key, Sample(key=row.key, reject=row.reject or "no_image"))

        return extract

    def finish(self, inputs: Inputs, dataset: Any) -> dict[str, Any]:
        """Shape of the first sample's features, which all have, and what made them."""
        record = {**dataclasses.asdict(self.network), "micro_batch": self.micro_batch}
        identity = self.external().get("network") or inputs["clip"].digest()
        for shard in dataset.shards:
            for found in dataset.read(shard.name, columns=("features.npy",)):
                shape = list(from_npy(found.members["features.npy"]).shape)
                return {"statistics": {"features": {**record, "digest": identity, "shape": shape}}}
        raise ValueError("There is no image to look at.")


def _batches(records: Iterable[Any], size: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """Keys and uint8 pixels [size, h, w, 3], each batch of one size; the last image fills up the last batch
    of each."""
    import numpy as np

    waiting: dict[buckets.Size, tuple[list[str], list[np.ndarray]]] = {}
    for record in records:
        image = pixels(record.members["image"])
        keys, images = waiting.setdefault((image.shape[1], image.shape[0]), ([], []))
        keys.append(record.key)
        images.append(image)
        if len(keys) == size:
            yield keys, np.stack(images)
            del waiting[image.shape[1], image.shape[0]]
    for keys, images in waiting.values():
        yield keys, np.stack(images + images[-1:] * (size - len(images)))
