"""The evaluation of autoencoders: what workers measured, compared and put into words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines import pictures
from pipelines.scoring.measure import Place
from pipelines.scoring.reconstructing import (
    AMPLIFIED,
    MEASURES,
    ORIGINALS,
    Job,
    Reconstruct,
    channels,
    difference,
)

if TYPE_CHECKING:
    from pipelines.dataset import Dataset
    from pipelines.stage import Session
    from pipelines.stages.evaluate_autoencoder import EvaluateAutoencoder

LPIPS_NETWORKS = frozenset({"hed"})
CHUNK = 2
"""Micro-batches of a job."""


class AutoencoderEvaluation:
    """One run of the stage `evaluate_autoencoder`."""

    def __init__(self, stage: EvaluateAutoencoder, session: Session) -> None:
        from pipelines.stages.train_autoencoder import networks_in_loss

        self.stage, self.session = stage, session
        self.images: Dataset = session.inputs["images"]
        self.snapshots = session.inputs["models"]
        for name, snapshot in zip(stage.models, self.snapshots, strict=True):
            if "autoencoder" not in snapshot.record:
                raise ValueError(f"{name} holds no autoencoder: name a train_autoencoder stage.")
        self.in_loss = [networks_in_loss(snapshot) for snapshot in self.snapshots]

    def run(self) -> dict[str, Any]:
        split = self._split()
        places = self._places(split)
        reconstruct = Reconstruct(
            images=self.images.storage.url,
            models=tuple(snapshot.storage.url for snapshot in self.snapshots),
            features=self.stage.features,
            micro_batch=self.stage.micro_batch,
            shown=self.stage.shown,
        )
        methods = [ORIGINALS, *range(len(self.snapshots))]
        answers: dict[int, dict[int, tuple[np.ndarray, ...]]] = {m: {} for m in methods}
        shown: dict[int, dict[int, np.ndarray]] = {m: {} for m in methods}
        done, total = 0, len(places) * len(methods)
        for answer in self.session.map(reconstruct, list(self._jobs(places, methods))):
            rows = zip(answer.measures, answer.features, answer.latents, strict=True)
            answers[answer.job.method] |= dict(zip(answer.job.numbers, rows, strict=True))
            shown[answer.job.method] |= answer.images
            done += len(answer.job.places)
            self.session.event({"kind": "progress", "done": done, "total": total, "unit": "images"})
        self._picture(shown)
        # In the order of the images, however the jobs fell on workers.
        found = {
            m: tuple(np.stack(part) for part in zip(*(of[n] for n in range(len(places))), strict=True))
            for m, of in answers.items()
        }
        return self._write(split, found)

    def _split(self) -> str:
        if self.stage.split is not None:
            return self.stage.split
        held_out = {shard.split for shard in self.images.shards if shard.samples}
        return "test" if "test" in held_out else "validation"

    def _places(self, split: str) -> list[Place]:
        """Images of the split, in an order that depends on seed and keys alone."""
        ranked: list[tuple[bytes, Place]] = []
        for shard in self.images.shards:
            if shard.split == split:
                index = self.images.index(shard.name)
                for n, key in enumerate(index.keys):
                    if index.reasons[n] is None and index.member(n, "image"):
                        rank = hashlib.sha256(f"{self.stage.seed}/{key}".encode()).digest()
                        ranked.append((rank, (shard.name, n)))
        if len(ranked) < 4:
            raise ValueError(
                f"{self.stage.images} has {len(ranked)} images in its {split} split, and judging takes at "
                f"least 4: raise ingest's `split.{split}`, or add images."
            )
        return [place for _, place in sorted(ranked)[: self.stage.count]]

    def _jobs(self, places: Sequence[Place], methods: Sequence[int]) -> Iterator[Job]:
        from pipelines import buckets

        sized = bool(buckets.known(self.images.manifest.get("statistics", {})))
        alike: dict[Any, list[int]] = {}
        for number, (shard, n) in enumerate(places):
            meta = self.images.index(shard).meta[n] if sized else {}
            alike.setdefault((meta.get("width"), meta.get("height")), []).append(number)
        size = CHUNK * self.stage.micro_batch
        for numbers in alike.values():
            for start in range(0, len(numbers), size):
                run = tuple(numbers[start : start + size])
                for method in methods:
                    yield Job(method=method, numbers=run, places=tuple(places[n] for n in run))

    def _write(self, split: str, found: Mapping[int, tuple[np.ndarray, ...]]) -> dict[str, Any]:
        truth = found[ORIGINALS][1]
        rows: list[dict[str, Any]] = []
        for number, name in enumerate(self.stage.models):
            measures, features, latents = found[number]
            record = self.snapshots[number].record
            row: dict[str, Any] = {
                "name": name,
                "n": len(measures),
                "kind": record["autoencoder"]["kind"],
                "images_seen": record.get("images_seen"),
                "in_its_loss": self.in_loss[number],
                "latents": channels(latents),
            }
            for column, measure_name in enumerate(MEASURES):
                if measure_name != "lpips" or not LPIPS_NETWORKS & {*self.in_loss[number]}:
                    row[measure_name] = self._interval(measures[:, column])
                    if number and measure_name in rows[0]:
                        gain = measures[:, column] - found[0][0][:, column]
                        row[f"{measure_name}_over_first"] = self._interval(gain)
            if self.stage.features.kind.replace("_", "-") not in self.in_loss[number]:
                row["kid"] = self._paired(truth, features)
            rows.append(row)
        scores = {
            "format": 1,
            "split": split,
            "n": len(truth),
            "features": self.stage.features.label,
            "rows": rows,
            "floor": self._floor(truth),
        }
        text = json.dumps(scores, indent=1, sort_keys=True).encode() + b"\n"
        self.session.output.replace("metrics.json", text)
        measured = [*MEASURES, "kid"]
        flat = {f"{m}_{row['name']}": row[m]["value"] for row in rows for m in measured if m in row}
        flat["kid_floor"] = scores["floor"]["value"]
        self.session.event({"kind": "metrics", "step": 0, "values": flat})
        return {"reconstruction": scores, "table": table(scores)}

    def _interval(self, values: np.ndarray) -> dict[str, float]:
        """Mean with its bootstrap interval over images (Efron, 1979: percentiles)."""
        draw = np.random.default_rng(self.stage.seed)
        chosen = draw.integers(0, len(values), (self.stage.bootstrap, len(values)))
        low, high = np.quantile(values[chosen].mean(1), (0.025, 0.975))
        return {"value": float(values.mean()), "low": float(low), "high": float(high)}

    def _paired(self, truth: np.ndarray, made: np.ndarray) -> dict[str, float]:
        """Of reconstructions to their own originals: pairs are no two independent draws."""
        import torch

        from diffusion.metrics.paired import pair_estimate, pair_matrix

        h = pair_matrix(torch.from_numpy(truth), torch.from_numpy(made)[:, None])
        return _estimate(pair_estimate(h, resamples=self.stage.bootstrap, seed=self.stage.seed))

    def _floor(self, truth: np.ndarray) -> dict[str, float]:
        import torch

        from diffusion.metrics.kernel import kernel_distance

        half = len(truth) // 2
        one, other = torch.from_numpy(truth[:half]), torch.from_numpy(truth[half:])
        found = kernel_distance(one, other, resamples=self.stage.bootstrap, seed=self.stage.seed)
        return _estimate(found)

    def _picture(self, shown: Mapping[int, Mapping[int, np.ndarray]]) -> None:
        from PIL import Image

        numbers = sorted(shown[ORIGINALS])
        rows, labels = [[shown[ORIGINALS][n] for n in numbers]], ["original"]
        for number, name in enumerate(self.stage.models):
            made = [shown[number][n] for n in numbers]
            rows += [made, [difference(a, b) for a, b in zip(made, rows[0], strict=True)]]
            labels += [name, f"difference x {AMPLIFIED}"]
        grid = [[Image.fromarray(image) for image in row] for row in rows]
        png = pictures.grid(grid, row_labels=labels, cell=96)
        self.session.output.replace("reconstructions.png", png)
        self.session.event({"kind": "picture", "name": "reconstructions", "step": 0, "png": png})


def table(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores for people: a title, columns, rows of text, and what they say in a sentence."""
    label = f"KID-{scores['features']} x 1000"
    rows = [[row["name"], *_cells(row), _latents(row["latents"])] for row in scores["rows"]]
    floor = _text(scores["floor"], 2, factor=1000)
    rows.append(["half of the originals", *("" for _ in MEASURES), floor, ""])
    first = scores["rows"][0]
    says = f"{first['name']} gives {first['n']:,} {scores['split']} images back with a PSNR of "
    says += f"{_text(first['psnr'], 2)} dB and an SSIM of {_text(first['ssim'], 4)} (95 % intervals)."
    others = [row for row in scores["rows"][1:] if "psnr_over_first" in row]
    for row in others:
        says += f" {row['name']}: PSNR {_text(row['psnr_over_first'], 2, sign=True)} dB beside it, paired."
    for row in scores["rows"]:
        left = [name for name, key in (("LPIPS-HED", "lpips"), (label, "kid")) if key not in row]
        if left:
            says += f" {' and '.join(left)} cannot judge {row['name']}: the network was in its loss."
    columns = ["", *(f"{name} ({better})" for name, better, _ in MEASURES.values())]
    return {
        "title": f"Reconstruction of {scores['n']:,} {scores['split']} images",
        "columns": [*columns, f"{label} (less is better)", "latent channels"],
        "rows": rows,
        "says": says,
    }


def _cells(row: Mapping[str, Any]) -> list[str]:
    cells = [_text(row[name], of[2]) if name in row else "in its loss" for name, of in MEASURES.items()]
    return [*cells, _text(row["kid"], 2, factor=1000) if "kid" in row else "in its loss"]


def _latents(said: Mapping[str, Any]) -> str:
    low, high = min(said["std"]), max(said["std"])
    dead = f"dead: {', '.join(map(str, said['dead']))}" if said["dead"] else "none dead"
    return f"{len(said['std'])}, std {low:.2f} to {high:.2f}, {dead}"


def _estimate(found: Any) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _text(interval: Mapping[str, float], digits: int, *, sign: bool = False, factor: float = 1.0) -> str:
    form = f"{'+' if sign else ''}.{digits}f"
    value, low, high = (format(factor * interval[k], form) for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
