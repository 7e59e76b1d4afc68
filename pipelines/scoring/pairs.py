"""The evaluation of a CLIP on held-out pairs."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines import pictures
from pipelines.scoring import retrieval
from pipelines.stage import KEEP

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipelines.stage import Session
    from pipelines.stages.evaluate_clip import EvaluateClip


def evaluate(stage: EvaluateClip, session: Session) -> dict[str, Any]:
    """One run of the stage `evaluate_clip`.

    Raises:
        ValueError: the snapshot is no CLIP, or the split has fewer than two pairs.
    """
    from pipelines.embedders import OpenClipImages, OpenClipTexts

    snapshot = session.inputs["model"]
    if snapshot.record.get("task") != "clip":
        raise ValueError(
            f"{snapshot.storage.url} is no CLIP: give `model` a train_clip stage, or a snapshot of one."
        )
    images, captions = pairs(stage, session.inputs)
    path = str(snapshot.local())
    seen = OpenClipImages(path=path).build(micro_batch=stage.micro_batch).encode(images)
    texts = OpenClipTexts(path=path).build(micro_batch=stage.micro_batch).encode(captions)
    said = np.stack([one.pooled for one in texts])
    figures = retrieval.figures(seen, said, captions)
    count = len(captions)
    bounded = {
        name: {"value": value, "interval": retrieval.interval(value, count)}
        if "_to_" in name
        else {"value": value}
        for name, value in figures.items()
    }
    metrics = {"split": stage.split, "count": count, "measures": bounded}
    session.output.replace("metrics.json", json.dumps(metrics, indent=1, sort_keys=True).encode())
    session.output.replace("retrieved.png", _picture(stage, images, captions, seen, said))
    for name, value in figures.items():
        session.event({"kind": "metrics", "step": 0, "values": {f"{stage.split}_{name}": value}})
    return {**metrics, "model": snapshot.digest()}


def pairs(stage: EvaluateClip, inputs: Any) -> tuple[list[Image], list[str]]:
    """Images and first captions of the split, which and in which order by seed and keys alone."""
    from PIL import Image as Pillow

    from pipelines.arrays import pixels
    from pipelines.training.tasks.rows import Rows

    datasets = {"images": inputs["images"], "captions": inputs["captions"]}
    required = {"images": "image", "captions": "captions.json"}
    if inputs.get("keep") is not None:
        datasets, required = {**datasets, KEEP: inputs["keep"]}, {**required, KEEP: KEEP}
    rows = Rows(datasets, split=stage.split, required=required, optional=True)
    if len(rows) < 2:
        raise ValueError(f"The {stage.split} split has {len(rows)} captioned images; retrieval needs two.")

    def rank(number: int) -> bytes:
        shard, place = rows.place(number)
        key = inputs["images"].index(shard).keys[place]
        return hashlib.sha256(f"{stage.seed}/{key}".encode()).digest()

    chosen = sorted(range(len(rows)), key=rank)[: stage.count]
    captions = [json.loads(rows.read(n, "captions", "captions.json"))[0]["text"] for n in chosen]
    return [Pillow.fromarray(pixels(rows.read(n, "images", "image"))) for n in chosen], captions


def _picture(
    stage: EvaluateClip, images: list[Image], captions: list[str], seen: np.ndarray, said: np.ndarray
) -> bytes:
    """Images over the captions that are nearest to them."""
    cosines = seen[: stage.shown].astype(np.float64) @ said.T.astype(np.float64)
    nearest = [captions[n] for n in cosines.argmax(1)]
    return pictures.grid([images[: stage.shown]], column_labels=nearest)
