"""What the embed stage costs over its models' bare arithmetic, and what captions' vectors take in a store.

Pairs are measured in turn, model loaded, in one process; the stage reads its shard and writes a new one.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.benchmarks.ratios import interleaved, ratio
from tests.benchmarks.results import Result

SCALE = float(os.environ.get("EMBEDDING_SCALE", "1"))
"""Below 1 for a trial."""
SHAPES = {"ViT-B-32": (128, 16_384, 89_600.0), "ViT-L-14": (16, 2_048, 4_876.0)}
"""open_clip's name -> images of one timed pass on a CPU, on a GPU; images/s of an H100 at its bf16 peak."""
CAPTIONS = {False: 1_024, True: 65_536}
"""Captions of one timed pass: on a CPU, on a GPU."""
WORDS = ("mean 10.3 and sd 4.5 words", 10.3, 4.5)
"""A caption of CC3M (Sharma et al., 2018, Table 1), here as a lognormal."""
TOKENS_A_WORD, SPECIAL = 1.3, 2
"""Subwords of English in CLIP's and BERT's vocabularies; start and end."""
TARGET = 0.95
WORD_LIST = "a the of in on with red blue small old man woman dog cat house street tree water sky night"


def bench_embed_text() -> Iterator[Result]:
    """Captions/s of the stage over the encoder's forward calls on the same tokens in memory."""
    import torch

    from pipelines.embedders import MiniLM, OpenClipTexts

    gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = _checkpoint("ViT-B-32", Path(folder) / "clip")
        data = _line(Path(folder) / "line", captions=_count(CAPTIONS[gpu]), images=0)
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
            images = _count(many if gpu else few)
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


def bench_embed_storage() -> Iterator[Result]:
    """Bytes of captions' vectors an image, tar and index and all, over fp16 states padded to the encoder's
    longest text, without anything around them."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = _embedded_emoji(Path(folder))
        record = dataset.manifest["statistics"]["text"]
        images, captions = len(dataset), record["captions"]
        given = sum(len(json.loads(data)) for data in _members(dataset, "text.json")) / images
        size = _size(dataset) / images
    for padded in (77, 128):
        yield _stored(
            f"data/text_bytes_emoji3d_minilm_over_padded_{padded}",
            size,
            given * padded * record["width"] * 2,
            f"{images} images, {given:.1f} captions each, {captions} distinct; MiniLM, 384 wide",
        )
    count, shard = _count(100_000), min(5_000, _count(100_000))
    for name, width, pooled, padded in (
        ("clip_l", 768, 768, 77),
        ("t5_xxl", 4096, 4096, 77),
        ("minilm", 384, 384, 128),
    ):
        size = _synthetic(count, shard, width, pooled)
        yield _stored(
            f"data/text_bytes_cc3m_{name}_over_padded_{padded}",
            size / count,
            padded * width * 2,
            f"{count:,} captions, {WORDS[0]} (CC3M), {TOKENS_A_WORD} tokens a word + {SPECIAL}; {width} wide",
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

    texts = list(itertools.islice(_captions(), captions))
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


def _captions() -> Iterator[str]:
    """Distinct, of common words; lengths as `WORDS` says."""
    chance = random.Random(0)
    words = WORD_LIST.split()
    for n in itertools.count():
        yield " ".join([*chance.choices(words, k=_length(chance) - 1), f"{n}"])


def _length(chance: random.Random) -> int:
    import math

    spread = math.sqrt(math.log(1 + (WORDS[2] / WORDS[1]) ** 2))
    return max(1, round(chance.lognormvariate(math.log(WORDS[1]) - spread**2 / 2, spread)))


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


class _Lengths:
    """What stands for a text encoder: vectors of nothing, as many as the text has tokens."""

    kind = "random"

    def __init__(self, width: int, pooled: int) -> None:
        self.width, self.pooled_width = width, pooled

    def build(self, *, micro_batch: int) -> _Lengths:
        return self

    def encode(self, texts: list[str]) -> list[Any]:
        import numpy as np

        from pipelines.embedders.embedding import TextEmbedding

        found = []
        for text in texts:
            tokens = min(SPECIAL + round(TOKENS_A_WORD * (text.count(" ") + 1)), 77)
            states = np.zeros((tokens, self.width), np.float16)
            found.append(TextEmbedding(states, np.zeros(self.pooled_width, np.float16)))
        return found


def _synthetic(count: int, shard: int, width: int, pooled: int) -> int:
    """Bytes of shards and indices of `count` captions, one each image; a shard at a time is on the disk."""
    from cluster.storage import Storage
    from pipelines.embedders.making import EmbedShard
    from pipelines.shards import canonical, write_shard
    from pipelines.stage import Row, ShardPlan

    texts, total = _captions(), 0
    for _ in range(0, count, shard):
        keys = {f"{n:08d}": text for n, text in enumerate(itertools.islice(texts, shard))}
        records = [
            SimpleNamespace(key=k, members={"captions.json": canonical([{"text": t, "weight": 1.0}])})
            for k, t in keys.items()
        ]
        source = SimpleNamespace(read=lambda *_, records=records: records)
        make = EmbedShard(
            captions=source,
            images=None,
            text=_Lengths(width, pooled),
            image=None,
            store="cached",
            tag="",
            similarity=False,
            micro_batch=16,
        )
        rows = [Row(key=key) for key in keys]
        with tempfile.TemporaryDirectory() as folder:
            plan = ShardPlan(name="00000", split="train", count=len(rows))
            pairs = zip(rows, make(plan, rows), strict=True)
            write_shard(Storage.at(folder), "00000", pairs, split="train", work=lambda row: "0" * 32)
            total += sum(file.stat().st_size for file in Path(folder).iterdir())
    return total


def _embedded_emoji(folder: Path) -> Any:
    """The quickstart's captions, embedded; what else the recipe has is not run."""
    from cluster.storage import Storage
    from pipelines import config
    from pipelines.dataset import Dataset
    from pipelines.pipeline import plan, run

    recipe, store = config.load("quickstart", []), Storage.at(folder)
    run(recipe, store, executor="inline", until="text", record=False)
    place = plan(recipe, store)["text"].folder
    assert place is not None
    return Dataset.open(place)


def _members(dataset: Any, column: str) -> Iterator[bytes]:
    for shard in dataset.shards:
        for record in dataset.read(shard.name, columns=(column,)):
            yield record.members[column]


def _size(dataset: Any) -> int:
    names = [name for shard in dataset.shards for name in (f"{shard.name}.tar", f"{shard.name}.parquet")]
    return sum(dataset.storage.size(name) for name in names)


def _stored(name: str, mine: float, padded: float, note: str) -> Result:
    return Result(
        name=name,
        value=mine / padded,
        unit="ratio",
        target=0.25,
        better="lower",
        against=f"padded fp16: {padded:,.0f} bytes an image; stored: {mine:,.0f}, tar and index counted",
        note=note,
    )


def _count(number: int) -> int:
    return max(8, int(number * SCALE))


def _device() -> str:
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def _wait(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()
