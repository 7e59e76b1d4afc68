"""Steps that harm a training: found, gone back from, and left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.training.agreement import heard
from pipelines.training.arriving import Arriving
from pipelines.training.job import Training, uncooled
from pipelines.training.journal import Entry, Journal, Place, decoded, encoded
from pipelines.training.replicas import Replicas

if TYPE_CHECKING:
    from torch import Tensor

    from cluster.gang import Member
    from cluster.storage import Storage
    from diffusion.training import Progress, TrainingState

LOOK = 8
"""Steps between two looks at what the device counts; each is at what was so one look before."""
AROUND = 10
"""Times `patience`: how near two harms are one, in steps, and how many are left out before the second (about
as many as in Chowdhery et al., 2022, Section 5.1)."""


class RollBack(Exception):
    """Raised on all ranks at the same step: the attempt is to begin anew from an older checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Harm:
    """Bad steps in a row, or replicas that differ; places are images seen."""

    first: int
    """Where the first bad step began, or the replicas were last known to be equal."""
    last: int
    """Where the last one ended, or they were found to differ."""
    reason: str
    near: tuple[Entry, ...]
    """Earlier rollbacks on account of about the same place, the newest first."""
    replicas: tuple[int, ...] | None = None
    """Ranks whose replica was damaged, as far as is known; None for bad steps."""


class Guard:
    """Asked after every step on every rank; all come to the same verdict, as the gradient's norm is one.

    A bad step has changed nothing but the average already (`diffusion.training.fit`). Many of them in a row
    say that what the training is now, or what it is fed, will not get better by itself.
    """

    def __init__(self, training: Training, storage: Storage, member: Member) -> None:
        """Reads the journal; for all ranks together."""
        self.config, self.training, self.batch = training.guard, training, training.batch
        self.member, self._journal = member, Journal(storage)
        known = encoded(*self._journal.read()) if member.rank == 0 else b""
        entries, self.damaged = decoded(heard(known, rank=member.rank, world=member.world))
        self.entries = [entry for entry in entries if self._binds(entry)]
        for name in self.damaged if member.rank == 0 else ():
            text = f"Entry {name} of the journal is damaged: the batches that it left out are tried again."
            member.event({"kind": "note", "text": text})
        self._bad: list[list[int]] = []
        """Runs of bad steps: where the first began, where the last ended."""
        self._good = False
        """Whether any step was good, so far as is known."""
        self._count = 0
        self._taken: list[tuple[int, Tensor]] = []
        self._coming: list[tuple[list[int], Arriving]] = []
        self._replicas = None
        self._equal = 0
        """Where the replicas were last known to be equal."""
        if self.config.replicas_every is not None and member.world > 1:
            if training.parallel.kind != "ddp":
                raise ValueError("guard.replicas_every compares whole replicas: leave it out, or use ddp.")
            self._replicas = Replicas()

    def skipped(self, images_seen: int) -> bool:
        """Whether the batch that begins there is left out, on account of an earlier rollback."""
        return any(entry.begin <= images_seen < entry.end for entry in self.entries)

    def usable(self, images_seen: int) -> bool:
        """Whether a checkpoint of that place is from this training's way: it takes no step within what it
        leaves out, and another length that does may have written there."""
        return not any(entry.begin < images_seen < entry.end for entry in self.entries)

    def restored(self, state: dict[str, Any], *, images_seen: int, skipped: int) -> None:
        """The training goes on from a checkpoint with this `state`, and so many bad steps before it."""
        self._equal = images_seen
        self._bad = [list(run) for run in state.get("guard", {}).get("bad", [])]
        self._good, self._count = True, skipped

    def state(self) -> dict[str, Any]:
        """For the checkpoint's record; waits for the device."""
        self._hear()
        return {"guard": {"bad": [list(run) for run in self._bad]}} if self._bad else {}

    def good(self, images_seen: int) -> bool:
        """Whether the step that has ended there was good; waits for the device."""
        self._hear()
        return not self._bad or self._bad[-1][1] < images_seen

    def step(self, progress: Progress, state: TrainingState, *, due: bool = False) -> Harm | None:
        """What makes it necessary to go back, if anything does (`leave_out`).

        Args:
            due: whether a checkpoint is to be written now: none is before the replicas are known to be equal.

        Raises:
            ValueError: going back has not helped, or there is nothing to go back to.
        """
        self._taken.append((progress.images_seen, progress.skipped))
        number, last = progress.images_seen // self.batch, progress.images_seen >= self.training.images_seen
        if self._replicas is not None:
            self._replicas.stepped(state)
            if due or last or progress.every(self.config.replicas_every):
                self._replicas.see(progress.images_seen, state)
            if due or last or number % LOOK == 0:
                late = 0 if due or last else LOOK * self.batch
                if (harm := self._compared(progress.images_seen - late)) is not None:
                    return harm
        if number % LOOK and not last:
            return None
        # By places, not by what has arrived: a resumed training comes to the same verdict at the same step.
        until = progress.images_seen if last else (number - LOOK) * self.batch
        self._send()
        self._hear(until)
        if not any(self._long(run, until) for run in self._bad):
            return None
        self._hear()
        return self._harm(*next(run for run in self._bad if self._long(run, until)))

    def leave_out(self, harm: Harm) -> RollBack:
        """Writes down how to go on: leave out the bad batches; from the second time on, twice as many before
        them as the last time, and from an older checkpoint. For all ranks, once none is writing a checkpoint.
        """
        if self.member.rank:
            return RollBack()
        begin = harm.first if harm.replicas is None else harm.last
        if harm.near and harm.replicas is None:
            reach = AROUND * self.config.patience * self.batch
            begin = max(0, min(entry.first for entry in harm.near) - (reach << (len(harm.near) - 1)))
        places = [place for place in self._journal.places(self._ours) if place <= harm.first]
        tried = [entry.restart for entry in harm.near]
        older = [place for place in places if place <= begin and not (tried and place >= min(tried))]
        restart = max(older) if older else min(places, default=0)
        entry = Entry(
            reason=harm.reason,
            first=harm.first,
            last=harm.last,
            begin=max(begin, restart),
            replicas=harm.replicas,
            end=harm.last,
            restart=restart,
            cooling=not uncooled(self.training, harm.last),
            target=self.training.images_seen,
        )
        self._journal.add(entry)
        return RollBack(f"Goes back to {restart:,} images. {entry.said}.")

    def facts(self) -> dict[str, Any]:
        """For the snapshot's record: what was left out, and why."""
        self._hear()
        said: dict[str, Any] = {
            "bad": [list(run) for run in self._bad],
            "left_out": [[e.begin, e.end, e.reason] for e in self.entries if e.replicas is None],
            "replicas": [
                {"images_seen": e.last, "ranks": list(e.replicas)}
                for e in self.entries
                if e.replicas is not None
            ],
            "damaged": self.damaged,
        }
        said = {name: value for name, value in said.items() if value}
        return {"guard": said} if said else {}

    def _binds(self, entry: Entry) -> bool:
        """Whether this training is on the way of the one that wrote it, there."""
        if entry.cooling or not uncooled(self.training, entry.end):
            return entry.cooling and entry.target == self.training.images_seen
        return True

    def _ours(self, place: Place) -> bool:
        """Whether a checkpoint is one that this training could go on from."""
        if not self.usable(place.images_seen):
            return False
        if place.cooling:
            return place.target == self.training.images_seen
        return uncooled(self.training, place.images_seen)

    def _harm(self, first: int, last: int) -> Harm:
        """ValueError where it is no use to go back."""
        near = self._near(first, last, compared=False)
        usual = "" if self.config.spike is None else f", at most {self.config.spike:g} times the usual one"
        reason = f"None of {(last - first) // self.batch} steps had a finite gradient{usual}"
        where, advice = f"(images {first:,} to {last:,})", "lower optimization.lr, or set optimization.clip."
        if not self._good:
            raise ValueError(f"{reason} {where}, and none before: {advice}")
        if len(near) >= self.config.rollbacks:
            raise ValueError(f"{reason} {where}, and going back {len(near)} times has not helped: {advice}")
        return Harm(first=first, last=last, reason=reason, near=near)

    def _compared(self, until: int) -> Harm | None:
        """Replicas that differ; ValueError where they do so again and again."""
        assert self._replicas is not None
        for place, sums, ranks in self._replicas.until(until):
            if len(set(sums)) > 1:
                near = self._near(self._equal, place, compared=True)
                named = " and ".join(map(str, ranks))
                who = f"those of rank {named} were damaged" if ranks else "whose were damaged is not known"
                reason = f"At {place:,} images the ranks' weights differ, and {who}"
                if len(near) >= self.config.rollbacks:
                    raise ValueError(
                        f"{reason}; going back {len(near)} times did not help: leave that machine out."
                    )
                return Harm(first=self._equal, last=place, reason=reason, near=near, replicas=tuple(ranks))
            self._equal = place
        return None

    def _near(self, first: int, last: int, *, compared: bool) -> tuple[Entry, ...]:
        """Earlier rollbacks on account of about the same place and for the same kind of reason, the newest
        first."""
        reach, near = AROUND * self.config.patience * self.batch, []
        for entry in reversed(self.entries):
            if (entry.replicas is not None) is not compared:
                continue
            if entry.first - reach > last or first - reach > entry.last:
                break
            near.append(entry)
            first = min(first, entry.first)
        return tuple(near)

    def _long(self, run: list[int], until: int) -> bool:
        """Whether there were too many in a row, as far as is to be known."""
        return min(run[1], until) - run[0] >= self.config.patience * self.batch

    def _send(self) -> None:
        """Lets what the device counted travel to the host, where it is read later."""
        if not self._taken:
            return
        import torch

        counts = torch.stack([count for _, count in self._taken])
        self._coming.append(([place for place, _ in self._taken], Arriving(counts)))
        self._taken.clear()

    def _hear(self, until: int | None = None) -> None:
        """Takes in what is known of the steps that ended up to there; of all, which waits for the last, if
        None."""
        if until is None:
            self._send()
        while self._coming and (until is None or self._coming[0][0][0] <= until):
            places, counts = self._coming.pop(0)
            for place, count in zip(places, counts.read(), strict=True):
                begin, bad = place - self.batch, count > self._count
                self._count, self._good = count, self._good or not bad
                if bad and self._bad and self._bad[-1][1] == begin:
                    self._bad[-1][1] = place
                elif bad:
                    self._bad.append([begin, place])
