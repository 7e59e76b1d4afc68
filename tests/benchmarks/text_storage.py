"""What captions' vectors take in a store, beside padded ones; and captions of realistic lengths."""

from __future__ import annotations

import itertools
import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.benchmarks.results import Result

SCALE = float(os.environ.get("EMBEDDING_SCALE", "1"))
"""Below 1 for a trial."""
WORDS = ("mean 10.3 and sd 4.5 words", 10.3, 4.5)
"""A caption of CC3M (Sharma et al., 2018, Table 1), here as a lognormal."""
TOKENS_A_WORD, SPECIAL = 1.3, 2
"""Subwords of English in CLIP's and BERT's vocabularies; start and end."""
WORD_LIST = "a the of in on with red blue small old man woman dog cat house street tree water sky night"


def bench_embed_storage() -> Iterator[Result]:
    """Bytes of captions' vectors an image, tar and index and all, over fp16 states padded to the encoder's
    longest text, without anything around them."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = _embedded_emoji(Path(folder))
        record = dataset.manifest["statistics"]["text"]
        images, distinct = len(dataset), record["captions"]
        given = sum(len(json.loads(data)) for data in _members(dataset, "text.json")) / images
        size = _size(dataset) / images
    for padded in (77, 128):
        yield _stored(
            f"data/text_bytes_emoji3d_minilm_over_padded_{padded}",
            size,
            given * padded * record["width"] * 2,
            f"{images} images, {given:.1f} captions each, {distinct} distinct; MiniLM, 384 wide",
        )
    total = count(100_000)
    shard = min(5_000, total)
    for name, width, pooled, padded in (
        ("clip_l", 768, 768, 77),
        ("t5_xxl", 4096, 4096, 77),
        ("minilm", 384, 384, 128),
    ):
        size = _synthetic(total, shard, width, pooled)
        yield _stored(
            f"data/text_bytes_cc3m_{name}_over_padded_{padded}",
            size / total,
            padded * width * 2,
            f"{total:,} captions, {WORDS[0]} (CC3M), {TOKENS_A_WORD} tokens a word + {SPECIAL}; {width} wide",
        )


def captions() -> Iterator[str]:
    """Distinct, of common words; lengths as `WORDS` says."""
    chance = random.Random(0)
    words = WORD_LIST.split()
    for n in itertools.count():
        yield " ".join([*chance.choices(words, k=_length(chance) - 1), f"{n}"])


def _length(chance: random.Random) -> int:
    import math

    spread = math.sqrt(math.log(1 + (WORDS[2] / WORDS[1]) ** 2))
    return max(1, round(chance.lognormvariate(math.log(WORDS[1]) - spread**2 / 2, spread)))


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

    texts, total = captions(), 0
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


def count(number: int) -> int:
    return max(8, int(number * SCALE))
