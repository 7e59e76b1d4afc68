"""The `train` stage beside loops with nothing around them, and how soon a training is under way.

STEPS and PAIRS in the environment make it shorter, to see that it works.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.gang import Member
from cluster.storage import Storage
from pipelines.training.account import Tally, tallies
from tests.benchmarks.ratios import PAIRS, interleaved, ratio
from tests.benchmarks.results import Result
from tests.benchmarks.startup import COMMAND
from tests.pipelines import tiny

STEPS = int(os.environ.get("STEPS", "400"))
"""Optimizer steps of one timed training."""
FLAGS = (
    "--autoencoder.images-seen",
    "1600",
    "--autoencoder.optimization.cooldown",
    "0",
    "--autoencoder.optimization.warmup",
    "0",
)
"""An autoencoder that has hardly learned costs what any other does."""
RECIPE = """
name: trained
stages:
  images: {{stage: ingest, source: {{kind: folder, path: emoji}}, size: 48, samples_per_shard: 200}}
  vae: {{stage: train_autoencoder, images: images, images_seen: 160, batch: 8,
    autoencoder: {{kind: kl, latent_channels: 4, channels: 32, multipliers: [1, 2], stem: 2, blocks: 1}},
    optimization: {{warmup: 80, cooldown: 0}}}}
  latents: {{stage: encode, images: images, autoencoder: vae}}
  model: {{stage: train, latents: latents, autoencoder: vae, batch: 16, images_seen: {images_seen},
    network: {{kind: dit, width: 192, depth: 6, heads: 3, patch: 3}},
    optimization: {{lr: 1.0e-3, warmup: 32, cooldown: 0}}, resources: {{workers: {workers}, cpus: {cpus}}},
    validate_every: 1000000000, samples_every: 1000000000, checkpoint_seconds: {checkpoint_seconds}}}
"""
"""Of trainings that are begun, and broken off; all before `model` is finished beforehand."""
Gang = Callable[[Callable[..., dict[str, Any]], dict[str, Any], Callable[[dict[str, Any]], None]], Any]


@functools.cache
def line() -> Any:
    """The quickstart's plan with its inputs made once, in a store that goes with the process."""
    from pipelines import config
    from pipelines.pipeline import plan, run

    folder = tempfile.TemporaryDirectory()
    line.folder = folder  # type: ignore[attr-defined]  # kept as long as the process
    recipe, store = config.load("quickstart", list(FLAGS)), Storage.at(Path(folder.name))
    for stage in ("latents", "text"):
        run(recipe, store, executor="inline", until=stage, record=False)
    return plan(recipe, store)


def timed(config: dict[str, Any], member: Member) -> dict[str, Any]:
    """The stage's worker, whose events say when they were sent."""
    from pipelines.training.trainer import train_worker

    def event(told: dict[str, Any]) -> None:
        member.event({**told, "at": time.monotonic()})

    return train_worker(config, dataclasses.replace(member, event=event))


@dataclass
class Timed(tiny.TinySession):
    """A session whose gang is the one that is measured."""

    runs: Gang | None = None

    def gang(self, worker: Callable[..., dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
        assert self.runs is not None
        return self.runs(timed, config, self.event)


def rate(stage: Any, inputs: Any, runs: Gang) -> float:
    """Steps a second of the whole stage between its first and its last report: validation, pictures and
    checkpoints at the recipe's cadence are in it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Storage.at(Path(folder))
        session = Timed(
            inputs=inputs,
            output=place.folder("output"),
            checkpoints=place.folder("checkpoints"),
            scratch=Path(folder),
            runs=runs,
        )
        stage.run(session)
    seen = [(event["at"], event["done"]) for event in session.events if event["kind"] == "progress"]
    (start, first), (end, last) = seen[0], seen[-1]
    return (last - first) / stage.batch / (end - start)


def alone(worker: Callable[..., dict[str, Any]], config: dict[str, Any], event: Any) -> Any:
    """In this process, as `--executor inline` does it."""
    import torch

    return worker(config, Member(rank=0, world=1, event=event, threads=torch.get_num_threads()))


@contextlib.contextmanager
def on_ray(stage: Any) -> Iterator[Gang]:
    """One worker under Ray Train, on all cores, as `run` does it."""
    from ray import cloudpickle

    from cluster.mapping import RayExecutor
    from cluster.resources import settle
    from cluster.session import RaySession

    # The workers have the project's packages, and not its benchmarks.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    # A socket's path is short.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as notes:
        executor = RayExecutor(RaySession(dashboard=False, options={"_temp_dir": notes}))
        resources = settle(stage.resources, executor.capacity(), shape="gang", accelerated=stage.accelerated)

        def runs(worker: Callable[..., dict[str, Any]], config: dict[str, Any], event: Any) -> Any:
            return executor.gang(worker, config, resources=resources, name="train", on_event=event)

        try:
            yield runs
        finally:
            executor.close()


def shortened(stage: Any, **changes: Any) -> Any:
    """STEPS of it, which looks as often as a run of the recipe's length."""
    return replace(
        stage,
        images_seen=STEPS * stage.batch,
        optimization=replace(stage.optimization, cooldown=0),
        validate_every=max(1, stage.images_seen // 20),
        samples_every=max(1, stage.images_seen // 8),
        **changes,
    )


def bench_train_stage() -> Iterator[Result]:
    """Steps/s of the whole `train` stage, here and by a worker of Ray's, over `fit` on batches in memory."""
    import torch

    from diffusion.training import TrainingState, fit
    from pipelines.stream import TrainingStream

    # Set by hand, so that the data's threads do not ask for teams of their own.
    torch.set_num_threads(torch.get_num_threads())
    planned = line()["model"]
    stage, inputs = shortened(planned.stage), planned.open()
    task = stage.task(inputs, torch.device("cpu"), 1)
    stream = TrainingStream(task.length, seed=stage.seed, batch=stage.batch)
    batches = [task.share(*place) for place in itertools.islice(stream, 16)]

    def bare() -> float:
        state = TrainingState.start(task.module, stage.optimization)
        start = time.monotonic()
        for _ in fit(
            state,
            itertools.cycle(batches),
            lambda share: task.losses(task.module, share),
            optimization=stage.optimization,
            batch=stage.batch,
            target_images=STEPS * stage.batch,
        ):
            pass
        return STEPS / (time.monotonic() - start)

    found = interleaved(lambda: rate(stage, inputs, alone), bare)
    yield ratio("train/stage_over_bare_loop", "steps/s", 0.95, *found)
    with on_ray(stage) as runs:
        found = interleaved(lambda: rate(stage, inputs, runs), bare)
    yield ratio("train/stage_on_ray_over_bare_loop", "steps/s", 0.95, *found)


def bench_diffusers_training() -> Iterator[Result]:
    """Images/s of the stage and of a plain training script with a transformer of diffusers of the same width
    and depth, conditioned on classes, on the same latents."""
    import torch

    torch.set_num_threads(torch.get_num_threads())
    planned = line()["model"]
    network = replace(planned.stage.network, width=192, depth=6, heads=3, patch=2)
    stage = shortened(planned.stage, network=network, text=None, prompts=())
    inputs = {name: given for name, given in planned.open().items() if name != "text"}
    task = stage.task(inputs, torch.device("cpu"), 1)
    script, theirs = plain_script(task, network, batch=stage.batch)

    mine, his = interleaved(lambda: stage.batch * rate(stage, inputs, alone), lambda: script(STEPS))
    found = ratio("train/stage_over_diffusers_script", "images/s", 1.0, mine, his)
    millions = [sum(p.numel() for p in module.parameters()) / 1e6 for module in (task.module, theirs)]
    words = f"diffusers' script: {statistics.median(his):.3g} images/s, {millions[1]:.2f} M parameters"
    words += f"; the stage: {statistics.median(mine):.3g} images/s, {millions[0]:.2f} M"
    yield replace(found, against=words)


def plain_script(task: Any, network: Any, *, batch: int) -> tuple[Callable[[int], float], Any]:
    """Images/s of so many steps as diffusers' own examples write them (`train_unconditional.py`), latents in
    memory; and the network."""
    import numpy as np
    import torch
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.training_utils import EMAModel

    channels, side, _ = task.shape
    rows = np.arange(task.length)
    share = task.share(rows, rows)
    data = torch.utils.data.TensorDataset(share.latents, share.conditioning.label)
    model = DiTTransformer2DModel(
        num_attention_heads=network.heads,
        attention_head_dim=network.width // network.heads,
        in_channels=channels,
        out_channels=channels,
        num_layers=network.depth,
        sample_size=side,
        patch_size=network.patch,
        num_embeds_ada_norm=len(task.classes),
    )

    def train(steps: int) -> float:
        scheduler = DDPMScheduler(num_train_timesteps=1000)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
        rates = get_scheduler(
            "cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=steps + 500
        )
        ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True)
        loader = torch.utils.data.DataLoader(data, batch_size=batch, shuffle=True, drop_last=True)
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        model.train()
        start = time.monotonic()
        for latents, labels in itertools.islice(batches, steps):
            noise = torch.randn_like(latents)
            t = torch.randint(0, 1000, (len(latents),)).long()
            noisy = scheduler.add_noise(latents, noise, t)  # pyright: ignore[reportArgumentType]
            found = model(noisy, timestep=t, class_labels=labels.clamp(max=len(task.classes) - 1)).sample
            loss = torch.nn.functional.mse_loss(found, noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            ema.step(model.parameters())
            loss.detach().item()  # as their progress bar does
        return steps * batch / (time.monotonic() - start)

    return train, model


class Trained:
    """A recipe in a folder of its own, all before its training finished; and what its trainings tell."""

    def __init__(
        self, folder: Path, *, images_seen: int, checkpoint_seconds: float, workers: int = 1
    ) -> None:
        from tests.test_end_to_end import emoji

        self.store, self.recipe, self.images_seen = folder / "store", folder / "trained.yaml", images_seen
        emoji(folder / "emoji", slice(0, 400))
        told = {"images_seen": images_seen, "checkpoint_seconds": checkpoint_seconds, "workers": workers}
        self.recipe.write_text(RECIPE.format(**told, cpus=max(1, (os.cpu_count() or 1) // workers)))
        begun = self.begin("inline", "--until", "latents")
        assert begun.wait() == 0

    def begin(self, executor: str, *flags: str, **environment: str) -> subprocess.Popen[bytes]:
        """The command, as a process group of its own."""
        return subprocess.Popen(
            [COMMAND, "run", str(self.recipe), "--store", str(self.store), "--executor", executor, *flags],
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def attempts(self) -> list[Tally]:
        """Of the denoiser's trainings, in the order in which they began."""
        found = [tallies(Storage.at(folder)) for folder in (self.store / "checkpoints").glob("*")]
        mine = [tally for some in found for tally in some if tally.target == self.images_seen]
        return sorted(mine, key=lambda tally: tally.started)


def stepped(tally: Tally) -> float:
    """When its first step had ended, by the wall clock."""
    return tally.started + sum(tally.seconds.get(name, 0.0) for name in ("start", "restore"))


def until(found: Callable[[], Any], process: subprocess.Popen[bytes], seconds: float = 300.0) -> Any:
    """What it gives, once that is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        if process.poll() is not None:
            raise RuntimeError(f"the command ended with {process.returncode}.")
        time.sleep(0.2)
    raise RuntimeError(f"nothing came of it for {seconds:.0f} s.")


def end(process: subprocess.Popen[bytes]) -> None:
    """With all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def bench_first_step() -> Iterator[Result]:
    """From `latentmill run` to the end of the first training step, everything before it finished."""
    for executor, target in (("inline", 10.0), ("ray", 30.0)):
        with tempfile.TemporaryDirectory() as folder:
            trained, taken = Trained(Path(folder), images_seen=64, checkpoint_seconds=60), []
            for n in range(PAIRS):
                start = time.time()
                assert trained.begin(executor, "--model.seed", str(n)).wait() == 0
                taken.append(stepped(trained.attempts()[-1]) - start)
        yield Result(
            name=f"train/first_step_{executor}",
            value=statistics.median(taken),
            unit="s",
            target=target,
            better="lower",
            n=PAIRS,
            spread=(min(taken), max(taken)),
            note="from the command, inputs finished, a cold process each",
        )


def bench_resume() -> Iterator[Result]:
    """From the same command again to the end of the first new step, after a driver that was killed."""
    for executor, target in (("inline", 15.0), ("ray", 40.0)):
        with tempfile.TemporaryDirectory() as folder:
            trained, taken, lost = Trained(Path(folder), images_seen=10**7, checkpoint_seconds=2), [], []
            for n in range(PAIRS + 1):
                start, before = time.time(), len(trained.attempts())
                process = trained.begin(executor)
                try:
                    # It has come further than it began, and that is safe.
                    tally = until(functools.partial(resumed, trained, before), process)
                finally:
                    end(process)
                if n:
                    taken.append(stepped(tally) - start)
                    lost.append(tally.seconds.get("restore", 0.0))
        yield Result(
            name=f"train/resume_{executor}",
            value=statistics.median(taken),
            unit="s",
            target=target,
            better="lower",
            against=f"of that, to read the checkpoint: {statistics.median(lost):.2f} s",
            n=len(taken),
            spread=(min(taken), max(taken)),
            note="the driver killed -9 in training, the same command again at once",
        )


def resumed(trained: Trained, before: int) -> Tally | None:
    """The attempt after `before` others, once it has a checkpoint of its own."""
    found = trained.attempts()[before:]
    return found[-1] if found and len(found[-1].marks) > 1 else None
