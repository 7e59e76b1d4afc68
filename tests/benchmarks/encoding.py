"""The `encode` stage over the bare autoencoder on data in memory, and beside a diffusers script.

`make bench only=encode`; on a machine with a GPU `only=encode_gpu`, which needs neither Ray nor a store.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.results import Result

ROUNDS = 5
EMOJI = Path(__file__).parents[2] / "pipelines" / "data" / "emoji3d.zip"
COUNTS = {48: 768, 128: 64, 256: 16}
"""Images of a timed pass on a CPU, by their side, px."""
GPU_COUNTS = {256: 8192, 512: 2048}
GPU_BATCH = {256: 64, 512: 16}


def pictures(side: int, count: int, suffix: str = "webp") -> list[bytes]:
    """Emoji at a size, as ingest stores them (lossless WebP), or as JPEG of quality 90."""
    from PIL import Image

    from pipelines import pictures as files

    found = []
    with zipfile.ZipFile(EMOJI) as archive:
        names = [name for name in archive.namelist() if name.endswith(".webp")]
        for name in names[: min(count, len(names))]:
            image = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            image = image.resize((side, side), Image.Resampling.LANCZOS)
            data = io.BytesIO()
            if suffix == "jpg":
                image.save(data, "JPEG", quality=90)
                found.append(data.getvalue())
            else:
                import numpy as np

                found.append(files.encode(np.asarray(image), suffix))
    return [found[n % len(found)] for n in range(count)]


def quickstart() -> Any:
    from diffusion.config import KLAutoencoderConfig

    return KLAutoencoderConfig(latent_channels=4, channels=32, multipliers=(1, 2), stem=2, blocks=1)


def stable_diffusion(*channels: int) -> Any:
    """Shaped as Stable Diffusion's; with its own widths where none are given."""
    from diffusion.config import SpatialAutoencoderConfig

    return SpatialAutoencoderConfig(channels=channels) if channels else SpatialAutoencoderConfig()


@dataclass
class Memory:
    """What the stage asks of its inputs, without a store: images, or an autoencoder."""

    images: Sequence[bytes] = ()
    network: Any = None
    manifest: dict[str, Any] = field(default_factory=dict)

    def read(self, shard: str, keys: Sequence[str], columns: Sequence[str]) -> Iterator[Any]:
        for key in keys:
            yield Member(key, {"image": self.images[int(key[1:])]})

    def autoencoder(self) -> Any:
        return self.network


@dataclass(frozen=True)
class Member:
    key: str
    members: dict[str, bytes]


def stored(folder: Path, images: Sequence[bytes], config: Any) -> dict[str, Any]:
    """A dataset and a snapshot, as the stage's inputs are in use."""
    import hashlib

    import torch
    from safetensors.torch import save

    from cluster.storage import Storage
    from pipelines.dataset import Dataset, describe, write_manifest
    from pipelines.models import SnapshotFolder
    from pipelines.shards import write_shard
    from pipelines.stage import Row, Sample, jsonable

    storage, shards = Storage.at(folder / "images"), []
    each = -(-len(images) // 2)
    for number, start in enumerate(range(0, len(images), each)):
        pairs = [
            (Row(key=f"k{n:06d}"), Sample(key=f"k{n:06d}", members={"webp": images[n]}))
            for n in range(start, min(start + each, len(images)))
        ]
        shards.append(write_shard(storage, f"{number:05d}", pairs, split="train"))
    write_manifest(storage, describe(shards, stage="bench"))

    torch.manual_seed(0)
    place, data = Storage.at(folder / "autoencoder"), save(config.build().state_dict())
    place.put_if_absent("autoencoder.safetensors", data)
    files = {"autoencoder.safetensors": hashlib.sha256(data).hexdigest()}
    record = {"task": "autoencoder", "autoencoder": jsonable(config), "resolution": 0, "files": files}
    write_manifest(place, {"snapshot": record}, kind="snapshot")
    return {"images": Dataset.open(storage), "autoencoder": SnapshotFolder.open(place)}


def staged(stage: Any, inputs: dict[str, Any], folder: Path) -> Callable[[], float]:
    """Images/s from stored images to committed shards, the model loaded."""
    from cluster.storage import Storage
    from pipelines.shards import write_shard

    make, number = stage.open(inputs), iter(range(10**6))
    shards = stage.plan(inputs)
    rows = {shard.name: stage.rows(inputs, shard) for shard in shards}

    def whole() -> float:
        output = Storage.at(folder / f"output-{next(number)}")
        start = time.perf_counter()
        for shard in shards:
            pairs = zip(rows[shard.name], make(shard, rows[shard.name]), strict=True)
            write_shard(output, shard.name, pairs, split=shard.split)
        return sum(map(len, rows.values())) / (time.perf_counter() - start)

    return whole


def bare(inputs: dict[str, Any], side: int, batch: int, count: int) -> Callable[[], float]:
    """Images/s of the autoencoder alone, on a batch in memory, channels-last as in the stage."""
    import torch

    network = inputs["autoencoder"].autoencoder().to(memory_format=torch.channels_last)
    images = torch.rand(batch, 3, side, side).mul_(2).sub_(1).contiguous(memory_format=torch.channels_last)
    calls = -(-count // batch)

    def alone() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for _ in range(calls):
                network.encode(images)
        return calls * batch / (time.perf_counter() - start)

    return alone


def paired(a: Callable[[], float], b: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Rates of both, in turn: what else the machine does hits both alike."""
    a(), b()
    pairs = [(a(), b()) for _ in range(ROUNDS)]
    return [x for x, _ in pairs], [y for _, y in pairs]


def ratio(name: str, rates: tuple[list[float], list[float]], *, target: float, other: str) -> Result:
    ratios = [x / y for x, y in zip(*rates, strict=True)]
    ours, theirs = map(statistics.median, rates)
    return Result(
        name=name,
        value=statistics.median(ratios),
        unit="ratio",
        target=target,
        better="higher",
        against=f"{other}: {theirs:.4g} images/s, stage: {ours:.4g} images/s",
        n=len(ratios),
        spread=(min(ratios), max(ratios)),
        note="pairs in turn; smallest and largest ratio",
    )


def bench_encode() -> Iterator[Result]:
    """The stage from stored images to committed shards over the autoencoder alone, one torch thread each."""
    import torch

    from pipelines.stages.encode import Encode

    torch.set_num_threads(1)
    shaped = stable_diffusion(32, 32, 64, 64)
    for name, side, config, batch in (
        ("line/encode_over_bare_autoencoder", 48, quickstart(), 32),
        ("encode/over_bare_sd_shape_128", 128, shaped, 8),
        ("encode/over_bare_sd_shape_256", 256, shaped, 4),
    ):
        with tempfile.TemporaryDirectory() as folder:
            inputs = stored(Path(folder), pictures(side, COUNTS[side]), config)
            stage = Encode(images="images", autoencoder="vae", micro_batch=batch)
            count = len(inputs["images"])
            rates = paired(staged(stage, inputs, Path(folder) / "out"), bare(inputs, side, batch, count))
            yield ratio(name, rates, target=0.95, other="bare")


def script(images: Sequence[bytes], network: Any, *, batch: int, device: str) -> Callable[[], float]:
    """What a user of diffusers writes: PIL and torchvision's way of scaling in a DataLoader, `encode`, and a
    file of latents an image."""
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    class Images(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, n: int) -> Any:
            pixels = np.asarray(Image.open(io.BytesIO(images[n])).convert("RGB"))
            return n, torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1

    def run() -> float:
        start = time.perf_counter()
        loader = DataLoader(Images(), batch_size=batch, num_workers=8 if device == "cuda" else 0)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            for numbers, pixels in loader:
                latents = network.encode(pixels.to(device)).latent_dist.sample().cpu().numpy()
                for n, one in zip(numbers.tolist(), latents, strict=True):
                    np.save(f"{folder}/{n}.npy", one)
        return len(images) / (time.perf_counter() - start)

    return run


def theirs(config: Any, network: Any) -> Any:
    """diffusers' class with the same weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from diffusion.autoencoders.diffusers_format import settings_of, state_to

    settings = {k: v for k, v in settings_of(config, statistics=None).items() if not k.startswith("_")}
    his = AutoencoderKL(**settings)
    his.load_state_dict(state_to(config, network.state_dict()))
    return his.eval()


def bench_encode_diffusers() -> Iterator[Result]:
    """The stage beside a plain diffusers script with equal weights, and decoding beside diffusers'."""
    import torch

    from pipelines.stages.encode import Encode

    torch.set_num_threads(1)
    side, batch, config = 128, 8, stable_diffusion(32, 32, 64, 64)
    with tempfile.TemporaryDirectory() as folder:
        images = pictures(side, COUNTS[side])
        inputs = stored(Path(folder), images, config)
        ours = inputs["autoencoder"].autoencoder()
        his = theirs(config, ours)
        stage = Encode(images="images", autoencoder="vae", micro_batch=batch)
        rates = paired(
            staged(stage, inputs, Path(folder) / "out"), script(images, his, batch=batch, device="cpu")
        )
        yield ratio("encode/over_diffusers_script_128", rates, target=1.0, other="script")
        rates = paired(
            decoding(ours.decode, side, batch), decoding(lambda z: his.decode(z).sample, side, batch)
        )
        yield ratio("encode/decode_over_diffusers_128", rates, target=1.0, other="diffusers")


def decoding(
    decode: Callable[[Any], Any], side: int, batch: int, *, calls: int = 4, **place: Any
) -> Callable[[], float]:
    """Images/s of a decoder on latents that lie on its device."""
    import torch

    latents = torch.randn(batch, 4, side // 8, side // 8, **place)
    latents = latents.contiguous(memory_format=torch.channels_last)

    def run() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for _ in range(calls):
                decode(latents)
        if latents.is_cuda:
            torch.cuda.synchronize()
        return calls * batch / (time.perf_counter() - start)

    return run


@contextlib.contextmanager
def busy() -> Iterator[list[float]]:
    """Shares of time in which the GPU had work, as its driver counts them, five times a second."""
    import torch

    found: list[float] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.2):
            found.append(torch.cuda.utilization() / 100)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def bench_encode_gpu() -> Iterator[Result]:
    """Stable Diffusion's shape at 256 and 512 px, bf16, channels-last, compiled: JPEG bytes to npy bytes."""
    import torch

    from pipelines.stage import Row, ShardPlan
    from pipelines.stages.encode import Encode

    if not torch.cuda.is_available():
        print("  encode_gpu: this machine has none, nothing is measured", flush=True)
        return
    config = stable_diffusion()
    for side, target in ((256, 1500.0), (512, 380.0)):
        count, batch = GPU_COUNTS[side], GPU_BATCH[side]
        images = pictures(side, count, "jpg")
        torch.manual_seed(0)
        network = config.build().eval()
        stage = Encode(
            images="images",
            autoencoder="vae",
            micro_batch=batch,
            precision="bfloat16",
            compile=True,
            decoders=8,
        )
        make = stage.open({"images": Memory(images), "autoencoder": Memory(network=network)})
        rows = [Row(key=f"k{n:06d}") for n in range(count)]
        shard = ShardPlan(name="00000", split="train", count=count)

        def whole(rows: list[Any] = rows, shard: Any = shard, make: Any = make) -> float:
            start = time.perf_counter()
            done = sum(sample.reject is None for sample in make(shard, rows))
            return done / (time.perf_counter() - start)

        list(make(shard, rows[: 4 * batch]))  # compiles
        with busy() as shares:
            rates = [whole() for _ in range(3)]
        yield Result(
            name=f"encode/gpu_sd_shape_{side}",
            value=statistics.median(rates),
            unit="images/s",
            target=target,
            better="higher",
            against="ceiling of this network in bf16 by its FLOP: 2,897 at 256 px, 707 at 512 px",
            n=len(rates),
            spread=(min(rates), max(rates)),
            note="bf16, channels-last, compiled; JPEG bytes to npy bytes, model loaded",
        )
        inner = shares[1:-1] or shares
        if inner:
            yield Result(
                name=f"encode/gpu_busy_{side}",
                value=statistics.fmean(inner),
                unit="of the time",
                target=0.9,
                better="higher",
                n=len(inner),
                note="torch.cuda.utilization(), five looks a second over three passes",
            )
        with contextlib.suppress(ImportError):
            his = theirs(config, network.cpu().float()).cuda()
            run = script(images[: count // 8], his, batch=batch, device="cuda")
            run()
            rate = run()
            yield Result(
                name=f"encode/gpu_over_diffusers_script_{side}",
                value=statistics.median(rates) / rate,
                unit="ratio",
                target=2.0,
                better="higher",
                against=f"script: {rate:.4g} images/s",
                note="a plain script in float32, 8 DataLoader workers",
            )
        decoder = network.cuda().bfloat16().to(memory_format=torch.channels_last)
        compiled = torch.compile(decoder.decode, dynamic=False)
        place = {"device": "cuda", "dtype": torch.bfloat16}
        run = decoding(compiled, side, GPU_BATCH[side] // 2, calls=8, **place)
        run()
        yield Result(
            name=f"encode/gpu_decode_{side}",
            value=statistics.median(run() for _ in range(3)),
            unit="images/s",
            better="higher",
            note="bf16, channels-last, compiled",
        )
        torch._dynamo.reset()
