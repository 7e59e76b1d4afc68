"""Training techniques beside the plain recipe at equal compute: Fashion-MNIST, three seeds, one judge.

Compute is counted in FLOPs of the network, forward and backward; processor seconds stand beside it. The judge
is the penultimate layer of a classifier of the real images, which takes part in no training: KID of 512
generated images against 4,000 of the test split. Needs no Ray.
"""

from __future__ import annotations

import functools
import gzip
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.results import Result

DATA = Path("/usr/share/datasets/fashion-mnist")
SEEDS = (0, 1, 2)
SIDE, PATCH, WIDTH, DEPTH, HEADS, CLASSES = 28, 4, 96, 6, 3, 10
TOKENS = (SIDE // PATCH) ** 2
BATCH, IMAGES = 32, 16_000
"""Of the plain recipe; the others see as many as the same FLOPs allow."""
TRAINED = 20_000
"""Images of the training split that are used."""
GENERATED = 512
REAL = 4_000
"""Images of the test split that the judge compares with."""
KEPT = 0.5
ALIGNED_UNTIL = 0.5
"""Share of the training that is aligned."""
MEAN, STD = 0.286, 0.353

ARMS = ("plain", "min-SNR 5", "TREAD", "iREPA", "Muon", "diffusers' example")


def bench_techniques() -> Iterator[Result]:
    """Each arm against the plain one, seed by seed."""
    with tempfile.TemporaryDirectory() as folder:
        _judge(Path(folder))
        jobs = [(folder, arm, seed) for seed in SEEDS for arm in ARMS]
        context = multiprocessing.get_context("spawn")
        with context.Pool(multiprocessing.cpu_count(), maxtasksperchild=1) as pool:
            runs = {(run["arm"], run["seed"]): run for run in pool.imap_unordered(_run, jobs)}
    for arm in ARMS:
        mine = [runs[arm, seed] for seed in SEEDS]
        plain = [runs["plain", seed] for seed in SEEDS]
        gains = [m["kid"] - p["kid"] for m, p in zip(mine, plain, strict=True)]
        name = arm.lower().replace(" ", "_").replace("'", "")
        yield Result(
            name=f"train/technique_{name}",
            value=statistics.mean(run["kid"] for run in mine),
            unit="KID x 1000",
            better="lower",
            against=(
                f"plain {statistics.mean(p['kid'] for p in plain):.1f}, floor {mine[0]['floor']:.1f}; "
                f"less plain, by seed: {', '.join(f'{gain:+.1f}' for gain in gains)}"
            ),
            n=len(SEEDS),
            spread=(min(run["kid"] for run in mine), max(run["kid"] for run in mine)),
            note="smallest and largest of three seeds; judged by a classifier of the real images",
            extra={
                "images": mine[0]["images"],
                "seconds": [round(run["seconds"]) for run in mine],
                "wins_all_seeds": all(gain < 0 for gain in gains),
            },
        )


def _run(job: tuple[str, str, int]) -> dict[str, Any]:
    """Trains, draws and judges one arm with one seed, in a process of its own."""
    import torch

    folder, arm, seed = job
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    start = time.process_time()
    if arm == "diffusers' example":
        draw, images = _theirs(seed), IMAGES
    else:
        draw, images = _ours(arm, seed)
    seconds = time.process_time() - start
    labels = torch.arange(GENERATED) % CLASSES
    pictures = torch.cat([draw(labels[n : n + 64], n) for n in range(0, GENERATED, 64)])
    kid, floor = _judged(Path(folder), pictures)
    run = {"arm": arm, "seed": seed, "kid": kid, "floor": floor, "seconds": seconds, "images": images}
    print(json.dumps(run), flush=True)
    return run


def _ours(arm: str, seed: int) -> tuple[Any, int]:

    from diffusion import randomness
    from diffusion.alignment import Aligned, alignment
    from diffusion.conditioning import Conditioning
    from diffusion.config import DiTConfig, LogitNormalConfig, OptimizationConfig
    from diffusion.denoiser import Denoiser
    from diffusion.losses import MinSNR, denoising, flow_matching
    from diffusion.networks.flops import flops
    from diffusion.networks.routing import kept_tokens
    from diffusion.samplers.dpm import DPM
    from diffusion.training import TrainingState, fit

    config = DiTConfig(width=WIDTH, depth=DEPTH, heads=HEADS, patch=PATCH)
    network = config.build(channels=1, size=SIDE, classes=CLASSES)
    count = functools.partial(flops, config, channels=1, size=SIDE, classes=CLASSES)
    images = round(IMAGES * count() / count(kept=KEPT if arm == "TREAD" else 1.0) / BATCH) * BATCH
    data, labels = _images("train")
    module: Any = network
    if arm == "iREPA":
        targets = _features(data)
        module = Aligned(network, depth=DEPTH // 3, features=targets.shape[1])
    muon: dict[str, Any] = {"matrices": "muon"} if arm == "Muon" else {}
    optimization = OptimizationConfig(
        lr=1e-3, weight_decay=0.01, warmup=2_000, cooldown=images // 3, ema=0.1, **muon
    )
    times = LogitNormalConfig().build()
    state = TrainingState.start(module, optimization)

    def batches() -> Iterator[Any]:
        while True:
            positions = np.arange(state.images_seen, state.images_seen + BATCH)
            epochs, places = positions // len(data), positions % len(data)
            indices = [_order(seed, int(e), len(data))[p] for e, p in zip(epochs, places, strict=True)]
            no_label = randomness.uniform(seed, positions, "drop") < 0.1
            label = labels[indices].masked_fill(no_label, CLASSES)
            conditioning = Conditioning(label=label, classes=CLASSES)
            if arm == "TREAD":
                route = kept_tokens(seed, positions, TOKENS, KEPT)
                conditioning = Conditioning(label=label, classes=CLASSES, route=route)
            noise = randomness.normal(seed, positions, (1, SIDE, SIDE))
            yield (
                data[indices],
                noise,
                times(randomness.stratified(seed, positions, BATCH)),
                conditioning,
                indices,
            )

    def losses(share: Any) -> Any:
        x, z, t, conditioning, indices = share
        if arm == "min-SNR 5":
            return denoising(Denoiser(network), x, z, t, conditioning, MinSNR(gamma=5.0))
        if arm != "iREPA":
            return flow_matching(Denoiser(network), x, z, t, conditioning)
        if state.images_seen >= ALIGNED_UNTIL * images:
            return flow_matching(Denoiser(network), x, z, t, conditioning) + 0 * sum(
                p.sum() for p in module.projector.parameters()
            )
        projected: list[Any] = []

        def seen(x_t: Any, c_noise: Any, told: Any) -> Any:
            output, tokens = module(x_t, c_noise, told)
            projected.append(tokens)
            return output

        loss = flow_matching(Denoiser(seen), x, z, t, conditioning)
        return loss + 0.5 * alignment(projected[0], targets[indices].float())

    for _ in fit(state, batches(), losses, optimization=optimization, batch=BATCH, target_images=images):
        pass
    state.ema.copy_to(module)
    network.eval()
    sampler = DPM(steps=12)

    def draw(label: Any, first: int) -> Any:
        positions = np.arange(first, first + len(label))
        noise = randomness.normal(1234, positions, (1, SIDE, SIDE))
        return sampler(Denoiser(network), noise, Conditioning(label=label, classes=CLASSES))

    return draw, images


def _theirs(seed: int) -> Any:
    """diffusers' transformer of the same size, trained as its unconditional example is: DDPM's noise, AdamW
    of 1e-4 with a cosine schedule, constant-warm-up average, float32; drawn by DDIM, as DiTPipeline does."""
    import torch
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.training_utils import EMAModel

    network = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=1,
        out_channels=1,
        num_layers=DEPTH,
        sample_size=SIDE,
        patch_size=PATCH,
        num_embeds_ada_norm=CLASSES,
    )
    data, labels = _images("train")
    steps = IMAGES // BATCH
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, min(500, steps // 4), steps)
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    chain: Any = DDPMScheduler(num_train_timesteps=1000)
    network.train()
    for step in range(steps):
        places = np.arange(step * BATCH, (step + 1) * BATCH)
        indices = [_order(seed, int(p) // len(data), len(data))[p % len(data)] for p in places]
        x, noise = data[indices], torch.randn(BATCH, 1, SIDE, SIDE)
        timestep = torch.randint(0, 1000, (BATCH,))
        predicted = network(
            chain.add_noise(x, noise, timestep), timestep=timestep, class_labels=labels[indices]
        ).sample
        torch.nn.functional.mse_loss(predicted, noise).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average.step(network.parameters())
    average.copy_to(network.parameters())
    network.eval()
    sampler: Any = DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
    sampler.set_timesteps(25)

    @torch.no_grad()
    def draw(label: Any, first: int) -> Any:
        x = torch.randn(len(label), 1, SIDE, SIDE, generator=torch.Generator().manual_seed(first))
        for t in sampler.timesteps:
            noise = network(x, timestep=t.expand(len(label)), class_labels=label).sample
            x = sampler.step(noise, t, x).prev_sample
        return x

    return draw


@functools.cache
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


@functools.cache
def _images(split: str) -> tuple[Any, Any]:
    """Whitened pixels [n, 1, 28, 28] and labels [n]."""
    import torch

    name = "train" if split == "train" else "t10k"
    raw = gzip.decompress((DATA / f"{name}-images-idx3-ubyte.gz").read_bytes())[16:]
    pixels = np.frombuffer(raw, np.uint8).reshape(-1, 1, SIDE, SIDE)
    labels = np.frombuffer(
        gzip.decompress((DATA / f"{name}-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8
    )
    count = TRAINED if split == "train" else len(pixels)
    x = (torch.from_numpy(pixels[:count].astype(np.float32)) / 255 - MEAN) / STD
    return x, torch.from_numpy(labels[:count].astype(np.int64))


def _features(images: Any) -> Any:
    """EfficientNet-Lite0's at a sixteenth of 112 px, 7 x 7 places, fp16."""
    import torch
    import torch.nn.functional as F

    from diffusion.metrics.features import EfficientNetLite0
    from pipelines import weights

    encoder = EfficientNetLite0(weights.load("efficientnet-lite0"))
    found = []
    with torch.no_grad():
        for chunk in (images * STD + MEAN).split(50):
            x = F.interpolate(chunk.expand(-1, 3, -1, -1), (112, 112), mode="bicubic", antialias=True)
            x = (x.clamp(0, 1) - encoder.mean) / encoder.std
            x = encoder.stem(x.contiguous(memory_format=torch.channels_last)).clamp_(0, 6)
            for block in encoder.blocks:
                y = block(x)
                if y.shape[-1] < SIDE // PATCH:
                    break
                x = y
            found.append(x.half())
    return torch.cat(found)


def _classifier() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, CLASSES),
    )  # fmt: skip


def _judge(folder: Path) -> None:
    """Trains the judge, three passes over the training images, and lets it look at the test split."""
    import torch

    torch.manual_seed(99)
    model, (x, y) = _classifier(), _images("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(3):
        for places in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[places]), y[places]).backward()
            optimizer.step()
    with torch.no_grad():
        real = torch.cat([model[:-1](x) for x in _images("test")[0][:REAL].split(500)])
    torch.save({"model": model.state_dict(), "real": real}, folder / "judge.pt")


def _judged(folder: Path, pictures: Any) -> tuple[float, float]:
    """KID x 1000 of pictures, and of as many real training images, against the test split; features are
    divided by the root of their mean square over real images."""
    import torch

    from diffusion.metrics.kernel import kernel_distance

    kept = torch.load(folder / "judge.pt", weights_only=True)
    model, scale = _classifier(), kept["real"].square().mean().sqrt()
    model.load_state_dict(kept["model"])
    seen = model[:-1].eval()
    with torch.no_grad():
        train = seen(_images("train")[0][:GENERATED])
        drawn = seen(pictures.clamp(-MEAN / STD, (1 - MEAN) / STD))
    of = functools.partial(kernel_distance, kept["real"] / scale, resamples=2)
    return 1e3 * of(drawn / scale).value, 1e3 * of(train / scale).value
