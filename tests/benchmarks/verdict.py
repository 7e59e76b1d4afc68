"""What a verdict is worth: on planted truths, and on the recipe that ends in one. Needs Fashion-MNIST."""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.results import Result

if TYPE_CHECKING:
    import numpy as np


REPETITIONS = 4
"""Of the planted truths, each with other training images."""
SEEDS = 5
HEAD, RATIO, FILLED = 40, 4, 200
"""Real training images of the first class, how many times fewer of the last, what each is filled up to."""
TESTED = 4000
"""Test images, the same in every repetition."""
OFFERS = ("noise", "wrong class", "unseen real")
GENERATIVE_SEEDS = 3


def bench_planted_truths() -> Iterator[Result]:
    """How often each thing offered as generated images earns "benefit"."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(repetition, range(REPETITIONS)))
    earned = {offer: [said[offer] == "benefit" for said in found] for offer in OFFERS}
    harm = {offer: sum(said[offer] == "harm" for said in found) for offer in OFFERS}
    told = "; ".join(
        f"{offer}: {sum(earned[offer])} benefit, {harm[offer]} harm of {REPETITIONS}" for offer in OFFERS
    )
    note = f"other training images each time, {SEEDS} seeds an arm, {TESTED:,} test images"
    false = [*earned["noise"], *earned["wrong class"]]
    yield Result(
        name="verdict/false_benefit_rate",
        value=sum(false) / len(false),
        unit="share",
        better="lower",
        target=0.05,
        against=told,
        n=len(false),
        note=note,
    )
    yield Result(
        name="verdict/true_benefit_rate",
        value=sum(earned["unseen real"]) / REPETITIONS,
        unit="share",
        better="higher",
        target=0.9,
        against=told,
        n=REPETITIONS,
        note=note,
    )


def bench_verdict() -> Iterator[Result]:
    """The recipe from raw files on, with models that differ in their seed alone."""
    from cluster.mapping import RayExecutor
    from cluster.session import RaySession
    from cluster.storage import Storage
    from pipelines import config
    from pipelines.pipeline import plan, run

    verdicts = []
    with tempfile.TemporaryDirectory() as folder:
        store = Storage.at(Path(folder))
        executor = RayExecutor(RaySession(dashboard=False))
        try:
            for seed in range(GENERATIVE_SEEDS):
                flags = [f"--{stage}.seed={seed}" for stage in ("model", "pictures", "verdict")]
                recipe = config.load("fashion_mnist_longtail", flags)
                run(recipe, store, executor=executor, record=False)
                report: Any = plan(recipe, store)["verdict"].folder
                verdicts.append(_report(report))
        finally:
            executor.close()
    for name in ("real", "class_balanced", "balanced_softmax"):
        gains = [said["gains"][name] for said in verdicts]
        accuracies = {
            arm: statistics.mean(said["arms"][arm]["macro"]["value"] for said in verdicts)
            for arm in ("augmented", name)
        }
        intervals = ", ".join(f"{g['low']:+.3f} to {g['high']:+.3f}" for g in gains)
        yield Result(
            name=f"verdict/gain_over_{name}",
            value=statistics.mean(gain["value"] for gain in gains),
            unit="macro accuracy",
            better="higher",
            against=f"real + generated: {accuracies['augmented']:.3f}, {name}: {accuracies[name]:.3f}",
            n=len(gains),
            spread=(min(g["value"] for g in gains), max(g["value"] for g in gains)),
            note=f"{len(gains)} models, smallest and largest; 95 % intervals of each over "
            f"{verdicts[0]['n']['seeds']} classifier seeds and 10,000 test images: {intervals}; verdicts: "
            f"{', '.join(said['verdict'] for said in verdicts)}",
        )


def repetition(number: int) -> dict[str, str]:
    """Offer -> its verdict, with training images of this repetition."""
    import numpy as np
    import torch

    from diffusion.config import OptimizationConfig
    from pipelines.sources.long_tail import LongTail
    from pipelines.stages.judge import Judge
    from pipelines.verdict.arms import ARMS
    from pipelines.verdict.examples import Examples
    from pipelines.verdict.ruling import ruling
    from pipelines.verdict.trial import answers, trained

    torch.set_num_threads(1)
    stage = Judge(
        augmented="none",
        size=16,
        width=16,
        batch=32,
        images_seen=9_600,
        optimization=OptimizationConfig(lr=3e-3, weight_decay=0.05, warmup=960, cooldown=4_800, ema=0.05),
        flips=False,
    )
    draws = np.random.default_rng(number)
    images, labels = fashion("train")
    mine, others = [], []
    for c, count in enumerate(LongTail(head=HEAD, ratio=RATIO).counts(10)):
        order = draws.permutation(np.flatnonzero(labels == c))
        mine.append(order[:count])
        others.append(order[count:FILLED])
    own, unseen = np.concatenate(mine), np.concatenate(others)
    test_images, test_labels = fashion("t10k")
    test = Examples(images=test_images[:TESTED], labels=test_labels[:TESTED], weights=np.ones(TESTED))

    def said(arm: Any, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
        examples = Examples(images=pixels, labels=classes, weights=np.ones(len(classes)))
        return np.array(
            [
                answers(
                    trained(stage, arm, examples, classes=10, seed=SEEDS * number + n), test, micro_batch=500
                )
                for n in range(SEEDS)
            ]
        )

    noise = draws.integers(0, 256, images[unseen].shape, dtype=np.uint8)
    wrong = (labels[unseen] + draws.integers(1, 10, len(unseen))) % 10
    offers = {
        "noise": (noise, labels[unseen]),
        "wrong class": (images[unseen], wrong),
        "unseen real": (images[unseen], labels[unseen]),
    }
    without = {arm.name: said(arm, images[own], labels[own]) for arm in ARMS[:3]}
    verdicts = {}
    for offer, (pixels, classes) in offers.items():
        both = np.concatenate([images[own], pixels]), np.concatenate([labels[own], classes])
        found = ruling(
            {**without, "augmented": said(ARMS[3], *both)},
            test.labels,
            classes=[str(c) for c in range(10)],
            rare=[7, 8, 9],
            bootstrap=stage.bootstrap,
            seed=0,
        )
        verdicts[offer] = found["verdict"]
    return verdicts


@functools.cache
def fashion(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images as uint8 [n, 16, 16, 3], halved behind a black border, and their classes."""
    import numpy as np

    from pipelines.sources.idx import IdxFiles, IdxSource

    files = IdxFiles(IdxSource().path)
    pixels, height, width = files._load_images("train" if split == "train" else "test")
    gray = np.frombuffer(pixels, np.uint8).reshape(-1, height, width)
    padded = np.pad(gray, ((0, 0), (2, 2), (2, 2))).astype(np.float32)
    halved = padded.reshape(len(gray), 16, 2, 16, 2).mean((2, 4)).astype(np.uint8)
    labels = np.array(files.labels("train" if split == "train" else "test"), np.int64)
    return np.repeat(halved[..., None], 3, axis=-1), labels


def _report(folder: Any) -> dict[str, Any]:
    from pipelines.dataset import read_manifest

    return read_manifest(folder)["report"]["verdict"]
