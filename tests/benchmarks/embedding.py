"""What the embed stage costs over its models' bare arithmetic.

Pairs are measured in turn, model loaded, in one process; the stage reads its shard and writes a new one.
"""

from __future__ import annotations

import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.ratios import interleaved, ratio
from tests.benchmarks.results import Result
from tests.benchmarks.text_storage import captions as wordings
from tests.benchmarks.text_storage import count

SHAPES = {"ViT-B-32": (128, 16_384, 89_600.0), "ViT-L-14": (16, 2_048, 4_876.0)}
"""open_clip's name -> images of one timed pass on a CPU, on a GPU; images/s of an H100 at its bf16 peak."""
CAPTIONS = {False: 1_024, True: 65_536}
"""Captions of one timed pass: on a CPU, on a GPU."""
TARGET = 0.95


def bench_embed_text() -> Iterator[Result]:
    """Captions/s of the stage over the encoder's forward calls on the same tokens in memory."""
    import torch

    from pipelines.embedders import MiniLM, OpenClipTexts

    gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = _checkpoint("ViT-B-32", Path(folder) / "clip")
        data = _line(Path(folder) / "line", captions=count(CAPTIONS[gpu]), images=0)
        for name, config in (("minilm", MiniLM()), ("clip_text_b32", OpenClipTexts(path=str(checkpoint)))):
            rates = interleaved(
                *_text_pair(config, data, Path(folder) / name, micro_batch=256 if gpu else 16)
            )
            yield ratio(f"encode/embed_{name}_over_bare_{_device()}", "captions/s", TARGET, *rates)


def bench_embed_images() -> Iterator[Result]:
    """Images/s of the stage over the network on a batch in memory, and beside a script as users write it."""
    import torch

    from pipelines.embedders import OpenClipImages

    gpu = torch.cuda.is_available()
    for shape, (few, many, peak) in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = _checkpoint(shape, Path(folder) / "clip")
            images = count(many if gpu else few)
            data = _line(Path(folder) / "line", captions=images, images=images)
            config = OpenClipImages(path=str(checkpoint))
            micro_batch = 256 if gpu else 8
            stage, bare = _image_pair(config, data, Path(folder) / "out", micro_batch=micro_batch)
            script = _script(checkpoint, data, images, micro_batch=micro_batch)
            name = f"encode/embed_{shape.lower().replace('-', '')}"
            mine, theirs = interleaved(stage, bare)
            yield ratio(f"{name}_over_bare_{_device()}", "images/s", TARGET, mine, theirs)
            mine, theirs = interleaved(stage, script)
            beside = ratio(f"{name}_over_script_{_device()}", "images/s", 1.0, mine, theirs)
            plain = f"a plain open_clip loop: {statistics.median(theirs):.4g} images/s"
            yield replace(beside, against=plain)
            if gpu:
                rate = statistics.median(mine)
                yield Result(
                    name=f"{name}_share_of_peak",
                    value=rate / peak,
                    unit="of peak",
                    better="higher",
                    against=f"{peak:,.0f} images/s at an H100's bf16 peak; stage {rate:,.0f}",
                )


def _text_pair(
    config: Any, data: Any, out: Path, *, micro_batch: int
) -> tuple[Callable[[], float], Callable[[], float]]:
    from pipelines.embedders import embedding
    from pipelines.stages.embed import Embed

    stage = Embed(captions="captions", text=config, micro_batch=micro_batch)
    make: Any = stage.open(data.inputs)
    calls: list[Callable[[], Any]] = []

    def whole() -> float:
        return _pass(stage, make, data, out)

    # The very calls that the stage makes, recorded once.
    encoder: Any = make.text
    original = encoder._forward

    def recording(*given: Any) -> Any:
        calls.append(lambda: original(*given))
        return original(*given)

    encoder._forward = recording
    encoder.encode(sorted(data.texts))
    encoder._forward = original
    device = embedding.device_at_hand()

    def bare() -> float:
        start = time.perf_counter()
        for call in calls:
            call()
        _wait(device)
        return len(data.texts) / (time.perf_counter() - start)

    return whole, bare


def _image_pair(
    config: Any, data: Any, out: Path, *, micro_batch: int
) -> tuple[Callable[[], float], Callable[[], float]]:
    import torch

    from pipelines.embedders.embedding import device_at_hand
    from pipelines.stages.embed import Embed

    stage = Embed(captions="captions", images="images", image=config, store="online", micro_batch=micro_batch)
    make: Any = stage.open(data.inputs)
    device, network = device_at_hand(), make.image._visual
    size = getattr(network, "image_size", 224)
    side = size if isinstance(size, int) else size[0]
    pixels = torch.randn(micro_batch, 3, side, side, device=device)
    runs = -(-len(data.texts) // micro_batch)

    def bare() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for _ in range(runs):
                network(pixels)
        _wait(device)
        return runs * micro_batch / (time.perf_counter() - start)

    return lambda: _pass(stage, make, data, out), bare


def _script(checkpoint: Path, data: Any, count: int, *, micro_batch: int) -> Callable[[], float]:
    """As open_clip's README has it, over files in a folder."""
    import open_clip
    import torch
    from PIL import Image

    loaded: Any = open_clip.create_model_and_transforms(f"local-dir:{checkpoint}")
    model, _, preprocess = loaded
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    files = [record.members["image"] for record in data.inputs["images"].read("00000")]

    def run() -> float:
        start = time.perf_counter()
        for first in range(0, count, micro_batch):
            batch = torch.stack(
                [preprocess(Image.open(io.BytesIO(file))) for file in files[first : first + micro_batch]]
            )
            with torch.no_grad():
                features = model.encode_image(batch.to(device))
                features /= features.norm(dim=-1, keepdim=True)
            features.cpu().numpy()
        return count / (time.perf_counter() - start)

    return run


def _pass(stage: Any, make: Any, data: Any, out: Path) -> float:
    """Captions (or images) a second of the whole shard, read, embedded and written."""
    from cluster.storage import Storage
    from pipelines.embedders.making import _Remembered
    from pipelines.shards import write_shard

    make.known = _Remembered(0)  # or the second pass would embed nothing
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        start = time.perf_counter()
        (shard,) = stage.plan(data.inputs)
        rows = stage.rows(data.inputs, shard)
        write_shard(Storage.at(folder), shard.name, zip(rows, make(shard, rows), strict=True), split="train")
        return len(rows) / (time.perf_counter() - start)


@dataclass(frozen=True)
class _Line:
    inputs: dict[str, Any]
    texts: list[str]


def _line(folder: Path, *, captions: int, images: int) -> _Line:
    """A shard of captions of realistic lengths, and of emoji, 256 px, as JPEG."""
    from PIL import Image

    from cluster.storage import Storage
    from pipelines.dataset import Dataset, describe, write_manifest
    from pipelines.shards import canonical, write_shard
    from pipelines.stage import Row, Sample

    texts = list(itertools.islice(wordings(), captions))
    keys = [f"{n:08d}" for n in range(captions)]

    def written(name: str, members: Callable[[int], dict[str, bytes]]) -> Dataset:
        storage = Storage.at(folder / name)
        pairs = ((Row(key=key), Sample(key=key, members=members(n))) for n, key in enumerate(keys))
        write_manifest(storage, describe([write_shard(storage, "00000", pairs, split="train")]))
        return Dataset.open(storage)

    files = list[bytes]()
    if images:
        for data in itertools.islice(_emoji(), 64):
            buffer = io.BytesIO()
            Image.open(io.BytesIO(data)).convert("RGB").resize((256, 256)).save(buffer, "JPEG", quality=95)
            files.append(buffer.getvalue())
    said = written("captions", lambda n: {"captions.json": canonical([{"text": texts[n], "weight": 1.0}])})
    shown = written("images", lambda n: {"jpg": files[n % len(files)]}) if images else None
    return _Line({"captions": said, "images": shown}, texts)


def _emoji() -> Iterator[bytes]:
    import zipfile

    with zipfile.ZipFile("pipelines/data/emoji3d.zip") as file:
        for name in sorted(file.namelist()):
            if name.endswith((".png", ".webp", ".jpg")):
                yield file.read(name)


def _checkpoint(shape: str, folder: Path) -> Path:
    """One of open_clip's own architectures with random weights."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = open_clip.get_model_config(shape)
    state = open_clip.create_model(shape).state_dict()
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return folder


def _device() -> str:
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def _wait(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()
