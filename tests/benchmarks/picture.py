"""README's picture, drawn anew: `python -m tests.benchmarks.picture QUICKSTART_STORE`.

One column a prompt; column n has seed n. Rows: the quickstart's model, the shipped model, the training image
nearest to the latter. The prompts were fixed before any picture was seen: two of each of the eight groups.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from cluster.storage import Storage
from pipelines import config, pictures
from pipelines.arrays import pixels
from pipelines.models import SHIPPED, Generator, SnapshotFolder, load
from pipelines.pipeline import plan
from pipelines.scoring.features import EfficientNetFeatures

PROMPTS = (
    "grinning face",
    "red heart",
    "firefighter",
    "waving hand",
    "fox",
    "frog",
    "red apple",
    "pizza",
    "automobile",
    "house",
    "soccer ball",
    "trophy",
    "guitar",
    "blue book",
    "red circle",
    "stop sign",
)


def column(model: Generator) -> list[Image.Image]:
    """One picture a prompt: prompt n with seed n."""
    return [model.generate([prompt], seed=seed)[0] for seed, prompt in enumerate(PROMPTS)]


def main(store: str) -> None:
    import torch

    from diffusion.metrics.neighbours import nearest

    planned = plan(config.load("quickstart", []), Storage.at(store))
    made = planned["model"]
    if made.folder is None or made.state != "done":
        raise SystemExit(
            f"{store} has no finished quickstart: run `latentmill run quickstart --store {store}`."
        )
    ten_minutes = column(Generator(SnapshotFolder.open(made.folder)))
    shipped = column(load("emoji3d"))

    images = planned["latents"].open()["images"]
    shards = [shard.name for shard in images.shards if shard.split == "train"]
    real = [
        Image.fromarray(pixels(record.members["image"]))
        for name in shards
        for record in images.read(name, columns=("image",))
    ]
    extract = EfficientNetFeatures().build()
    known = torch.cat([torch.from_numpy(extract(real[n : n + 32])) for n in range(0, len(real), 32)])
    asked = torch.from_numpy(extract(shipped))
    normal = torch.nn.functional.normalize
    closest = [real[n] for n in nearest(normal(asked, dim=1), normal(known, dim=1)).index.tolist()]
    png = pictures.grid(
        [ten_minutes, shipped, closest],
        row_labels=("ten minutes", "shipped model", "nearest training image"),
        column_labels=PROMPTS,
        cell=48,
    )
    Path(SHIPPED, "emoji3d", "prompts.png").write_bytes(png)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "store")
