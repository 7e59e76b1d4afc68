"""What it costs that every byte of a dataset is verified: read and decoded with it and without, in turn."""

from __future__ import annotations

import contextlib
import io
import random
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.results import Result

SHARDS, EACH = 40, 50
"""So small that what else the machine does hits both of a pair alike."""
ROUNDS = 5
"""Times that each shard is read with and without; together 200 pairs."""
INTERVAL = (85, 114)
"""Of 200 sorted pairs, those between which the median lies with 96 % (binomial)."""


def pictures() -> Iterator[bytes]:
    """JPEGs of 256 to 512 px: emoji side by side in their own size, with detail as in photographs."""
    from PIL import Image

    import pipelines

    archive = zipfile.ZipFile(Path(pipelines.__file__).parent / "data" / "emoji3d.zip")
    names = sorted(name for name in archive.namelist() if name.endswith(".webp"))
    emoji = []
    for name in names[:400]:
        image = Image.open(io.BytesIO(archive.read(name))).convert("RGBA")
        ground = Image.new("RGBA", image.size, "#d8e2dc")
        emoji.append(Image.alpha_composite(ground, image).convert("RGB"))
    draw = random.Random(0)
    while True:
        width, height = draw.randrange(256, 513), draw.randrange(256, 513)
        made = Image.new("RGB", (width, height))
        side = emoji[0].width
        for left in range(0, width, side):
            for top in range(0, height, side):
                made.paste(draw.choice(emoji), (left, top))
        buffer = io.BytesIO()
        made.save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def arrays() -> Iterator[bytes]:
    """What `encode` makes of an image of 256 px: moments of 8 channels, 32 x 32, in half precision."""
    import numpy as np

    from pipelines.arrays import to_npy

    draw = np.random.Generator(np.random.Philox(key=0))
    while True:
        yield to_npy(draw.standard_normal((8, 32, 32)).astype(np.float16))


def dataset(folder: Path, suffix: str, members: Iterator[bytes]) -> Any:
    from cluster.storage import Storage
    from pipelines.dataset import Dataset, describe, write_manifest
    from pipelines.shards import canonical, write_shard
    from pipelines.stage import Row, Sample

    storage = Storage.at(folder)

    def pairs(shard: int) -> Iterator[tuple[Row, Sample]]:
        for n in range(EACH):
            key, facts = f"k{shard}{n:04d}", {"text": "several emoji", "width": 512, "height": 512}
            sample = Sample(
                key=key, members={suffix: next(members), "json": canonical(facts)}, meta={**facts, "n": n}
            )
            yield Row(key=key), sample

    infos = [write_shard(storage, f"{n:05d}", pairs(n), split="train") for n in range(SHARDS)]
    write_manifest(storage, describe(infos, stage="benchmark"))
    return Dataset.open(storage)


@contextlib.contextmanager
def trusting() -> Iterator[None]:
    """Reads without any check. There is no switch for it: it is measured, not offered."""
    from pipelines import shard_index, shards

    verify, sealed = shards.ShardFile._verify, shard_index.sealed

    def take(self: Any, info: Any) -> None:
        self._hashed = shards._state(self._file)

    shards.ShardFile._verify = take
    shard_index.sealed = lambda data: True
    try:
        yield
    finally:
        shards.ShardFile._verify, shard_index.sealed = verify, sealed


def compared(name: str, found: Any, column: str, use: Callable[[bytes], Any], **fields: Any) -> Result:
    """Share of the processor's time that verifying adds, where each shard is read for the first time."""
    from pipelines import shards
    from pipelines.dataset import Dataset

    def seconds(shard: str, checked: bool) -> float:
        shards._verified.clear()
        fresh = Dataset.open(found.storage)
        with contextlib.nullcontext() if checked else trusting():
            start = time.process_time()
            for record in fresh.read(shard, columns=(column,)):
                use(record.members[column])
            return time.process_time() - start

    def pair(n: int, shard: str) -> tuple[float, float]:
        """With and without; every other time the other way round."""
        taken = {checked: seconds(shard, checked) for checked in ((True, False) if n % 2 else (False, True))}
        return taken[True], taken[False]

    pair(0, found.shards[0].name)
    pairs = [pair(n, shard.name) for n in range(ROUNDS) for shard in found.shards]
    shares = sorted(a / b - 1 for a, b in pairs)
    size = sum(shard.bytes for shard in found.shards) / (SHARDS * EACH)
    bare = statistics.median(b for _, b in pairs) / EACH
    return Result(
        name=name,
        value=statistics.median(shares),
        unit="share",
        better="lower",
        against=f"unverified: {bare * 1e3:.3g} ms a sample of {size / 1e3:.3g} kB",
        n=len(pairs),
        spread=(shares[INTERVAL[0]], shares[INTERVAL[1]]),
        note="processor time of one thread, pairs in turn; 95 % interval of the median",
        **fields,
    )


def bench_verifying() -> Iterator[Result]:
    """Verification's share of reading and decoding: JPEGs, and latents, which need no decoding."""
    import numpy as np
    from PIL import Image

    def decoded(data: bytes) -> None:
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    with tempfile.TemporaryDirectory() as folder:
        images = dataset(Path(folder) / "images", "jpg", pictures())
        yield compared("data/verifying_jpegs", images, "image", decoded, target=0.10)
        latents = dataset(Path(folder) / "latents", "moments.npy", arrays())
        yield compared(
            "data/verifying_latents",
            latents,
            "moments.npy",
            lambda data: np.load(io.BytesIO(data)).astype(np.float32),
        )
