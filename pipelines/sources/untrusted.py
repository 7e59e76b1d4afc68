"""What is done to each input, in a disposable child: looked at for near-duplicates, or made into a sample."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.child import ChildDied, run_in_child
from pipelines.sources import Source
from pipelines.sources.decode import Reject, decode
from pipelines.sources.fit import Format, Resize, encode, fit

SECONDS = 20
"""One input may take so long."""
_TRIES = 2


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a child is told beside its inputs."""

    source: Source
    background: str
    max_bytes: int
    max_pixels: int
    size: int = 64
    resize: Resize = "crop"
    form: Format = "webp"

    @property
    def memory(self) -> int:
        """Bytes that a child may take: what decoding the largest allowed picture needs, and some more."""
        return (1 << 29) + 16 * self.max_pixels + 4 * self.max_bytes


Item = tuple[str | int, str]
"""`Entry.where` and `Entry.digest` of one input."""
Call = dict[str, Any]
"""A task and its items as JSON, which is all that a child is sent."""


def in_child(function: Callable[[Call], Any], task: Task, items: Sequence[Item]) -> list[Any]:
    """One result an item, in order; an item that kills its child twice gets {"reject": "poison"}.

    Raises:
        ValueError: the source is not what it was when it was listed.
        ChildDied: our own code raised an exception.
    """
    from pydantic import TypeAdapter

    told = TypeAdapter(Task).dump_python(task, mode="json")
    results: list[Any] = []
    strikes = 0
    while len(results) < len(items):
        try:
            call = {"task": told, "items": list(items[len(results) :])}
            results += run_in_child(function, call, memory=task.memory)
        except ChildDied as died:
            if died.reason.startswith("ValueError: "):
                raise ValueError(died.reason.removeprefix("ValueError: ")) from None
            if ":" in died.reason:
                raise
            strikes = 1 if died.results else strikes + 1
            results += died.results
            if strikes == _TRIES:
                results.append({"reject": "poison"})
                strikes = 0
    return results


def look_at(call: Call) -> Iterator[dict[str, Any]]:
    """For each item its perceptual hashes ({"hash", "mirrored"}, absent in a flat picture), or {"reject"}."""
    from pipelines.duplicates import look

    task, items = opened(call)
    reader = task.source.reader()
    for item in items:
        with _limited():
            try:
                seen = look(_picture(task, reader, item, smallest=64).image)
            except Reject as reject:
                yield {"reject": str(reject)}
            else:
                yield {"hash": seen.hash, "mirrored": seen.mirrored} if seen else {}


def make(call: Call) -> Iterator[dict[str, Any]]:
    """For each item its suffix, image, width, height, original_width and original_height, or {"reject"}."""
    task, items = opened(call)
    reader = task.source.reader()
    smallest = None if task.resize == "none" else 2 * task.size
    for item in items:
        with _limited():
            try:
                data = _read(task, reader, item)
                picture = decode(
                    data,
                    background=task.background,
                    max_bytes=task.max_bytes,
                    max_pixels=task.max_pixels,
                    smallest=smallest,
                )
            except Reject as reject:
                yield {"reject": str(reject)}
                continue
            image, changed = fit(picture, size=task.size, resize=task.resize, background=task.background)
            kept = picture.same and not changed
            yield {
                "suffix": picture.kind if kept else task.form,
                "image": data if kept else encode(image, task.form),
                "width": image.width,
                "height": image.height,
                "original_width": picture.width,
                "original_height": picture.height,
            }


def opened(call: Call) -> tuple[Task, Sequence[Item]]:
    """The task and the items, in the child, from the JSON that `in_child` sent."""
    from pydantic import TypeAdapter

    return TypeAdapter(Task).validate_python(call["task"]), call["items"]


def _picture(task: Task, reader: Any, item: Item, *, smallest: int) -> Any:
    return decode(
        _read(task, reader, item),
        background=task.background,
        max_bytes=task.max_bytes,
        max_pixels=task.max_pixels,
        smallest=smallest,
    )


def _read(task: Task, reader: Any, item: Item) -> bytes:
    where, digest = item
    try:
        data = reader.read(where, task.max_bytes)
    except OSError as error:
        raise Reject("unreadable") from error
    if len(data) > task.max_bytes:
        raise Reject("too_large")
    if reader.digest(where, data) != digest:
        raise ValueError(f"{where} of {task.source.path} changed while it was read; run again.")
    return data


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """The child dies if one item takes too long, in native code too: SIGALRM has no handler."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
