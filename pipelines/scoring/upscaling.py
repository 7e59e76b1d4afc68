"""The evaluation of upscalers: workers enlarge and measure, this process compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.storage import Storage
from pipelines import pictures
from pipelines.scoring.measure import Place

if TYPE_CHECKING:
    from diffusion.config import SamplerConfig
    from pipelines.dataset import Dataset
    from pipelines.stage import Session
    from pipelines.stages.evaluate_upscaler import EvaluateUpscaler

BICUBIC = "bicubic"
MEASURES = {
    "lpips": ("LPIPS-HED", "less is better"),
    "psnr": ("PSNR of luma, dB", "more is better"),
    "consistency": ("PSNR shrunk again, dB", "more is better"),
}
"""Name -> what it is, and which way is better."""
CHUNK = 2
"""Micro-batches of a job."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Some images, enlarged by one method."""

    method: int
    """Position among the models; -1 is bicubic."""
    start: int
    """Position of the first among the places."""
    places: tuple[Place, ...]


@dataclass(frozen=True, kw_only=True)
class Enlarge:
    """What `Session.map` is given; a worker opens each model once."""

    images: str
    models: tuple[str, ...]
    factor: int
    sampler: SamplerConfig
    level: float
    seed: int
    micro_batch: int
    shown: int

    def __call__(self) -> Callable[[Job], tuple[Job, np.ndarray, list[np.ndarray]]]:
        """A job's [n, 3] measures, and the images of those that are shown."""
        import functools

        from diffusion.metrics.lpips import LPIPSHED
        from pipelines import weights
        from pipelines.dataset import Dataset
        from pipelines.models import SnapshotFolder
        from pipelines.upscaler import Upscaler

        dataset = Dataset.open(Storage.at(self.images))
        lpips = LPIPSHED(weights.load("hed"), weights.load("lpips-heads"))

        @functools.cache
        def model(number: int) -> Upscaler:
            return Upscaler(SnapshotFolder.open(Storage.at(self.models[number])))

        def call(job: Job) -> tuple[Job, np.ndarray, list[np.ndarray]]:
            large = originals(dataset, job.places)
            small = shrunk(large, self.factor)
            drawn = self._enlarged(job, small, model)
            return job, measure(drawn, large, self.factor, lpips), drawn[: max(0, self.shown - job.start)]

        return call

    def _enlarged(self, job: Job, small: list[np.ndarray], model: Any) -> list[np.ndarray]:
        from pipelines import sampling
        from pipelines.stages.upscale import place

        if job.method < 0:
            return sampling.enlarged(small, self.factor)
        drawings = [
            sampling.Drawing(index=place(f"{shard}/{n}"), small=image, level=self.level)
            for (shard, n), image in zip(job.places, small, strict=True)
        ]
        return model(job.method).draw(
            drawings, seed=self.seed, sampler=self.sampler, micro_batch=self.micro_batch
        )


class UpscalerEvaluation:
    """One run of the stage `evaluate_upscaler`."""

    def __init__(self, stage: EvaluateUpscaler, session: Session) -> None:
        self.stage, self.session = stage, session
        self.images: Dataset = session.inputs["images"]
        self.snapshots = session.inputs["models"]
        factors = {snapshot.record.get("upscaling", {}).get("factor") for snapshot in self.snapshots}
        if len(factors) != 1 or None in factors:
            raise ValueError(
                f"evaluate_upscaler compares upscalers of one factor; {', '.join(stage.models)} are not."
            )
        self.factor: int = factors.pop()

    def run(self) -> dict[str, Any]:
        places = self._places()
        methods = [-1, *range(len(self.snapshots))]
        size = CHUNK * self.stage.micro_batch
        jobs = [
            Job(method=m, start=n, places=tuple(places[n : n + size]))
            for n in range(0, len(places), size)
            for m in methods
        ]
        enlarge = Enlarge(
            images=self.images.storage.url,
            models=tuple(snapshot.storage.url for snapshot in self.snapshots),
            factor=self.factor,
            sampler=self.stage.sampler,
            level=self.stage.level,
            seed=self.stage.seed,
            micro_batch=self.stage.micro_batch,
            shown=self.stage.shown,
        )
        measured = {m: np.zeros((len(places), len(MEASURES))) for m in methods}
        shown: dict[int, dict[int, np.ndarray]] = {m: {} for m in methods}
        done = 0
        for job, values, images in self.session.map(enlarge, jobs):
            measured[job.method][job.start : job.start + len(values)] = values
            shown[job.method] |= dict(enumerate(images, job.start))
            done += len(job.places)
            total = len(places) * len(methods)
            self.session.event({"kind": "progress", "done": done, "total": total, "unit": "images"})
        self._picture(places, shown)
        return self._write(measured)

    def _places(self) -> list[Place]:
        """Images of the split, in an order that depends on seed and keys alone."""
        ranked: list[tuple[bytes, Place]] = []
        for shard in self.images.shards:
            if shard.split == self.stage.split:
                index = self.images.index(shard.name)
                for n, key in enumerate(index.keys):
                    if index.reasons[n] is None and index.member(n, "image"):
                        rank = hashlib.sha256(f"{self.stage.seed}/{key}".encode()).digest()
                        ranked.append((rank, (shard.name, n)))
        if len(ranked) < 2:
            raise ValueError(
                f"{self.stage.images} has no images in its {self.stage.split} split to judge by."
            )
        return [place for _, place in sorted(ranked)[: self.stage.count]]

    def _write(self, measured: dict[int, np.ndarray]) -> dict[str, Any]:
        names = {-1: BICUBIC} | dict(enumerate(self.stage.models))
        rows = []
        for method, values in measured.items():
            row: dict[str, Any] = {"name": names[method], "n": len(values)}
            if method >= 0:
                row["objective"] = self.snapshots[method].record.get("objective", "flow")
                row["images_seen"] = self.snapshots[method].record.get("images_seen")
            for column, measure_name in enumerate(MEASURES):
                row[measure_name] = self._interval(values[:, column])
                if method >= 0:
                    gain = values[:, column] - measured[-1][:, column]
                    row[f"{measure_name}_over_bicubic"] = self._interval(gain)
            rows.append(row)
        scores = {
            "format": 1,
            "factor": self.factor,
            "split": self.stage.split,
            "level": self.stage.level,
            "steps": self.stage.sampler.steps,
            "rows": rows,
        }
        self.session.output.replace(
            "metrics.json", json.dumps(scores, indent=1, sort_keys=True).encode() + b"\n"
        )
        flat = {f"{measure}_{row['name']}": row[measure]["value"] for row in rows for measure in MEASURES}
        self.session.event({"kind": "metrics", "step": 0, "values": flat})
        return {"upscaling": scores, "table": table(scores)}

    def _interval(self, values: np.ndarray) -> dict[str, float]:
        """Mean with its bootstrap interval over images (Efron, 1979: percentiles)."""
        draw = np.random.default_rng(self.stage.seed)
        chosen = draw.integers(0, len(values), (self.stage.bootstrap, len(values)))
        low, high = np.quantile(values[chosen].mean(1), (0.025, 0.975))
        return {"value": float(values.mean()), "low": float(low), "high": float(high)}

    def _picture(self, places: Sequence[Place], shown: dict[int, dict[int, np.ndarray]]) -> None:
        from PIL import Image

        count = min(self.stage.shown, len(places))
        large = originals(self.images, places[:count])
        rows = [
            shrunk(large, self.factor),
            *([found[n] for n in range(count)] for found in shown.values()),
            large,
        ]
        labels = ("small", BICUBIC, *self.stage.models, "original")
        grid = [[Image.fromarray(image) for image in row] for row in rows]
        png = pictures.grid(grid, row_labels=labels, cell=96)
        self.session.output.replace("upscaled.png", png)
        self.session.event({"kind": "picture", "name": "upscaled", "step": 0, "png": png})


def table(scores: dict[str, Any]) -> dict[str, Any]:
    """The scores for people: a title, columns, rows of text, and what they say in a sentence."""
    rows = [
        [row["name"], *(_text(row[name], 1 if name != "lpips" else 4) for name in MEASURES)]
        for row in scores["rows"]
    ]
    first = scores["rows"][1]
    gain = first["lpips_over_bicubic"]
    if gain["high"] < 0:
        verdict = "looks more like the original than bicubic enlargement"
    elif gain["low"] > 0:
        verdict = "looks less like the original than bicubic enlargement"
    else:
        verdict = "cannot be told from bicubic enlargement"
    says = (
        f"{first['name']} {verdict}: LPIPS-HED {_text(gain, 4, sign=True)} over {first['n']:,} "
        f"{scores['split']} images, less is better (95 % interval, paired)."
    )
    columns = ["", *(f"{label} ({better})" for label, better in MEASURES.values())]
    return {
        "title": f"{scores['factor']}x larger, {scores['rows'][0]['n']:,} {scores['split']} images",
        "columns": columns,
        "rows": rows,
        "says": says,
    }


def originals(dataset: Dataset, places: Sequence[Place]) -> list[np.ndarray]:
    """uint8 images [h, w, 3]."""
    from pipelines.arrays import pixels

    return [pixels(dataset.read_member(shard, n, "image")) for shard, n in places]


def shrunk(images: Sequence[np.ndarray], factor: int) -> list[np.ndarray]:
    """The small images of uint8 ones of one size."""
    import torch

    from diffusion.upscaling import shrink
    from pipelines.sampling import normalised, to_pixels

    large = normalised(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    return list(to_pixels(shrink(large, factor)))


def measure(drawn: Sequence[np.ndarray], large: Sequence[np.ndarray], factor: int, lpips: Any) -> np.ndarray:
    """[n, 3] in the order of `MEASURES`, of uint8 images as they would be saved."""
    import torch

    from diffusion.metrics.psnr import psnr, psnr_y
    from pipelines.sampling import normalised

    def levels(images: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()

    ours, truth = levels(drawn), levels(large)
    again = psnr(levels(shrunk(drawn, factor)), levels(shrunk(large, factor)))
    near = lpips(normalised(ours), normalised(truth))
    return torch.stack([near.double(), psnr_y(ours, truth, border=factor), again], dim=1).numpy()


def _text(interval: dict[str, float], digits: int, *, sign: bool = False) -> str:
    form = f"{'+' if sign else ''}.{digits}f"
    value, low, high = (format(interval[k], form) for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
