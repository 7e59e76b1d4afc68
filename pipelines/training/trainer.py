"""The one training loop: any task, one worker or many, killed and resumed anywhere to the same bits."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from diffusion.config import OptimizationConfig
from pipelines.stream import TrainingStream
from pipelines.training import averages, checkpoint
from pipelines.training.checkpoint import Checkpoint, Mark, Writer
from pipelines.training.prefetch import prefetched

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.nn.parallel import DistributedDataParallel

    from cluster.gang import Member
    from cluster.storage import Storage
    from diffusion.training import Progress, TrainingState
    from pipelines.training.tasks.task import Task

AHEAD = 3
"""Batches that are made before they are needed."""
REPORT_SECONDS = 1.0
"""Between two readings of the loss: reading it waits for the device."""
HOPELESS = 50
"""Steps in a row with a gradient that is not finite after which training stops."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long, on what terms, and how often to look."""

    batch: int
    """Images of the global batch."""
    images_seen: int
    """At which it ends."""
    optimization: OptimizationConfig
    seed: int
    precision: Literal["float32", "bfloat16"]
    accelerated: bool
    """Whether each worker has a GPU."""
    file: str
    """Of the snapshot's weights."""
    accumulate: int = 1
    """Pieces of a worker's share of the batch, of which one at a time is in memory."""
    compile: bool = False
    """Compiles the module's blocks."""
    ema_width: float | None = None
    """Of the average in the snapshot, made of stored ones; `optimization.ema`, which needs none, if None."""
    validate_every: int | None
    samples_every: int | None
    checkpoint_every: int | None
    checkpoint_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker is sent."""

    training: Training
    task: Callable[[torch.device, int], Task]
    """Builds it from the device and the number of workers on a machine."""
    output: Storage
    checkpoints: Storage
    lease: int


def train_worker(config: dict[str, Any], member: Member) -> dict[str, Any]:
    """One worker of a gang; `config` is {"job": Job}. Gives what rank 0 says of the finished training.

    Keys of the result: images_seen, curve ([images_seen, {name: value}] of held-out figures), skipped (steps
    without a finite gradient), parameters, files ({name: sha256}), the task's own facts, and ema ({width,
    misfit}) where the average was made of stored ones.
    """
    import torch

    from diffusion.compilation import compile_blocks
    from diffusion.training import TrainingState, fit
    from pipelines.training.tasks.task import Contested

    job: Job = config["job"]
    training = job.training
    if training.batch < member.world:
        raise ValueError(
            f"A batch of {training.batch} leaves some of {member.world} workers without an image."
        )
    device = torch.device("cuda" if training.accelerated and torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        task = job.task(device, member.world)
    rival = task.rival if isinstance(task, Contested) else None
    state = TrainingState.start(task.module, training.optimization, rival=rival)
    if training.compile:
        compile_blocks(task.module, shapes=max(1, len(task.groups)))
    ddp = _distributed(task.module, member.world)
    module = task.module if ddp is None else ddp
    autocast = torch.bfloat16 if training.precision == "bfloat16" else None

    def losses(share: Any) -> Tensor:
        return task.losses(module, share)

    def stream(images_seen: int) -> Generator[Any]:
        return _shares(task, training, member, images_seen=images_seen, device=device)

    if member.world > 2:
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            _settle(task.module, losses, stream, training.accumulate)
    found = _restore(job, member)
    if found is not None:
        state.load_state_dict(found.tensors)
        member.event({"kind": "note", "text": f"Continues from {found.mark.images_seen:,} images."})
    log = Log(job, member, task, state, curve=list(found.state["curve"]) if found else [])
    if training.images_seen > state.images_seen:
        with contextlib.closing(stream(state.images_seen)) as shares:
            for progress in fit(
                state,
                shares,
                losses,
                optimization=training.optimization,
                batch=training.batch,
                target_images=training.images_seen,
                autocast=autocast,
                accumulate=training.accumulate,
                ddp=ddp,
            ):
                log.step(progress)
    return log.finish()


@dataclass(eq=False)
class Log:
    """What happens beside the steps, all on rank 0: events, held-out figures, pictures, checkpoints."""

    job: Job
    member: Member
    task: Task
    state: TrainingState
    curve: list[list[Any]]
    _losses: list[Tensor] = field(default_factory=list)
    _bad: int = 0
    _skipped: int = 0

    def __post_init__(self) -> None:
        self.training = self.job.training
        self._writer = Writer(self.job.checkpoints)
        self._written = self._reported = time.monotonic()
        self._skipped = int(self.state.skipped)
        self._averaged: nn.Module | None = None

    def step(self, progress: Progress) -> None:
        if self.member.rank:
            return
        training, now = self.training, time.monotonic()
        last = progress.images_seen >= training.images_seen
        self._losses.append(progress.loss)
        if last or now - self._reported >= REPORT_SECONDS:
            self._report(progress, now - self._reported)
        if last or progress.every(training.validate_every):
            self._validate(progress.images_seen)
        if last or progress.every(training.samples_every):
            self._picture(progress.images_seen)
        anchor = self._uncooled(progress.images_seen) and not self._uncooled(
            progress.images_seen + training.batch
        )
        due = training.checkpoint_seconds is not None and now - self._written >= training.checkpoint_seconds
        if training.optimization.ema_others and (
            last or progress.every(max(1, training.images_seen // averages.TIMES))
        ):
            averages.store(self.job.checkpoints, self._mark(progress.images_seen), self.state.ema)
        if last or anchor or progress.every(training.checkpoint_every) or (due and not self._writer.busy):
            self._write(progress.images_seen)

    def finish(self) -> dict[str, Any]:
        """Writes the snapshot's weights, the average over training in fp16, once the checkpoint is safe."""
        if self.member.rank:
            return {}
        import torch
        from safetensors.torch import save

        from pipelines.training.tasks.task import Contested

        self._writer.wait()
        averaged, facts = self._average(), {}
        if self.training.ema_width is not None:
            tensors, misfit = averages.reconstruct(
                self.job.checkpoints,
                images_seen=self.state.images_seen,
                width=self.training.ema_width,
                target=self.training.images_seen,
                cooling=lambda images_seen: not self._uncooled(images_seen),
            )
            averaged.load_state_dict(tensors, strict=False)
            facts = {"ema": {"width": self.training.ema_width, "misfit": misfit}}
        weights = self.task.weights(averaged)
        untouched = self.task.untouched if isinstance(self.task, Contested) else frozenset()
        tensors = {
            name: _stored(t, exact=name in untouched).contiguous().cpu() for name, t in weights.items()
        }
        broken = sorted(
            name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()
        )
        if broken:
            raise ValueError(
                f"The weights {', '.join(broken[:3])} are not finite: lower optimization.lr and train again."
            )
        data = save(tensors)
        self.job.output.replace(self.training.file, data)
        return {
            "images_seen": self.state.images_seen,
            "curve": self.curve,
            "skipped": int(self.state.skipped),
            "parameters": sum(t.numel() for t in weights.values()),
            **self.task.facts(),
            **facts,
            "files": {self.training.file: hashlib.sha256(data).hexdigest()},
        }

    def _report(self, progress: Progress, seconds: float) -> None:
        import torch

        from pipelines.training.tasks.task import Contested

        loss = torch.stack(self._losses).float().mean().item()
        skipped = int(progress.skipped)
        self._bad = self._bad + len(self._losses) if skipped - self._skipped == len(self._losses) else 0
        if self._bad >= HOPELESS:
            raise ValueError(
                f"None of the last {self._bad} steps had a finite gradient: "
                "lower optimization.lr, or set optimization.clip."
            )
        rate = len(self._losses) * self.training.batch / max(seconds, 1e-9)
        values = {
            "loss": loss,
            "grad_norm": progress.grad_norm.item(),
            "lr": progress.lr,
            "images_per_second": rate,
        }
        if skipped:
            values["skipped_steps"] = skipped
        if isinstance(self.task, Contested):
            values |= {name: value.item() for name, value in self.task.figures().items()}
        self._event(kind="metrics", step=progress.images_seen, values=values)
        total = max(self.training.images_seen, progress.images_seen)
        self._event(kind="progress", done=progress.images_seen, total=total, unit="images")
        self._losses.clear()
        self._reported, self._skipped = time.monotonic(), skipped

    def _validate(self, images_seen: int) -> None:
        values = self.task.evaluate(self._average())
        if values:
            self.curve = [point for point in self.curve if point[0] < images_seen] + [[images_seen, values]]
            self._event(kind="metrics", step=images_seen, values=values)

    def _picture(self, images_seen: int) -> None:
        png = self.task.picture(self._average())
        if png is not None:
            self._event(kind="picture", name="samples", step=images_seen, png=png)

    def _write(self, images_seen: int) -> None:
        mark = self._mark(images_seen)
        self._writer.write(mark, self.state.state_dict(), {"curve": self.curve, "world": self.member.world})
        self._written = time.monotonic()

    def _mark(self, images_seen: int) -> Mark:
        return Mark(
            images_seen=images_seen,
            lease=self.job.lease,
            cooling=not self._uncooled(images_seen),
            target=self.training.images_seen,
        )

    def _uncooled(self, images_seen: int) -> bool:
        return _uncooled(self.training, images_seen)

    def _average(self) -> nn.Module:
        import copy

        if self._averaged is None:
            self._averaged = copy.deepcopy(self.task.module).eval()
        self.state.ema.copy_to(self._averaged)
        return self._averaged

    def _event(self, **event: Any) -> None:
        self.member.event(event)


def _stored(weight: Tensor, *, exact: bool) -> Tensor:
    """In fp16, unless it must be `exact` and that is not."""
    if not weight.dtype.is_floating_point:
        return weight
    half = weight.half()
    return weight if exact and not bool((half.to(weight.dtype) == weight).all()) else half


def _uncooled(training: Training, images_seen: int) -> bool:
    """Whether longer trainings pass through the same state at `images_seen`."""
    return training.optimization.before_cooldown(
        images_seen, batch=training.batch, target_images=training.images_seen
    )


def _restore(job: Job, member: Member) -> Checkpoint | None:
    """The furthest whole checkpoint on this training's way; rank 0 chooses for all."""
    training = job.training

    def usable(mark: Mark) -> bool:
        return mark.target == training.images_seen if mark.cooling else _uncooled(training, mark.images_seen)

    if member.world == 1:
        return checkpoint.newest(job.checkpoints, usable)
    import torch
    import torch.distributed

    found = checkpoint.newest(job.checkpoints, usable) if member.rank == 0 else None
    choice = torch.tensor([found.mark.images_seen, found.mark.lease] if found else [-1, -1])
    if torch.distributed.get_backend() == "nccl":
        choice = choice.cuda()
    torch.distributed.broadcast(choice, 0)
    images_seen, lease = choice.tolist()
    if member.rank == 0 or images_seen < 0:
        return found
    return checkpoint.read(job.checkpoints, checkpoint.name_of(images_seen, lease))


def _distributed(module: nn.Module, world: int) -> DistributedDataParallel | None:
    if world == 1:
        return None
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(module)


def _settle(
    module: nn.Module,
    losses: Callable[[Any], Tensor],
    stream: Callable[[int], Generator[Any]],
    accumulate: int,
) -> None:
    """Two backwards whose gradients are dropped: DDP orders its buckets by the first, and beyond two ranks
    the order of a sum decides its last bits. A resumed training must add up as the unbroken one does."""
    from diffusion.accumulation import micro_batches

    with contextlib.closing(stream(0)) as shares:
        share = next(micro_batches(next(shares), accumulate))
        for _ in range(2):
            losses(share).sum().backward()
    module.zero_grad(set_to_none=True)


def _shares(
    task: Task, training: Training, member: Member, *, images_seen: int, device: torch.device
) -> Generator[Any]:
    """This rank's shares of the global batches from `images_seen` on, made ahead in a thread."""
    stream = TrainingStream(
        task.length,
        seed=training.seed,
        batch=training.batch,
        rank=member.rank,
        world=member.world,
        images_seen=images_seen,
        groups=task.groups,
    )
    made = prefetched(stream, lambda place: task.share(*place), ahead=AHEAD, begin=_alone)
    with contextlib.closing(made):
        for share in made:
            yield share.to(device)


def _alone() -> None:
    """One torch thread for the calling thread.

    With a team of its own there would be more OpenMP threads than cores, and OpenMP then sends the training's
    threads to sleep after every operation: steps take up to 1.8 times as long.
    """
    import torch

    torch.set_num_threads(1)
