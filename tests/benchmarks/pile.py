"""A pile of JPEGs as users have them, made once from real drawings: 256 to 1,024 px, 142 KiB in the mean."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path

from cluster.storage import cache_folder

SEED = 5


def pile(count: int) -> Path:
    """A folder of `count` JPEGs in folders of 1,000, kept in the cache; the same ones every time."""
    folder = cache_folder() / "benchmarks" / f"jpegs-{count}"
    if not (folder / "done").exists():
        numbers = range(count)
        with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
            pool.starmap(_make, [(str(folder), numbers[start::64]) for start in range(64)])
        (folder / "done").touch()
    return folder / "images"


def _make(folder: str, numbers: Sequence[int]) -> None:
    from PIL import Image

    import pipelines

    archive = zipfile.ZipFile(Path(pipelines.__file__).parent / "data" / "emoji3d.zip")
    names = sorted(name for name in archive.namelist() if name.endswith(".webp"))
    for number in numbers:
        draw = random.Random(SEED * 1_000_003 + number)
        path = Path(folder) / "images" / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = draw.randint(256, 1024), draw.randint(256, 1024)
        colour = tuple(draw.randint(0, 255) for _ in range(3))
        canvas = Image.effect_noise((width, height), draw.uniform(4, 24)).convert("RGB")
        canvas = Image.blend(canvas, Image.new("RGB", (width, height), colour), 0.6)
        for _ in range(max(2, width * height // 60_000)):
            emoji = Image.open(io.BytesIO(archive.read(draw.choice(names)))).convert("RGBA")
            side = draw.randint(96, 420)
            emoji = emoji.resize((side, side), Image.Resampling.BICUBIC).rotate(draw.uniform(0, 360))
            canvas.paste(emoji, (draw.randint(-60, width - 40), draw.randint(-60, height - 40)), emoji)
        sink = io.BytesIO()
        canvas.save(sink, "JPEG", quality=draw.choice((85, 90, 92, 95)), subsampling=draw.choice((0, 2, 2)))
        temporary = path.with_suffix(".partial")
        temporary.write_bytes(sink.getvalue())
        temporary.rename(path)
