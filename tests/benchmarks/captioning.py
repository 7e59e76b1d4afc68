"""A CoCa trained in the line on emoji, against the best caption that never looks; three seeds."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.results import Result

SEEDS = (0, 1, 2)
DRAWS = 2_000
"""Of the bootstrap."""


def bench_captioning(seeds: Sequence[int] = SEEDS, flags: Sequence[str] = ()) -> Iterator[Result]:
    """F1 of the words in captions of held-out emoji over that of the best constant caption.

    The constant caption is the one of all training captions that scores highest on the test images
    themselves, which no captioner could know; so are the words that no further word would make better.
    """
    import json

    import numpy as np

    from cluster.storage import Storage
    from pipelines import config
    from pipelines.dataset import Dataset, read_manifest
    from pipelines.pipeline import plan, run
    from pipelines.scoring.captions import best_constant, best_words, word_f1

    scores, seconds, shown = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        store = Storage.at(Path(folder))
        for seed in seeds:
            recipe = config.load("captioner", [*flags, "--model.seed", str(seed)])
            start = time.process_time()
            run(recipe, store, executor="inline", record=False)
            seconds.append(time.process_time() - start)
            planned = plan(recipe, store)
            names, said = (Dataset.open(_place(planned[name])) for name in ("names", "captions"))
            references, candidates, captions = {}, [], {}
            for shard in names.shards:
                for record in names.read(shard.name, columns=("txt",)):
                    text = record.members["txt"].decode()
                    if shard.split == "train":
                        candidates.append(text)
                    elif shard.split == "test":
                        references[record.key] = [text]
            for shard in said.shards:
                if shard.split == "test":
                    for record in said.read(shard.name, columns=("txt",)):
                        captions[record.key] = record.members["txt"].decode()
            keys = sorted(references)
            scores.append([word_f1(captions.get(key, ""), references[key]) for key in keys])
            if seed == seeds[0]:
                shown = {key: (captions.get(key, ""), references[key][0]) for key in keys[:20]}
                curve = read_manifest(_place(planned["model"]))["snapshot"]["curve"]
    wanted = [references[key] for key in keys]
    constant, at_most = best_constant(candidates, wanted)
    words, with_words = best_words(wanted)
    differences = np.array(scores).mean(0) - [word_f1(constant, texts) for texts in wanted]
    chance = np.random.default_rng(0)
    means = differences[chance.integers(0, len(keys), (DRAWS, len(keys)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    by_seed = [float(np.mean(one)) for one in scores]
    yield Result(
        name="train/captioner_word_f1_over_best_constant",
        value=float(differences.mean()),
        unit="F1",
        target=0.0,
        better="higher",
        against=f"{constant!r} of every image, chosen on the test images: {at_most:.3f}",
        n=len(keys),
        spread=(float(low), float(high)),
        note=f"95 % bootstrap interval over images of the mean of {len(seeds)} seeds",
        extra={"seeds": by_seed, "captions": json.loads(json.dumps(shown)), "curve": curve},
    )
    yield Result(
        name="train/captioner_word_f1",
        value=float(np.mean(by_seed)),
        unit="F1",
        target=with_words,
        better="higher",
        against=f"the words {words!r}, put together on the test images: {with_words:.3f}",
        n=len(seeds),
        spread=(min(by_seed), max(by_seed)),
        note=f"{len(keys)} test emoji by near-duplicate cluster; {np.median(seconds):.0f} s of one core each",
    )


def _place(stage: Any) -> Any:
    assert stage.folder is not None
    return stage.folder
