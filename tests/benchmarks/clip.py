"""Retrieval on held-out emoji by a CLIP that was trained in the line, beside what needs no training."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.results import Result

SEEDS = (0, 1, 2)
"""Of the split and of the training alike: three other held-out sets."""
TARGET = 0.45


def bench_clip() -> Iterator[Result]:
    """Recall at 1 and 10 and the area under the ROC curve, over three seeds; one name for each.

    Among 200 held-out pairs, or as many as a seed's test split has; no setting was chosen on them.
    """
    from cluster.storage import Storage
    from pipelines import config
    from pipelines.dataset import read_manifest
    from pipelines.pipeline import plan, run
    from pipelines.scoring.retrieval import interval

    found: list[dict[str, float]] = []
    untrained: list[float] = []
    seconds: list[float] = []
    counts: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Storage.at(Path(folder))
        for seed in SEEDS:
            flags = ["--images.seed", str(seed), "--clip.seed", str(seed)]
            recipe = config.load("clip", flags)
            run(recipe, store, executor="inline", until="report", record=False)
            planned = plan(recipe, store)
            report, clip = planned["report"].folder, planned["clip"].folder
            assert report is not None
            assert clip is not None
            metrics = json.loads(report.read("metrics.json"))
            counts.append(int(metrics["count"]))
            found.append({name: m["value"] for name, m in metrics["measures"].items()})
            seconds.append(float(read_manifest(clip)["execution"]["seconds"]))
            untrained.append(named(planned["report"].open(), planned["report"].stage))

    for name in ("image_to_text_r1", "text_to_image_r1", "image_to_text_r10", "text_to_image_r10", "auc"):
        values = [one[name] for one in found]
        value = statistics.mean(values)
        chance = {"auc": 0.5}.get(name, (10 if name.endswith("10") else 1) / min(counts))
        first = name == "image_to_text_r1"
        yield Result(
            name=f"line/clip_{name}",
            value=value,
            unit="share",
            target=TARGET if first else None,
            better="higher",
            against=f"chance {chance:g}"
            + (
                f"; ImageNet's class names by MiniLM, untrained: {statistics.mean(untrained):.3g}"
                if first
                else ""
            ),
            n=len(values),
            spread=(min(values), max(values)) if name == "auc" else interval(value, sum(counts)),
            note=f"emoji3d, {counts} test pairs that share no near-duplicate cluster with training, found by"
            f" `text`; {'smallest and largest' if name == 'auc' else '95 % interval'}",
            extra={"seeds": values, "seconds": seconds},
        )


def named(inputs: Any, stage: Any) -> float:
    """Recall at 1, image to text, of an image as the mean of its ten likeliest ImageNet classes' names in
    MiniLM's space, weighted by their probabilities (Norouzi et al., 2014)."""
    import numpy as np
    import torch

    from diffusion.metrics.features import EfficientNetLite0
    from pipelines import weights
    from pipelines.captioners.tags import class_names
    from pipelines.embedders import MiniLM
    from pipelines.embedders.efficientnet import network_input
    from pipelines.scoring.pairs import pairs
    from pipelines.scoring.retrieval import figures

    images, captions = pairs(stage, inputs)
    network, texts = EfficientNetLite0(weights.load("efficientnet-lite0")), MiniLM().build()
    names, said = (
        np.stack([one.pooled for one in texts.encode(list(words))]).astype(np.float32)
        for words in (class_names(), captions)
    )
    seen = []
    with torch.inference_mode():
        for image in images:
            likely = network.logits(network_input(image)).softmax(-1)[0].topk(10)
            seen.append(likely.values.numpy() @ names[likely.indices.numpy()])
    return figures(np.stack(seen), said, captions)["image_to_text_r1"]
