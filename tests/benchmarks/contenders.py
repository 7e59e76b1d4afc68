"""What others do with a folder of JPEGs, as their users write it; each is a program of its own.

`python -m tests.benchmarks.contenders NAME IMAGES OUT` prints the seconds that the work took, imports and the
start of workers left out where the program lets one see them.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

SIDE, QUALITY, PER_SHARD = 256, 95, 1000
PROCESSES = os.cpu_count() or 1


def paths(folder: str) -> list[str]:
    return sorted(str(path) for path in Path(folder).rglob("*.jpg"))


def resized(data: bytes) -> bytes:
    """The least that decoding at a fraction, the mean of areas and encoding take."""
    import numpy as np
    import simplejpeg

    # A quarter larger than what it is brought to, as ours: at the very size fine textures lose 3 dB.
    array = simplejpeg.decode_jpeg(data, min_height=5 * SIDE // 4, min_width=5 * SIDE // 4)
    image = Image.fromarray(array)
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    image = image.resize((SIDE, SIDE), Image.Resampling.HAMMING, box=box)
    return simplejpeg.encode_jpeg(np.asarray(image), quality=QUALITY, colorsubsampling="444")


def decoded(data: bytes) -> bytes:
    import simplejpeg

    simplejpeg.decode_jpeg(data)
    return b""


def _jpeg(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=QUALITY, subsampling=0)
    return sink.getvalue()


def plainly(data: bytes) -> bytes:
    """As most people write it, with Pillow."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BOX)
    return _jpeg(image)


def bare(images: str, out: str) -> float:
    return _shared(images, _loop, resized)


def bare_decode(images: str, out: str) -> float:
    return _shared(images, _loop, decoded)


def shard_writer(images: str, out: str) -> float:
    """webdataset's ShardWriter and Pillow, a process a core."""
    import webdataset  # noqa: F401  # before the clock starts

    Path(out).mkdir(parents=True)
    return _shared(images, _write_shards, out)


def ray_data(images: str, out: str) -> float:
    """Ray Data's readers and writers, in a Ray of this machine's cores; it writes JPEGs of quality 75."""
    import numpy as np
    import ray

    def resize(row: dict[str, Any]) -> dict[str, Any]:
        image = Image.fromarray(row["image"])
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BOX)
        return {"__key__": Path(row["path"]).stem, "jpg": np.asarray(image)}

    return _on_ray(lambda: ray.data.read_images(images, mode="RGB", include_paths=True).map(resize), out)


def ray_data_whole(images: str, out: str) -> float:
    """The same without resizing: what it has for keeping images as they are."""
    import ray

    def row(row: dict[str, Any]) -> dict[str, Any]:
        return {"__key__": Path(row["path"]).stem, "jpg": row["image"]}

    return _on_ray(lambda: ray.data.read_images(images, mode="RGB", include_paths=True).map(row), out)


def ours(images: str, out: str) -> float:
    """`ingest` resizing as the others do, from a source that was never seen to the manifest."""
    return _ingest(
        images, out, size=SIDE, resample="area", format="jpg", quality=QUALITY, split={"distance": None}
    )


def ours_whole(images: str, out: str) -> float:
    """`ingest` keeping bytes, judged by their containers; equal files are found."""
    return _ingest(images, out, resize="none", validate="header", split={"distance": None})


def ours_checked(images: str, out: str) -> float:
    """`ingest` keeping bytes, all decoded; near-duplicates are found and splits kept apart."""
    return _ingest(images, out, resize="none")


def tar(images: str, out: str) -> float:
    """tar, and the sha256 of what it writes: the limit for keeping bytes."""
    Path(out).mkdir(parents=True)
    start = time.monotonic()
    command = 'tar -C "$0" -cf - . | tee "$1" | sha256sum'
    subprocess.run(["sh", "-c", command, images, f"{out}/all.tar"], check=True, capture_output=True)
    with open(f"{out}/all.tar", "rb") as file:
        os.fsync(file.fileno())
    return time.monotonic() - start


def img2dataset(images: str, out: str) -> float:
    """img2dataset of the environment that runs this, on file:// addresses."""
    from img2dataset import download

    Path(out).mkdir(parents=True)
    listed = Path(out) / "urls.txt"
    listed.write_text("".join(f"file://{path}\n" for path in paths(images)))
    start = time.monotonic()
    download(
        url_list=str(listed), output_folder=f"{out}/tars", output_format="webdataset", input_format="txt",
        image_size=SIDE, resize_mode="center_crop", encode_quality=QUALITY, processes_count=PROCESSES,
        thread_count=16, number_sample_per_shard=PER_SHARD, disable_all_reencoding=False,
    )  # fmt: skip
    return time.monotonic() - start


CONTENDERS: dict[str, Callable[[str, str], float]] = {
    f.__name__: f
    for f in (
        bare, bare_decode, shard_writer, ray_data, ray_data_whole, tar, img2dataset,
        ours, ours_whole, ours_checked,
    )
}  # fmt: skip


def _shared(images: str, work: Callable[..., None], how: Any) -> float:
    """Seconds of a process a core, each with its share, from when all have started."""
    files = paths(images)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(PROCESSES + 1)
    shares = [files[n::PROCESSES] for n in range(PROCESSES)]
    workers = [
        context.Process(target=_share, args=(barrier, work, n, share, how)) for n, share in enumerate(shares)
    ]
    for worker in workers:
        worker.start()
    barrier.wait()
    start = time.monotonic()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return time.monotonic() - start


def _share(barrier: Any, work: Callable[..., None], n: int, share: Sequence[str], how: Any) -> None:
    import PIL.Image  # noqa: F401
    import simplejpeg  # noqa: F401

    barrier.wait()
    work(n, share, how)


def _loop(n: int, share: Sequence[str], how: Callable[[bytes], bytes]) -> None:
    for path in share:
        how(Path(path).read_bytes())


def _write_shards(n: int, share: Sequence[str], out: str) -> None:
    from webdataset import ShardWriter

    with ShardWriter(f"{out}/{n}-%05d.tar", maxcount=PER_SHARD, verbose=0) as writer:
        for path in share:
            writer.write({"__key__": Path(path).stem, "jpg": plainly(Path(path).read_bytes())})


def _ingest(images: str, out: str, **fields: Any) -> float:
    from cluster.mapping import RayExecutor
    from cluster.resources import Resources
    from cluster.session import RaySession
    from cluster.storage import Storage
    from pipelines import config
    from pipelines.pipeline import run
    from pipelines.recipe import yaml12

    os.environ["LATENTMILL_CACHE"] = f"{out}/cache"
    stage = {"stage": "ingest", "source": {"kind": "folder", "path": images, "labels": "none"}, **fields}
    recipe = config.parse(
        yaml12.write({"name": "pile", "stages": {"images": stage}}), name="pile", folder=Path(out)
    )
    session = RaySession(shared=f"{out}/ray")
    executor = RayExecutor(session)
    try:
        session.start()
        one = Resources(cpus=1, workers=PROCESSES)
        list(executor.map(_Nothing(), range(PROCESSES), resources=one, name="warm"))
        start = time.monotonic()
        run(recipe, Storage.at(f"{out}/store"), executor=executor, record=False)
        return time.monotonic() - start
    finally:
        executor.close()


class _Nothing:
    def __call__(self) -> Callable[[Any], Any]:
        return str


def _on_ray(dataset: Callable[[], Any], out: str) -> float:
    import logging

    import ray

    ray.init(address="local", num_cpus=PROCESSES, include_dashboard=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.range(PROCESSES).materialize()
    start = time.monotonic()
    dataset().write_webdataset(out)
    return time.monotonic() - start


if __name__ == "__main__":
    name, *given = sys.argv[1:]
    print(json.dumps({"seconds": CONTENDERS[name](*given)}))
