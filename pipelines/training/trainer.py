"""The one training loop: any task, one worker or many, killed and resumed anywhere to the same bits."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from pipelines.stream import TrainingStream
from pipelines.training import checkpoints, parallel
from pipelines.training.account import Account
from pipelines.training.checkpoints import Checkpoint, Mark
from pipelines.training.effort import Effort
from pipelines.training.figures import Figures
from pipelines.training.guard import Guard, RollBack
from pipelines.training.job import Job, opened, uncooled
from pipelines.training.loop import Loop
from pipelines.training.pinning import pinned
from pipelines.training.prefetch import fetched, prefetched

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cluster.gang import Member
    from diffusion.training import TrainingState
    from pipelines.training.tasks.task import Task

HORIZON = 8192
"""Samples of a worker that are brought from a remote store before they are needed: where a window begins,
blocks of all lanes are, and one after the other would keep the steps waiting."""
AHEAD = 3
"""Batches that are made before they are needed."""


def train_worker(config: dict[str, Any], member: Member) -> dict[str, Any]:
    """One worker of a gang; `config` is {"job": Job}. Gives what rank 0 says of the finished training.

    Runs under Ray Train, or without Ray in processes of one process group. Keys of the result: images_seen,
    curve ([images_seen, {name: value}] of held-out figures), skipped (steps without a finite gradient),
    parameters, files ({name: sha256}), the task's own facts, time (`Account.summary`), the guard's facts, and
    ema ({width, misfit}) where the average was made of stored ones.

    Raises:
        GangPaused: it was told to end, and what it has is safe.
    """
    job: Job = config["job"]
    if job.training.batch < member.world:
        raise ValueError(
            f"A batch of {job.training.batch} leaves some of {member.world} workers without an image."
        )
    device = parallel.device(member, accelerated=job.training.accelerated)
    account = Account(job.checkpoints, member, lease=job.lease, target=job.training.images_seen)
    with contextlib.closing(account), parallel.grouped(job.training.parallel, member, device):
        while True:
            try:
                return _attempt(job, member, device, account)
            except RollBack as harm:
                account.again()
                if member.rank == 0:
                    member.event({"kind": "note", "text": str(harm)})


def _attempt(job: Job, member: Member, device: torch.device, account: Account) -> dict[str, Any]:
    """From the newest checkpoint to the end, or to a step that shows that it must begin from an older one."""
    import torch

    from diffusion.training import TrainingState, fit
    from pipelines.training.tasks.task import Contested

    training = job.training
    task = opened(job, device, member.world)
    rival = task.rival if isinstance(task, Contested) else None
    spread = parallel.spread(
        task.module,
        training.parallel,
        member=member,
        device=device,
        precision=training.precision,
        recompute=training.recompute,
        compiled=training.compile,
        shapes=max(1, len(task.groups)),
        rival=rival,
    )
    state = TrainingState.start(task.module, training.optimization, rival=rival, spike=training.guard.spike)
    guard = Guard(training, job.checkpoints, member)
    figures = Figures(task, member=member, device=device, precision=training.precision)
    autocast = torch.bfloat16 if training.precision == "bfloat16" else None

    effort = Effort(device)

    def losses(share: Any) -> Tensor:
        return task.losses(spread.module, share)

    def seen(share: Any) -> Tensor:
        with effort.forward():
            found = losses(share)
        figures.see(share, found.detach())
        return found

    def stream(images_seen: int) -> Generator[Any]:
        return _shares(task, job, member, guard, images_seen=images_seen, device=device)

    if member.world > 2:
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            _settle(task.module, losses, stream, training.accumulate)
    with account.spent("restore"):
        found = _restore(job, member, guard, state)
        account.restored(state.images_seen)
    if found is not None and member.rank == 0:
        member.event({"kind": "note", "text": f"Continues from {found.mark.images_seen:,} images."})
    loop = Loop(job, member, task, state, spread, guard, figures, account)
    loop.effort = effort.taken
    loop.curve = list(found.state["curve"]) if found else []
    with contextlib.closing(loop):
        if training.images_seen > state.images_seen:
            with contextlib.closing(stream(state.images_seen)) as shares:
                for progress in fit(
                    state,
                    _awaited(shares, account, effort),
                    seen,
                    optimization=training.optimization,
                    batch=training.batch,
                    target_images=training.images_seen,
                    autocast=autocast,
                    accumulate=training.accumulate,
                    ddp=spread.ddp,
                    skip=guard.skipped,
                ):
                    loop.step(progress)
        return loop.finish()


def _restore(job: Job, member: Member, guard: Guard, state: TrainingState) -> Checkpoint | None:
    """Loads the furthest whole checkpoint on this training's way."""
    training = job.training

    def usable(mark: Mark) -> bool:
        if not guard.usable(mark.images_seen):
            return False
        return mark.target == training.images_seen if mark.cooling else uncooled(training, mark.images_seen)

    found = checkpoints.restore(
        job.checkpoints,
        usable,
        rank=member.rank,
        world=member.world,
        like=state.state_dict(),
        tell=lambda text: member.event({"kind": "note", "text": text}),
    )
    if found is not None:
        state.load_state_dict(found.tensors)
        guard.restored(found.state, images_seen=state.images_seen, skipped=int(state.skipped))
    return found


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
    task: Task, job: Job, member: Member, guard: Guard, *, images_seen: int, device: torch.device
) -> Generator[Any]:
    """This rank's shares of the global batches from `images_seen` on, made ahead in threads."""
    from pipelines.training.tasks.task import Ordered

    stream = TrainingStream(
        task.length,
        seed=job.training.seed,
        batch=job.training.batch,
        rank=member.rank,
        world=member.world,
        images_seen=images_seen,
        groups=task.groups,
        lines=task.lines if isinstance(task, Ordered) else (),
        shuffle=task.shuffle if isinstance(task, Ordered) else None,
    )
    places = (place for place in stream if not guard.skipped(int(place[0][0]) - member.rank))
    begin = functools.partial(_alone, device)
    if isinstance(task, Ordered) and task.remote:
        places = fetched(task, places, ahead=HORIZON // -(-job.training.batch // member.world))
    made = prefetched(
        places,
        lambda place: pinned(task.share(*place), device),
        ahead=AHEAD,
        threads=job.training.loaders,
        begin=begin,
    )
    with contextlib.closing(made):
        for share in made:
            yield share.to(device)


def _awaited(shares: Iterator[Any], account: Account, effort: Effort) -> Iterator[Any]:
    """The same; waiting for one is on the data's account."""
    while True:
        with account.spent("data"), effort.data():
            share = next(shares, None)
        if share is None:
            return
        yield share


def _alone(device: torch.device) -> None:
    """One torch thread for the calling thread, and its device: a thread's own would be the first GPU.

    With a team of its own there would be more OpenMP threads than cores, and OpenMP then sends the training's
    threads to sleep after every operation: steps take up to 1.8 times as long.
    """
    import torch

    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(device)
