"""What happens between a training's steps."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.gang import GangPaused
from pipelines.training import averages, parallel
from pipelines.training.account import Account
from pipelines.training.agreement import Agreement
from pipelines.training.beside import KID, PICTURE, Looks, Seen
from pipelines.training.checkpoints import Mark, Writer
from pipelines.training.figures import Figures
from pipelines.training.guard import Guard
from pipelines.training.job import Job, uncooled
from pipelines.training.kid import told

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cluster.gang import Member
    from diffusion.training import Progress, TrainingState
    from pipelines.training.tasks.task import Task

REPORT_SECONDS = 1.0
"""Between two readings of the loss, at least: reading it waits for the device."""
CHECKPOINT, REPORT, STOP = "checkpoint", "report", "stop"
"""What a rank may wish of all."""


@dataclass(eq=False)
class Loop:
    """What happens between the steps, on every rank at the same ones: events, held-out figures, pictures,
    checkpoints, and the end where somebody asks for it. Only rank 0 tells."""

    job: Job
    member: Member
    task: Task
    state: TrainingState
    spread: parallel.Spread
    guard: Guard
    figures: Figures
    account: Account
    curve: list[list[Any]] = field(default_factory=list)
    effort: Callable[[], float] = lambda: 0.0
    """Seconds of this worker's own work since it was last asked."""
    _asked: set[str] = field(default_factory=set)
    """What rank 0 has wished and not yet heard."""
    _steps: int = 0
    """Since the last report."""
    _safe: float | None = None
    """When the newest state that is safe was the training's."""
    _took: float = 0.0
    """Seconds until it was safe."""
    _judged: dict[str, Any] = field(default_factory=dict)
    """What the figures of looks are of."""

    def __post_init__(self) -> None:
        self.training = self.job.training
        self._writer = Writer(self.job.checkpoints, rank=self.member.rank, world=self.member.world)
        self._agreement = Agreement((CHECKPOINT, REPORT, STOP), world=self.member.world)
        self._looks = Looks(self.job, self.member, self.task)
        self._written_at = self.state.images_seen
        self._written = self._reported = time.monotonic()

    def step(self, progress: Progress) -> None:
        """After each step.

        Raises:
            RollBack: the training has to begin anew from an older checkpoint.
            GangPaused: it was asked to end, and its state is safe.
        """
        training, seen = self.training, progress.images_seen
        self.account.stepped(seen)
        self.member.beat(seen, self.effort())
        for text in self._writer.news():
            self.member.event({"kind": "note", "text": text})
        agreed = self._agreement.exchange(self._wishes())
        self._asked -= agreed
        last = seen >= training.images_seen
        anchor = self._uncooled(seen) and not self._uncooled(seen + training.batch)
        due = anchor or bool(agreed & {CHECKPOINT, STOP}) or progress.every(training.checkpoint_every)
        harm = self.guard.step(progress, self.state, due=due)
        if harm is not None:
            self._agreement.close()
            with self.account.spent("checkpoint"):
                self._writer.wait()
            raise self.guard.leave_out(harm)
        self._steps += 1
        if last or REPORT in agreed:
            self._report(progress)
        with self.account.spent("look"):
            if last or progress.every(training.validate_every):
                self._validate(seen)
            self._look(seen, self._wanted(progress, last=last))
        others = training.optimization.ema_others
        if others and (last or progress.every(max(1, training.images_seen // averages.TIMES))):
            averages.store(self.job.checkpoints, self._mark(seen), self.state.ema, member=self.member)
        # Nothing is gained by a step that was bad, and retention would forget one from before it.
        if last or STOP in agreed or (due and self.guard.good(seen)):
            self._write(seen)
        if STOP in agreed and not last:
            with self.account.spent("checkpoint"):
                self._writer.wait()
            self._agreement.close()
            raise GangPaused(f"Stopped at {seen:,} images, which are safe: run again to go on.")

    def close(self) -> None:
        """Leaves nothing behind that runs."""
        self._looks.close()

    def finish(self) -> dict[str, Any]:
        """Writes the snapshot's weights, the average over training in fp16, once the checkpoint is safe."""
        self._agreement.close()
        if self._written_at != self.state.images_seen:  # the last batches were left out
            self._write(self.state.images_seen)
        with self.account.spent("checkpoint"):
            self._writer.wait()
        averaged, facts = self._average(), {}
        if self.member.rank:
            return {}
        with self.account.spent("look"):
            self._tell(self._looks.finish(self.state.images_seen, averaged, self._wanted()))
        import torch
        from safetensors.torch import save

        from pipelines.training.tasks.task import Adapted, Contested

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
        files = {self.training.file: hashlib.sha256(data).hexdigest()}
        if isinstance(self.task, Adapted):
            for name, some in self.task.beside(averaged).items():
                data = save({n: t.contiguous().cpu() for n, t in some.items()})
                self.job.output.replace(name, data)
                files[name] = hashlib.sha256(data).hexdigest()
        return {
            "images_seen": self.state.images_seen,
            "curve": self.curve,
            "skipped": int(self.state.skipped),
            "parameters": sum(t.numel() for t in weights.values()),
            **self.task.facts(),
            **facts,
            **self.guard.facts(),
            **({"kid": self._judged} if self._judged else {}),
            **({"looks_skipped": self._looks.skipped} if self._looks.skipped else {}),
            "time": self.account.summary(),
            "files": files,
        }

    def _wishes(self) -> list[str]:
        stop = [STOP] if self.member.stopping() else []
        if self.member.rank:
            return stop
        # Rank 0's clock alone decides, and wishes once: what is agreed comes a step later.
        wishes, seconds, now = set[str](), self.training.checkpoint_seconds, time.monotonic()
        if seconds is not None and now - self._written >= seconds and not self._writer.busy:
            wishes.add(CHECKPOINT)
        if now - self._reported >= REPORT_SECONDS:
            wishes.add(REPORT)
        wishes -= self._asked
        self._asked |= wishes
        return [*stop, *wishes]

    def _report(self, progress: Progress) -> None:
        from pipelines.training.tasks.task import Contested

        figures = self.figures.values(
            images=self._steps * self.training.batch, since=self._reported, gather=self._agreement.gather
        )
        self._steps, self._reported = 0, time.monotonic()
        if self.member.rank:
            return
        values = {
            **figures,
            "grad_norm": progress.grad_norm.item(),
            "lr": progress.lr,
            "workers": self.member.world,
            "restarts": self.member.attempt,
            **self.account.values(),
        }
        if self._safe is not None:
            values |= {"checkpoint_age": time.monotonic() - self._safe, "checkpoint_seconds": self._took}
        if progress.rival_grad_norm is not None:
            values["rival_grad_norm"] = progress.rival_grad_norm.item()
        if skipped := int(progress.skipped):
            values["skipped_steps"] = skipped
        if isinstance(self.task, Contested):
            values |= {name: value.item() for name, value in self.task.figures().items()}
        values = {name: value for name, value in values.items() if math.isfinite(value)}  # as JSON has it
        self.member.event({"kind": "metrics", "step": progress.images_seen, "values": values})
        done, total = progress.images_seen, max(self.training.images_seen, progress.images_seen)
        self.member.event({"kind": "progress", "done": done, "total": total, "unit": "images"})

    def _wanted(self, progress: Progress | None = None, *, last: bool = True) -> list[str]:
        """What is to be looked at now."""
        every = {PICTURE: self.training.samples_every, KID: self.training.kid_every}
        return [
            what
            for what, images in every.items()
            if images is not None and (last or (progress is not None and progress.every(images)))
        ]

    def _validate(self, images_seen: int) -> None:
        averaged = self._average()
        values = {} if self.member.rank else self.task.evaluate(averaged)
        if values:
            self._point(images_seen, values)

    def _look(self, images_seen: int, wanted: Sequence[str]) -> None:
        averaged = self._average() if wanted else None
        if self.member.rank:
            return
        if averaged is not None:
            self._looks.look(images_seen, averaged, wanted)
        self._tell(self._looks.seen())

    def _tell(self, looks: Iterable[Seen]) -> None:
        for images_seen, found in looks:
            if "png" in found:
                png = found["png"]
                self.member.event({"kind": "picture", "name": "samples", "step": images_seen, "png": png})
            if found.get("values"):
                self._point(images_seen, found["values"])
            if found.get("about") and not self._judged:
                self._judged = found["about"]
                self.member.event({"kind": "note", "text": told(self._judged)})

    def _point(self, images_seen: int, values: dict[str, float]) -> None:
        """Of the curve; what a worker beside saw comes late."""
        known: dict[int, dict[str, float]] = {int(seen): found for seen, found in self.curve}
        known[images_seen] = {**known.get(images_seen, {}), **values}
        self.curve = [[seen, known[seen]] for seen in sorted(known)]
        self.member.event({"kind": "metrics", "step": images_seen, "values": values})

    def _write(self, images_seen: int) -> None:
        begun = time.monotonic()

        def safe() -> None:
            self.account.saved(images_seen)
            self._safe, self._took = begun, time.monotonic() - begun

        with self.account.spent("checkpoint"):
            self.account.saving(images_seen)
            mark = self._mark(images_seen)
            self._writer.write(
                mark,
                # The task's own weights are there again before a checkpoint is read.
                self.state.state_dict(frozen=False),
                {"curve": self.curve, "world": self.member.world, **self.guard.state()},
                done=safe,
            )
        self._written, self._written_at = time.monotonic(), images_seen

    def _mark(self, images_seen: int) -> Mark:
        return Mark(
            images_seen=images_seen,
            lease=self.job.lease,
            cooling=not self._uncooled(images_seen),
            target=self.training.images_seen,
        )

    def _uncooled(self, images_seen: int) -> bool:
        return uncooled(self.training, images_seen)

    def _average(self) -> nn.Module:
        """The averaged weights in a whole module, on every rank: all must ask together."""
        self.state.ema.copy_to(self.spread.averaged)
        return self.spread.averaged


def _stored(weight: Tensor, *, exact: bool) -> Tensor:
    """In fp16, unless it must be `exact` and that is not."""
    if not weight.dtype.is_floating_point:
        return weight
    half = weight.half()
    return weight if exact and not bool((half.to(weight.dtype) == weight).all()) else half
