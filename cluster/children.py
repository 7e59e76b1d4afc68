"""Calling a function on untrusted bytes in disposable processes: what kills its process costs one item.

A child has limits of memory, time and files, no Ray connection and no credentials in its environment. What
goes either way is parsed, never unpickled: a child that was taken over can lie, but not run code here.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.fork import Child, ChildFailed, Ended, nursery
from cluster.frames import packed

__all__ = ["ChildFailed", "Died", "Done", "Ended", "Limits", "Work", "in_children"]

_TRIES = 2
_STARTS = 3
_AHEAD = 1 << 25
"""Bytes that are sent before they are answered."""


@dataclass(frozen=True)
class Died:
    """Stands for the result of an item that killed its child at every try."""

    reason: str
    """"memory", "time", "nonsense" (what it answered was no frame), "signal 11", "code 1"."""


@dataclass(frozen=True)
class Done:
    """An item whose result is known: it keeps its place and needs no child."""

    result: Any


@dataclass(frozen=True)
class Work:
    """An item for a child."""

    item: Any
    """JSON types and bytes."""
    memory: int = 0
    """Bytes that it takes; one that takes more than `Limits.memory` has a child of its own that may."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a child may take."""

    memory: int | None = None
    """Bytes beside what its imports took, of all items at once."""
    seconds: float = 20.0
    """Processor time of one item."""
    silence: float = 600.0
    """Seconds of waiting for an answer."""
    threads: int = 1
    """Items at once."""


def in_children(
    opener: Callable[[Any], Callable[[Any], Any]],
    argument: Any,
    items: Iterable[Work | Done],
    *,
    limits: Limits,
    modules: Sequence[str] = (),
    ended: Callable[[Ended], None] = lambda end: None,
) -> Iterator[Any]:
    """Calls what `opener(argument)` returns on each item, in a child that is fresh for this call.

    Items are taken as they are needed, a few ahead of the results.

    Args:
        opener: of a module's top level; imported and called in the child. Values are JSON types and bytes.
        modules: imported once, before children are forked; those that the function needs.
        ended: told how each child ended, for measuring.

    Returns:
        One result an item, in order; `Died` for one that killed its child twice.

    Raises:
        ChildFailed: the function raised an exception.
    """
    if opener.__module__ == "__main__":
        raise ValueError(
            f"{opener.__qualname__} is in the main script; a child imports it: put it in a module."
        )
    task = {"module": opener.__module__, "function": opener.__qualname__, "argument": argument}
    task |= {"seconds": limits.seconds, "threads": limits.threads, "memory": limits.memory}
    call = _Call(task, limits, tuple(modules), ended)
    source = iter(items)
    more = True
    try:
        while True:
            while more and call.has_room():
                item = next(source, None)
                if item is None:
                    more = False
                else:
                    call.take(item)
            if not call.slots:
                return
            while call.slots and call.slots[0].done:
                yield call.slots.popleft().result
                if more and call.has_room():
                    break
            else:
                if call.slots:
                    call.wait()
    finally:
        call.close()


@dataclass(eq=False)
class _Slot:
    """An item on its way."""

    work: Work
    frame: bytes = b""
    result: Any = None
    done: bool = False
    strikes: int = 0
    alone: bool = False
    """Sent with no other beside it, so that it is known who killed a child."""


@dataclass(eq=False)
class _Call:
    """The items of one call that are on their way, and the child that has them."""

    task: dict[str, Any]
    limits: Limits
    modules: tuple[str, ...]
    ended: Callable[[Ended], None]
    slots: deque[_Slot] = field(default_factory=deque)
    """Taken and not yet given out, in order."""
    sent: deque[_Slot] = field(default_factory=deque)
    child: Child | None = None
    starts: int = 0
    """Children in a row that ended before they had answered anything."""

    def has_room(self) -> bool:
        few = len(self.slots) < 4 + 4 * self.limits.threads
        return few and (not self.slots or sum(len(slot.frame) for slot in self.slots) < _AHEAD)

    def take(self, item: Work | Done) -> None:
        if isinstance(item, Done):
            self.slots.append(_Slot(Work(None), result=item.result, done=True))
            return
        self.slots.append(_Slot(item, packed(item.item)))
        self._send()
        if self.child:
            self._turn(0.0)

    def wait(self) -> None:
        """Until something is answered, or a child has died."""
        self._send()
        before = time.monotonic()
        while not self._turn(1.0):
            if time.monotonic() - before > self.limits.silence:
                self._lost("time")
                return

    def close(self) -> None:
        if self.child:
            child, self.child = self.child, None
            self.ended(child.end())

    def _send(self) -> None:
        """What is next and fits beside what the child has."""
        known = {id(slot) for slot in self.sent}
        for slot in self.slots:
            if slot.done or id(slot) in known:
                continue
            limit = self.limits.memory
            large = limit is not None and slot.work.memory > limit
            if self.sent:
                if large or slot.alone or self.sent[-1].alone:
                    return
                held = sum(one.work.memory for one in self.sent) + slot.work.memory
                if (limit is not None and held > limit) or (self.child and self.child.memory != limit):
                    return
            memory = slot.work.memory if large else limit
            if self.child and self.child.memory != memory:
                self.close()
            if self.child is None:
                self.child = Child(nursery(self.modules), self.task | {"memory": memory}, memory)
            if large:
                slot.alone = True
            self.sent.append(slot)
            self.child.send(slot.frame)
            if slot.alone:
                return

    def _turn(self, seconds: float) -> bool:
        """Sends and receives what can be within so long; whether anything was settled."""
        assert self.child
        answers, over = self.child.exchange(seconds)
        for answer in answers:
            if not isinstance(answer, dict) or not (self.sent or "error" in answer):
                self._lost("nonsense")
                return True
            if "error" in answer:
                raise ChildFailed(str(answer["error"]))
            if "result" not in answer:
                self._lost("memory")
                return True
            slot = self.sent.popleft()
            slot.result, slot.done, slot.frame = answer["result"], True, b""
            self.starts = 0
        if over is not None:
            self._lost(over)
        return bool(answers) or over is not None

    def _lost(self, reason: str) -> None:
        """The child is gone: whoever killed it has a strike, the others go to the next one.

        `reason` is "" where its end says it.
        """
        assert self.child
        child, self.child = self.child, None
        end = child.end()
        self.ended(end)
        reason = reason or _reason(end.code)
        lost, self.sent = list(self.sent), deque()
        if not lost:
            self.starts += 1
            if self.starts >= _STARTS:
                raise ChildFailed(f"children end before they do anything: {reason}")
            return
        # With one thread items are done in order; with several it may be any of those that it had.
        if self.limits.threads > 1 and len(lost) > 1:
            for slot in lost:
                slot.alone = True
            return
        first = lost[0]
        first.strikes += 1
        if first.strikes >= _TRIES:
            first.result, first.done, first.frame = Died(reason), True, b""


def _reason(code: int) -> str:
    if code in (-signal.SIGPROF, -signal.SIGXCPU):
        return "time"
    # Of the kernel, for want of memory.
    return "memory" if code == -signal.SIGKILL else f"signal {-code}" if code < 0 else f"code {code}"
