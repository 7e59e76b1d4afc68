"""The diffusion core beside diffusers' networks of equal width and depth: pairs in turn, in one process.

Needs no Ray. `make bench only=core` runs all of it; on a machine with a GPU `only=gpu` runs `bench_gpu`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.benchmarks.results import Result

ROUNDS = 7
"""Pairs of a ratio."""
WIDTH, DEPTH, HEADS, CHANNELS, SIDE, CLASSES = 256, 6, 4, 4, 16, 10
BATCH = 16


def paired(a: Callable[[], float], b: Callable[[], float], rounds: int = ROUNDS) -> list[float]:
    """Seconds of b over seconds of a, measured in turn; above 1, a is faster."""
    a()
    b()
    return [b() / a() for _ in range(rounds)]


def ratio(name: str, ratios: list[float], *, target: float, against: str, **extra: Any) -> Result:
    return Result(
        name=name,
        value=statistics.median(ratios),
        unit="ratio",
        target=target,
        better="higher",
        against=against,
        n=len(ratios),
        spread=(min(ratios), max(ratios)),
        note="pairs in turn; smallest and largest ratio",
        extra=extra,
    )


def ours() -> Any:
    from diffusion.config import DiTConfig

    return DiTConfig(width=WIDTH, depth=DEPTH, heads=HEADS, patch=2).build(
        channels=CHANNELS, size=SIDE, classes=CLASSES
    )


def theirs() -> Any:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=CHANNELS,
        num_layers=DEPTH,
        sample_size=SIDE,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
    )


def bench_core_step() -> Iterator[Result]:
    """A training step and a sampling step of the transformer and the UNet, float32 and bfloat16."""
    import torch

    for kind, (mine, his, call_his) in {"dit": _dits(), "unet": _unets()}.items():
        x, t = torch.randn(BATCH, CHANNELS, SIDE, SIDE), torch.rand(BATCH)
        label = torch.randint(0, CLASSES, (BATCH,))
        call_mine = _called(mine)
        for precision in ("float32", "bfloat16"):
            autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
            steps = [
                _training_step(network, call, x, t, label, autocast)
                for network, call in ((mine, call_mine), (his, call_his))
            ]
            sizes = [sum(p.numel() for p in network.parameters()) / 1e6 for network in (mine, his)]
            against = f"diffusers, {sizes[1]:.1f} M parameters beside {sizes[0]:.1f} M"
            yield ratio(f"core/{kind}_training_step_{precision}", paired(*steps), target=1.0, against=against)
            calls = [_sampling_step(call, x, t, label, autocast) for call in (call_mine, call_his)]
            yield ratio(f"core/{kind}_sampling_step_{precision}", paired(*calls), target=1.0, against=against)


def bench_core_sampler() -> Iterator[Result]:
    """What a sampler's loop costs over bare calls of the network."""
    import torch

    from diffusion.conditioning import Conditioning
    from diffusion.config import DPMConfig
    from diffusion.denoiser import Denoiser

    network = ours().eval()
    noise = torch.randn(BATCH, CHANNELS, SIDE, SIDE)
    conditioning = Conditioning(label=torch.randint(0, CLASSES, (BATCH,)), classes=CLASSES)
    steps, sampler = 20, DPMConfig(steps=20).build()
    t = torch.full((BATCH,), 0.5)

    def loop() -> float:
        start = time.perf_counter()
        sampler(Denoiser(network), noise, conditioning)
        return time.perf_counter() - start

    def bare() -> float:
        start = time.perf_counter()
        with torch.no_grad():
            for _ in range(steps):
                network(noise, t, conditioning)
        return time.perf_counter() - start

    yield ratio(
        "core/sampler_loop_over_bare_calls",
        paired(loop, bare, 11),
        target=0.98,
        against=f"{steps} calls of the network alone; DPM-Solver++ 2M around {steps}",
    )


def bench_gpu() -> Iterator[Result]:
    """B/2 and XL/2 on 32 x 32 x 4 latents, bf16 and compiled, beside the GPU's own matrix products."""
    import torch

    from diffusion.compilation import compile_blocks
    from diffusion.conditioning import Conditioning
    from diffusion.config import DiTConfig, DPMConfig, OptimizationConfig
    from diffusion.denoiser import Denoiser
    from diffusion.losses import flow_matching
    from diffusion.networks.flops import flops
    from diffusion.training import TrainingState, fit

    if not torch.cuda.is_available():
        print("  gpu: this machine has none, nothing is measured", flush=True)
        return
    torch.set_float32_matmul_precision("high")
    ceiling = _matmul_ceiling()
    yield Result(name="core/gpu_matmul_bf16", value=ceiling, unit="TFLOP/s", better="higher")
    for name, batch in (("B/2", 256), ("XL/2", 128)):
        config = dataclasses.replace(DiTConfig.named(name), norm="rms")
        work = flops(config, channels=4, size=32, classes=1000)
        label = torch.randint(0, 1000, (batch,), device="cuda")
        conditioning = Conditioning(label=label, classes=1000)
        x, z = torch.randn(2, batch, 4, 32, 32, device="cuda")
        t = torch.rand(batch, device="cuda")

        network = config.build(channels=4, size=32, classes=1000).cuda()
        compile_blocks(network)
        optimization = OptimizationConfig(lr=1e-4)
        state = TrainingState.start(network, optimization)

        def losses(_: Any, network: Any = network, told: Any = conditioning, data: Any = (x, z, t)) -> Any:
            with torch.autocast("cuda", torch.bfloat16):
                return flow_matching(Denoiser(network), *data, told)

        def train(
            steps: int,
            state: Any = state,
            losses: Any = losses,
            batch: int = batch,
            optimization: OptimizationConfig = optimization,
        ) -> float:
            target = state.images_seen + steps * batch
            start = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start[0].record()
            for _ in fit(
                state,
                iter(lambda: 0, 1),
                losses,
                optimization=optimization,
                batch=batch,
                target_images=target,
            ):
                pass
            start[1].record()
            torch.cuda.synchronize()
            return start[0].elapsed_time(start[1]) / 1e3

        train(20)
        torch.cuda.reset_peak_memory_stats()
        rate = statistics.median(30 * batch / train(30) for _ in range(5))
        reached = 3 * work * rate / 1e12
        memory = torch.cuda.max_memory_allocated() / 2**30
        yield Result(
            name=f"core/gpu_training_{name}",
            value=reached / ceiling,
            unit="of the matmul ceiling",
            target=0.55,
            better="higher",
            against=f"{ceiling:.0f} TFLOP/s; {rate:.0f} images/s, {reached:.0f} TFLOP/s, {memory:.1f} GiB",
            extra={"images_per_second": rate, "peak_gib": memory},
        )
        steps = 25

        def sample(network: Any = network, x: Any = x, told: Any = conditioning, steps: int = steps) -> float:
            start = time.perf_counter()
            with torch.autocast("cuda", torch.bfloat16):
                DPMConfig(steps=steps).build()(Denoiser(network), x, told)
            torch.cuda.synchronize()
            return time.perf_counter() - start

        sample()
        rate = statistics.median(batch / sample() for _ in range(5))
        yield Result(
            name=f"core/gpu_sampling_{name}",
            value=steps * work * rate / 1e12 / ceiling,
            unit="of the matmul ceiling",
            better="higher",
            against=f"{rate:.0f} images/s of {steps} steps without guidance",
        )


def _matmul_ceiling(side: int = 8192, seconds: float = 2.0) -> float:
    """TFLOP/s of bf16 matrix products, the most that this GPU gives."""
    import torch

    a, b = torch.randn(2, side, side, device="cuda", dtype=torch.bfloat16)
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()
        count += 10
    return 2 * side**3 * count / (time.perf_counter() - start) / 1e12


def _called(network: Any) -> Callable[..., Any]:
    from diffusion.conditioning import Conditioning

    return lambda x, t, label: network(x, t, Conditioning(label=label, classes=CLASSES))


def _dits() -> tuple[Any, Any, Callable[..., Any]]:
    his = theirs()

    def call(x: Any, t: Any, label: Any) -> Any:
        # twice the channels come back, as it learns variances; ours predicts none
        return his(x, timestep=(t * 999).long(), class_labels=label).sample[:, :CHANNELS]

    return ours(), his, call


def _unets() -> tuple[Any, Any, Callable[..., Any]]:
    """Two levels of 96 and 192 channels, two blocks each, attention at the coarse one."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    from diffusion.config import UNetConfig

    mine = UNetConfig(channels=96, multipliers=(1, 2), blocks=2, stem=1, attention=(1,)).build(
        channels=CHANNELS, size=SIDE, classes=CLASSES
    )
    his = UNet2DModel(
        sample_size=SIDE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(96, 192),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=64,
        num_class_embeds=CLASSES,
    )
    return mine, his, lambda x, t, label: his(x, t * 999, class_labels=label).sample


def _training_step(
    network: Any, call: Callable[..., Any], x: Any, t: Any, label: Any, autocast: Any
) -> Callable[[], float]:
    import torch

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    target = torch.randn_like(x)

    def step() -> float:
        start = time.perf_counter()
        for _ in range(3):
            optimizer.zero_grad()
            with autocast:
                loss = (call(x, t, label).float() - target).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        return time.perf_counter() - start

    return step


def _sampling_step(
    call: Callable[..., Any], x: Any, t: Any, label: Any, autocast: contextlib.AbstractContextManager[None]
) -> Callable[[], float]:
    import torch

    def step() -> float:
        start = time.perf_counter()
        with torch.no_grad(), autocast:
            for _ in range(5):
                call(x, t, label)
        return time.perf_counter() - start

    return step
