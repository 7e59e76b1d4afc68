"""The quickstart's autoencoder beside the one that it had, after the same processor time: three seeds.

A bare loop over the stage's own task, on one thread: what a look at held-out images or a checkpoint costs is
in neither. The two are timed in turn, and the present one then sees as many images as the former one's time
allows, on a schedule of that length. Judged on emoji3d's test split by what was in neither's loss.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.results import Result

SEEDS = (0, 1, 2)
STEPS = 24
"""Of each timed piece."""
ROUNDS = 5
"""Timed pieces of each, in turn."""
RESAMPLES = 2_000
MODEL_IMAGES = 8_000
"""Of the quickstart's model, on the latents of each."""
MODEL_SEEDS = (0, 1)


def former(stage: Any) -> Any:
    """The stage as the quickstart had it until 2026-11-22."""
    from diffusion.config import KLAutoencoderConfig, OptimizationConfig

    return type(stage)(
        images=stage.images,
        autoencoder=KLAutoencoderConfig(latent_channels=4, channels=32, multipliers=(1, 2), stem=2, blocks=1),
        images_seen=12_000,
        batch=16,
        optimization=OptimizationConfig(lr=2e-3, weight_decay=0.01, warmup=800, cooldown=4_800, ema=0.05),
    )


def bench_autoencoder() -> Iterator[Result]:
    """PSNR, SSIM, LPIPS-HED and KID of reconstructions, each with the interval of the paired difference."""
    from cluster.storage import Storage
    from pipelines import config
    from pipelines.pipeline import run

    with tempfile.TemporaryDirectory() as folder:
        recipe = config.load("quickstart", [])
        run(recipe, Storage.at(Path(folder)), executor="inline", until="images", record=False)
        context = multiprocessing.get_context("spawn")
        with context.Pool(min(multiprocessing.cpu_count(), len(SEEDS)), maxtasksperchild=1) as pool:
            runs = pool.map(_run, [(folder, seed) for seed in SEEDS], chunksize=1)
        real, others = _held_out(folder, "test"), _held_out(folder, "validation")
    yield from results(runs, real, others)


def bench_autoencoder_latents() -> Iterator[Result]:
    """Whether a model learns the latents as easily: the quickstart with its model's training shortened."""
    scores: dict[str, list[dict[str, Any]]] = {"former": [], "present": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in MODEL_SEEDS:
            for arm, found in scores.items():
                found.append(_line(folder, arm, seed))
    told = (
        ("loss", "held-out loss", "lower", lambda found: found["conditioning"]["true"]),
        ("kid", "KID-EffLite0 x 1000", "lower", lambda found: 1000 * _row(found, "generated")),
    )
    for name, unit, better, figure in told:
        before, after = ([figure(found) for found in scores[arm]] for arm in ("former", "present"))
        floor = 1000 * _row(scores["present"][0], "real")
        aside = f"; floor {floor:.1f}" if name == "kid" else ""
        gains = [a - b for a, b in zip(after, before, strict=True)]
        yield Result(
            name=f"train/autoencoder_latents_{name}",
            value=statistics.mean(after),
            unit=unit,
            better=better,  # pyright: ignore[reportArgumentType]
            against=f"before {statistics.mean(before):.4g}{aside}",
            n=len(gains),
            spread=(min(after), max(after)),
            note=f"the quickstart with {MODEL_IMAGES:,} images of its model's training; smallest and largest",
            extra={"after_less_before_by_seed": gains},
        )


def _line(folder: str, arm: str, seed: int) -> dict[str, Any]:
    """What `report` measures of the quickstart with one of the autoencoders and a short training."""
    from cluster.storage import Storage
    from pipelines import config
    from pipelines.pipeline import run

    recipe = config.load("quickstart", [])
    stages: dict[str, Any] = dict(recipe.stages)
    if arm == "former":
        stages["autoencoder"] = former(stages["autoencoder"])
    stages["model"] = replace(lasting(stages["model"], MODEL_IMAGES), seed=seed)
    recipe = replace(recipe, stages=stages)
    done = run(recipe, Storage.at(Path(folder)), executor="inline", until="report", record=False)
    report = done.plan["report"].folder
    assert report is not None
    return json.loads(report.read("metrics.json"))


def _row(found: dict[str, Any], name: str) -> float:
    return next(row["kid"]["value"] for row in found["rows"] if row["name"] == name)


def results(runs: list[dict[str, Any]], real: np.ndarray, others: np.ndarray) -> Iterator[Result]:
    """Of each seed's reconstructions of `real` [n, h, w, 3]; `others` are images for KID's floor."""
    from diffusion.metrics.kernel import kernel_distance

    judge = Judge(real)
    scores = {arm: [judge(run[arm]["reconstructions"]) for run in runs] for arm in ("former", "present")}
    spent = "; ".join(
        f"{arm} {run[arm]['images']:,} images in {run[arm]['seconds']:.0f} s"
        for run in runs
        for arm in ("former", "present")
    )
    floor = 1000 * kernel_distance(judge.features(others), judge.features(real)).value
    for name, unit, better in (
        ("psnr", "dB", "higher"),
        ("ssim", "SSIM", "higher"),
        ("lpips_hed", "LPIPS-HED", "lower"),
        ("kid", "KID-EffLite0 x 1000", "lower"),
    ):
        before, after = ([seed[name] for seed in scores[arm]] for arm in ("former", "present"))
        gains = [_mean(a) - _mean(b) for a, b in zip(after, before, strict=True)]
        low, high = interval(np.mean(after, axis=0) - np.mean(before, axis=0))
        told = f"; floor, held-out images against others: {floor:.1f}" if name == "kid" else ""
        yield Result(
            name=f"train/autoencoder_{name}",
            value=statistics.mean(gains),
            unit=unit,
            target=0.0,
            better=better,  # pyright: ignore[reportArgumentType]
            against=(
                f"before {statistics.mean(map(_mean, before)):.4g}, after "
                f"{statistics.mean(map(_mean, after)):.4g}{told}"
            ),
            n=len(runs),
            spread=(low, high),
            note="after less before at equal processor time; 95 % interval over held-out images, paired",
            extra={"by_seed": gains, "spent": spent, "latents": [run["present"]["latents"] for run in runs]},
        )


class Judge:
    """What is measured of reconstructions of the same images."""

    def __init__(self, real: np.ndarray) -> None:
        from diffusion.metrics.lpips import LPIPSHED
        from pipelines import weights
        from pipelines.scoring.features import EfficientNetFeatures

        self.extract = EfficientNetFeatures().build()
        self.lpips = LPIPSHED(weights.load("hed"), weights.load("lpips-heads"))
        self.real, self.seen = real, self.features(real)

    def features(self, images: np.ndarray) -> Any:
        import torch
        from PIL import Image

        return torch.from_numpy(self.extract([Image.fromarray(image) for image in images]))

    def __call__(self, made: np.ndarray) -> dict[str, np.ndarray]:
        """A figure an image; of KID a pair matrix x 1000, [n, n], since an image and its reconstruction are
        no independent samples."""
        import torch

        from diffusion.metrics.paired import pair_matrix
        from diffusion.metrics.psnr import psnr
        from diffusion.metrics.ssim import ssim

        x, y = (torch.from_numpy(images).permute(0, 3, 1, 2).float() for images in (self.real, made))
        pieces = zip((x / 127.5 - 1).split(32), (y / 127.5 - 1).split(32), strict=True)
        matrix = 1000 * pair_matrix(self.seen, self.features(made)[:, None])
        return {
            "psnr": psnr(y, x).numpy(),
            "ssim": ssim(y, x).numpy(),
            "lpips_hed": torch.cat([self.lpips(b, a) for a, b in pieces]).numpy(),
            "kid": matrix.numpy(),
        }


def interval(figures: np.ndarray) -> tuple[float, float]:
    """95 % of the mean of figures [n], or of a pair matrix [n, n], by the Bayesian bootstrap over images."""
    import torch

    from diffusion.metrics.paired import pair_estimate

    if figures.ndim == 2:
        found = pair_estimate(torch.from_numpy(figures), resamples=RESAMPLES)
        return found.low, found.high
    draws = np.random.default_rng(0).dirichlet(np.ones(len(figures)), RESAMPLES) @ figures
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _mean(figures: np.ndarray) -> float:
    """Of a pair matrix: off its diagonal, where an image meets its own reconstruction."""
    if figures.ndim == 1:
        return float(figures.mean())
    n = len(figures)
    return float((figures.sum() - np.trace(figures)) / (n * (n - 1)))


def _run(job: tuple[str, int]) -> dict[str, Any]:
    """Both arms of one seed, one after the other in one process."""
    import torch

    folder, seed = job
    torch.set_num_threads(1)
    planned = _planned(folder)
    inputs, present = planned.open(), replace(planned.stage, seed=seed)
    arms = {"former": replace(former(present), seed=seed), "present": present}
    pieces = {name: Piece(stage, inputs) for name, stage in arms.items()}
    rounds = [{name: piece.seconds() for name, piece in pieces.items()} for _ in range(ROUNDS + 1)]
    share = statistics.median(times["former"] / times["present"] for times in rounds[1:])
    arms["present"] = lasting(present, round(arms["former"].images_seen * share))

    found: dict[str, Any] = {}
    real = _held_out(folder, "test")
    for name, stage in arms.items():
        task, spent = _trained(stage, inputs)
        made, latents = _reconstructed(task, real)
        found[name] = {
            "images": stage.images_seen,
            "seconds": spent,
            "reconstructions": made,
            "latents": latents,
        }
        print(f"  seed {seed}, {name}: {stage.images_seen:,} images, {spent:.1f} s, {latents}", flush=True)
    return found


def lasting(stage: Any, images: int) -> Any:
    """The stage with another length, its schedule in proportion; whole batches."""
    images = max(1, images // stage.batch) * stage.batch
    scale, optimization = images / stage.images_seen, stage.optimization
    optimization = replace(
        optimization,
        warmup=round(optimization.warmup * scale),
        cooldown=round(optimization.cooldown * scale),
    )
    return replace(stage, images_seen=images, optimization=optimization)


class Piece:
    """A training that is gone on with a few steps at a time, for its speed."""

    def __init__(self, stage: Any, inputs: dict[str, Any]) -> None:
        self.steps = _steps(_task(stage, inputs), replace(stage, images_seen=10**9))
        self.images = STEPS * stage.batch

    def seconds(self) -> float:
        """Of the process, an image."""
        start = time.process_time()
        for _ in range(STEPS):
            next(self.steps)
        return (time.process_time() - start) / self.images


def _trained(stage: Any, inputs: dict[str, Any]) -> tuple[Any, float]:
    """The stage's task with its averaged weights, and the process's seconds of the training."""
    task = _task(stage, inputs)
    start = time.process_time()
    *_, state = _steps(task, stage)
    spent = time.process_time() - start
    state.ema.copy_to(task.module)
    return task, spent


def _task(stage: Any, inputs: dict[str, Any]) -> Any:
    import torch

    torch.manual_seed(stage.seed)
    return stage.task(inputs, torch.device("cpu"), 1)


def _steps(task: Any, stage: Any) -> Iterator[Any]:
    """The training's state after each step."""
    from diffusion.training import TrainingState, fit
    from pipelines.stream import TrainingStream

    state = TrainingState.start(task.module, stage.optimization)
    stream = TrainingStream(task.length, seed=stage.seed, batch=stage.batch)
    for _ in fit(
        state,
        (task.share(positions, indices) for positions, indices in stream),
        lambda share: task.losses(task.module, share),
        optimization=stage.optimization,
        batch=stage.batch,
        target_images=stage.images_seen,
    ):
        yield state


def _reconstructed(task: Any, images: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """uint8 [n, h, w, 3] from the posterior's mean, and what the whitened latents are like: per channel
    their excess kurtosis and the correlation of neighbours, and the largest correlation of two channels."""
    import torch

    from pipelines.sampling import normalised, to_pixels

    with torch.no_grad():
        batch = normalised(torch.from_numpy(images).permute(0, 3, 1, 2))
        moments = task.module.autoencoder.encode(batch)
        made = to_pixels(task.module.autoencoder.decode(moments.mean))
    z = moments.mean.permute(1, 0, 2, 3).double()
    z = (z - z.mean((1, 2, 3), keepdim=True)) / z.std((1, 2, 3), keepdim=True)
    beside = (z[..., 1:] * z[..., :-1]).mean((1, 2, 3)) + (z[..., 1:, :] * z[..., :-1, :]).mean((1, 2, 3))
    cross = torch.corrcoef(z.flatten(1)) - torch.eye(len(z))
    return np.asarray(made), {
        "kurtosis": [round(value, 2) for value in (z.pow(4).mean((1, 2, 3)) - 3).tolist()],
        "neighbours": [round(value / 2, 2) for value in beside.tolist()],
        "channels": round(cross.abs().max().item(), 2),
    }


def _planned(folder: str) -> Any:
    from cluster.storage import Storage
    from pipelines import config
    from pipelines.pipeline import plan

    return plan(config.load("quickstart", []), Storage.at(Path(folder)))["autoencoder"]


def _held_out(folder: str, split: str) -> np.ndarray:
    from pipelines.arrays import pixels
    from pipelines.training.tasks.rows import Rows

    rows = Rows({"images": _planned(folder).open()["images"]}, split=split, required={"images": "image"})
    return np.stack([pixels(rows.read(n, "images", "image")) for n in range(len(rows))])
