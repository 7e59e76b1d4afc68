"""Where a training's time goes: steps that counted, and everything else by its kind.

Goodput is the share of the wall time that went into steps whose result is in the training (as in Google's ML
Productivity Goodput, 2024). What is known of an attempt lies beside its checkpoints as a small JSON of its
own, written anew with each checkpoint and now and then between, in a thread: a kill loses what came after the
last writing, which then counts as time in which nothing ran.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.gang import Member
    from cluster.storage import Storage

NAME = re.compile(r"(\d{6})-(\d{4})\.json")
EVERY = 10.0
"""Seconds between two writings, where no checkpoint comes between."""
MARKS = 32
"""Checkpoints of an attempt that it is known of when they were safe: the newest ones."""
CATEGORIES = {
    "step": "steps",
    "start": "starting",
    "restore": "reading checkpoints",
    "data": "waiting for data",
    "checkpoint": "writing checkpoints",
    "look": "validation and pictures",
    "lost": "steps lost",
    "down": "down",
}
"""What a moment can be spent on, and how it is said. `lost` are steps that an attempt took and whose result
went with it; `down` is between the end of an attempt and the start of the next."""


@dataclass(kw_only=True)
class Tally:
    """What is known of one attempt."""

    target: int
    """`images_seen` at which its training ends; others that share its checkpoints have accounts of their
    own."""
    lease: int
    number: int
    """Of the attempts under this lease."""
    started: float
    """Wall clock; the only one that survives an attempt, and used for nothing but gaps."""
    begun: int | None = None
    """Images seen at its beginning, once it has read a checkpoint or knows that there is none."""
    images_seen: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """By category."""
    marks: list[list[float]] = field(default_factory=list)
    """[images seen, seconds of steps until then]: its beginning, and its newest checkpoints."""
    finished: bool = False
    """Whether the training ended with it: what follows, if anything, did not have to wait."""

    @property
    def name(self) -> str:
        return f"{self.lease:06d}-{self.number:04d}.json"

    @property
    def ended(self) -> float:
        """Wall clock, as far as it is known."""
        return self.started + sum(self.seconds.values())

    def kept(self, images_seen: int) -> float:
        """Seconds of its steps that led up to there: exact at a mark, and in proportion between two."""
        places = [*self.marks, [self.images_seen, self.seconds.get("step", 0.0)]]
        before, spent = places[0]
        for place, seconds in places:
            if place > images_seen:
                if images_seen <= before:
                    return spent if images_seen == before else 0.0
                return spent + (seconds - spent) * (images_seen - before) / (place - before)
            before, spent = place, seconds
        return spent


def totals(tallies: Sequence[Tally]) -> dict[str, float]:
    """Seconds by category of the attempts of one training, in their order; together they are its wall time.

    A later attempt that began with an older checkpoint takes back what others did beyond it. One that began
    further than its predecessor is known to have come shows steps of its last moments.
    """
    found = dict.fromkeys(CATEGORIES, 0.0)
    for index, tally in enumerate(tallies):
        for category, seconds in tally.seconds.items():
            found[category] += seconds
        begun = [later.begun for later in tallies[index + 1 :] if later.begun is not None]
        if begun and tally.begun is not None:
            lost = tally.seconds.get("step", 0.0) - tally.kept(min(begun))
            found["step"] -= lost
            found["lost"] += lost
        if index + 1 < len(tallies) and not tally.finished:
            gap = max(0.0, tallies[index + 1].started - tally.ended)
            untold = min(gap, _untold(tally, min(begun))) if begun else 0.0
            found["step"] += untold
            found["down"] += gap - untold
    return found


def _untold(tally: Tally, begun: int) -> float:
    """Seconds of steps between what was written of an attempt and what its checkpoints show, at its pace."""
    images = tally.images_seen - (tally.begun or 0)
    if tally.begun is None or images <= 0:
        return 0.0
    return max(0, begun - tally.images_seen) * tally.seconds.get("step", 0.0) / images


def told(summary: dict[str, Any]) -> str:
    """One line for a person; "" where nothing is known.

    "goodput 94 %: 3 % steps lost, 2 % down".
    """
    if not summary:
        return ""
    wall = summary["wall"] or 1.0
    shares = {name: 100 * seconds / wall for name, seconds in summary["seconds"].items() if name != "step"}
    worth = sorted((name for name in shares if shares[name] >= 0.5), key=lambda name: -shares[name])
    rest = ", ".join(f"{shares[name]:.0f} % {CATEGORIES[name]}" for name in worth)
    return f"goodput {100 * summary['goodput']:.0f} %" + (f": {rest}" if rest else "")


class Account:
    """One worker's clock, from the start of its attempt; only rank 0 writes it down.

    At any moment time belongs to one category: "start" until the first step has ended but for what is named
    within it, then "step", after the last step "checkpoint"; `spent` names others for a while, the inner of
    two. On a GPU, which runs behind, a wait for it counts where it happens.
    """

    def __init__(
        self,
        storage: Storage,
        member: Member,
        *,
        lease: int,
        target: int,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.storage, self.member, self.target = storage.folder("time"), member, target
        self._monotonic, self._clock = monotonic, clock
        self._lock = threading.RLock()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stack: list[str] = []
        names = [n for n in _names(self.storage) if int(n[:6]) <= lease] if member.rank == 0 else []
        self._earlier = [t for t in _read(self.storage, names) if t.target == target]
        mine = [name for name in names if name.startswith(f"{lease:06d}-")]
        self._begin(lease, 1 + int(mine[-1][7:11]) if mine else 1)
        if self.member.rank == 0:
            self._write()

    @contextlib.contextmanager
    def spent(self, category: str) -> Iterator[None]:
        """The block's time is of that category: restore, data, checkpoint, look."""
        if category not in CATEGORIES:
            raise ValueError(f"no time is spent on {category!r}; there are {', '.join(CATEGORIES)}.")
        with self._lock:
            self._charge()
            self._stack.append(category)
        self._tell()
        try:
            yield
        finally:
            with self._lock:
                self._charge()
                self._stack.pop()
            self._tell()

    def _tell(self) -> None:
        """What this worker does now beside its steps; for data nobody waits long who is not hung."""
        now = self._stack[-1] if self._stack else "data"
        self.member.phase(now if now != "data" else "")

    def restored(self, images_seen: int) -> None:
        """The attempt begins there; what was done beyond it is lost."""
        with self._lock:
            self._tally.begun = self._tally.images_seen = images_seen
            self._tally.marks = [[images_seen, 0.0]]

    def stepped(self, images_seen: int) -> None:
        """A step has ended."""
        with self._lock:
            self._charge()
            self._base = "step" if images_seen < self.target else "checkpoint"
            self._tally.images_seen = images_seen
            due = self._monotonic() - self._written >= EVERY
        if due and self.member.rank == 0 and not (self._thread is not None and self._thread.is_alive()):
            self._written = self._monotonic()
            self._thread = threading.Thread(target=self._write, name="account", daemon=True)
            self._thread.start()

    def saving(self, images_seen: int) -> None:
        """A checkpoint of that place, where the training is, begins to be written."""
        with self._lock:
            self._charge()
            self._places[images_seen] = self._tally.seconds.get("step", 0.0)

    def saved(self, images_seen: int) -> None:
        """What led there is safe: it is not lost with this attempt. In the thread that made it so."""
        with self._lock:
            seconds = self._places.pop(images_seen, None)
            if seconds is not None:
                first, *others = self._tally.marks or [[self._tally.begun or 0, 0.0]]
                self._tally.marks = [first, *others[-MARKS + 1 :], [images_seen, seconds]]
        if self.member.rank == 0:
            self._write()

    def again(self) -> None:
        """The attempt begins anew in this process, from an older checkpoint."""
        self.close()
        with self._lock:
            self._earlier.append(self._tally)
            self._begin(self._tally.lease, self._tally.number + 1)

    def close(self) -> None:
        """The attempt ends here, and says how far it came."""
        with self._lock:
            self._charge()
            self._tally.finished = self._tally.images_seen >= self.target
        if self.member.rank == 0:
            if self._thread is not None:
                self._thread.join()
            self._write()

    def values(self) -> dict[str, float]:
        """For the record as training goes: goodput, and badput by category, as shares."""
        found = self.totals()
        wall = sum(found.values()) or 1.0
        return {
            "goodput" if name == "step" else f"badput_{name}": seconds / wall
            for name, seconds in found.items()
        }

    def summary(self) -> dict[str, Any]:
        """Of all attempts, for the snapshot's record: `wall` and `seconds` by category, which add up to it,
        `goodput`, and how many `attempts` it took."""
        found = {name: round(seconds, 3) for name, seconds in self.totals().items()}
        wall = sum(found.values())
        return {
            "goodput": round(found["step"] / (wall or 1.0), 4),
            "wall": round(wall, 3),
            "attempts": 1 + len(self._earlier),
            "seconds": found,
        }

    def totals(self) -> dict[str, float]:
        """Seconds by category until now, over all attempts."""
        with self._lock:
            self._charge()
            return totals([*self._earlier, self._tally])

    def _begin(self, lease: int, number: int) -> None:
        self._tally = Tally(target=self.target, lease=lease, number=number, started=self._clock())
        self._base = "start"
        self._places: dict[int, float] = {}
        self._charged = self._written = self._monotonic()

    def _charge(self) -> None:
        """Puts the time since the last call where it belongs."""
        now, seconds = self._monotonic(), self._tally.seconds
        category = self._stack[-1] if self._stack else self._base
        seconds[category] = seconds.get(category, 0.0) + now - self._charged
        self._charged = now

    def _write(self) -> None:
        """One at a time, each with what is known by then. That the store does not take it stops no training:
        the next one has it all."""
        with self._writing:
            with self._lock:
                self._charge()
                name, data = self._tally.name, json.dumps({"format": 1, **dataclasses.asdict(self._tally)})
                self._written = self._monotonic()
            with contextlib.suppress(OSError):
                self.storage.replace(name, data.encode())


def tallies(checkpoints: Storage) -> list[Tally]:
    """Of all attempts of the trainings whose checkpoints these are, in their order."""
    storage = checkpoints.folder("time")
    return _read(storage, _names(storage))


def _names(storage: Storage) -> list[str]:
    return sorted(name for name in storage.list() if NAME.fullmatch(name))


def _read(storage: Storage, names: Sequence[str]) -> list[Tally]:
    """In that order; a damaged one is as good as none."""
    with ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda name: _tally(storage, name), names)
        return [tally for tally in read if tally is not None]


def _tally(storage: Storage, name: str) -> Tally | None:
    try:
        record = json.loads(storage.read(name))
        if record.pop("format") != 1:
            return None
        whole = {key: int(record[key]) for key in ("target", "lease", "number", "images_seen")}
        tally = Tally(
            **whole,
            started=float(record["started"]),
            begun=None if record["begun"] is None else int(record["begun"]),
            seconds={k: float(v) for k, v in record["seconds"].items() if k in CATEGORIES},
            marks=[[int(place), float(seconds)] for place, seconds in record["marks"]],
            finished=bool(record["finished"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OSError):
        return None
    return tally if tally.name == name else None
