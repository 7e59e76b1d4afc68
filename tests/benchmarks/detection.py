"""Bags found among garments by a model that has never seen one: the recipe from its raw files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.results import Result


def bench_detection() -> Iterator[Result]:
    """AUROC of each score, the baseline without diffusion among them."""
    from cluster.storage import Storage
    from pipelines import config
    from pipelines.dataset import read_manifest
    from pipelines.pipeline import plan, run

    recipe = config.load("fashion_mnist_anomaly", [])
    with tempfile.TemporaryDirectory() as folder:
        store = Storage.at(Path(folder))
        run(recipe, store, executor="inline", record=False)
        place = plan(recipe, store)["strange"].folder
        assert place is not None
        found = read_manifest(place)["detection"]
    baseline = found["auroc"]["neighbours"]["value"]
    for name, area in found["auroc"].items():
        yield Result(
            name=f"core/anomaly_{name}",
            value=area["value"],
            unit="AUROC",
            # What costs a model and a training should beat what costs neither.
            target=None if name == "neighbours" else baseline,
            better="higher",
            against=f"nearest neighbour in EfficientNet-Lite0 features, no diffusion: {baseline:.3f}",
            n=found["anomalous"] + found["normal"],
            spread=(area["low"], area["high"]),
            note="95 % interval over images; bags, unseen in training, among nine other garments",
        )
