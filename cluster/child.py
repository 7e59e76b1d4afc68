"""Running a function in a disposable process, for bytes that nobody vouches for.

The child has its own limits of memory and time, no Ray connection and no credentials in its environment.
What goes either way is parsed, never unpickled: a child that was taken over can lie, but not run code here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "SYSTEMROOT",
)
"""The environment that a child is given; all else, credentials first, stays here."""
FRAME = 2**31
"""Bytes of one result at most."""


class ChildDied(RuntimeError):
    """The child ended without an answer."""

    def __init__(self, reason: str, results: list[Any]) -> None:
        super().__init__(f"the child process ended early: {reason}")
        self.reason = reason
        """"memory", "time", "signal 11", or the exception's own line."""
        self.results = results
        """What a generator had yielded until then: the next item is the one that killed it."""


def run_in_child(
    function: Callable[[Any], Any], argument: Any, *, memory: int | None = None, seconds: float | None = None
) -> Any:
    """Calls `function(argument)` in a process of its own.

    Args:
        function: of a module's top level; imported in the child. Returns JSON types and bytes; if it is a
            generator function, its items are sent as they are made, and come back as a list.
        argument: JSON types and bytes.
        memory: bytes of address space that the child may have beside what its imports take.
        seconds: wall-clock limit.

    Raises:
        ChildDied: by a signal, its limits, or an exception, which is its `reason`.
    """
    command = [sys.executable, "-m", "cluster.child"]
    root = str(Path(__file__).resolve().parent.parent)
    search = os.pathsep.join([root, *(p for p in sys.path if p)])
    environment = {k: v for k, v in os.environ.items() if k in KEPT} | {
        "PYTHONPATH": search,
        "OMP_NUM_THREADS": "1",
    }
    module = _module_name(function)
    task = {"module": module, "function": function.__qualname__, "argument": argument}
    task |= {"memory": memory, "seconds": seconds}
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        start_new_session=True,
    )  # fmt: skip
    expired = threading.Event()

    def stop() -> None:
        expired.set()
        _kill(child)

    clock = threading.Timer(seconds, stop) if seconds is not None else None
    errors: list[bytes] = []
    listener = threading.Thread(target=lambda: errors.append(_tail(child.stderr)), daemon=True)
    listener.start()
    results: list[Any] = []
    outcome: dict[str, Any] | None = None
    try:
        if clock:
            clock.start()
        assert child.stdin
        assert child.stdout
        with contextlib.suppress(BrokenPipeError):
            _send(child.stdin, task)
            child.stdin.close()
        for frame in _frames(child.stdout):
            if "result" in frame:
                results.append(frame["result"])
            else:
                outcome = frame
    finally:
        if clock:
            clock.cancel()
        _kill(child)
        code = child.wait()
        listener.join()
    if outcome is None:
        if expired.is_set():
            raise ChildDied("time", results)
        stderr = errors[0].decode(errors="replace").strip() if errors else ""
        if "MemoryError" in stderr or code == -signal.SIGKILL:
            raise ChildDied("memory", results)
        raise ChildDied(
            f"signal {-code}" if code < 0 else stderr.splitlines()[-1] if stderr else f"code {code}", results
        )
    if "error" in outcome:
        raise ChildDied(outcome["error"], results)
    return results if outcome["many"] else results[0]


def _module_name(function: Callable[..., Any]) -> str:
    if function.__module__ == "__main__":
        raise ValueError(
            f"{function.__qualname__} is in the main script; a child imports it, so put it in a module."
        )
    return function.__module__


def _tail(stream: Any, limit: int = 65_536) -> bytes:
    kept = b""
    while piece := stream.read1(limit):
        kept = (kept + piece)[-limit:]
    return kept


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The child with all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _frames(stream: Any) -> Iterator[dict[str, Any]]:
    """Each is 4 bytes of header length, 4 of blob length, JSON header, blob. Stops at what is cut off."""
    while len(sizes := stream.read(8)) == 8:
        head, blob = int.from_bytes(sizes[:4], "big"), int.from_bytes(sizes[4:], "big")
        if head > FRAME or blob > FRAME:
            return
        header, data = stream.read(head), stream.read(blob)
        if len(header) < head or len(data) < blob:
            return
        yield _unpack(json.loads(header), data)


def _pack(value: Any, blob: bytearray) -> Any:
    """`value` as JSON, its bytes moved to `blob`."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        start = len(blob)
        blob += value
        return {"$bytes": [start, len(blob) - start]}
    if isinstance(value, dict):
        return {str(k): _pack(v, blob) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_pack(v, blob) for v in value]
    return value


def _unpack(value: Any, blob: bytes) -> Any:
    if isinstance(value, dict):
        if set(value) == {"$bytes"}:
            start, size = value["$bytes"]
            return blob[start : start + size]
        return {k: _unpack(v, blob) for k, v in value.items()}
    if isinstance(value, list):
        return [_unpack(v, blob) for v in value]
    return value


def _send(stream: Any, frame: dict[str, Any]) -> None:
    blob = bytearray()
    header = json.dumps(_pack(frame, blob), separators=(",", ":")).encode()
    stream.write(len(header).to_bytes(4, "big") + len(blob).to_bytes(4, "big") + header + blob)
    stream.flush()


def _limit(memory: int | None, seconds: float | None) -> None:
    try:
        import resource
    except ImportError:
        return
    if memory is not None:
        pages = Path("/proc/self/statm")
        used = int(pages.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    if seconds is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _main() -> None:
    """The child: its task comes on stdin, its answers go where stdout went, and prints go to stderr."""
    import importlib

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    task = next(_frames(sys.stdin.buffer))
    function: Any = importlib.import_module(task["module"])
    for part in task["function"].split("."):
        function = getattr(function, part)
    _limit(task["memory"], task["seconds"])
    try:
        result = function(task["argument"])
        many = hasattr(result, "__next__")
        for item in result if many else (result,):
            _send(answers, {"result": item})
        _send(answers, {"many": many})
    except MemoryError:
        _send(answers, {"error": "memory"})
    except Exception as error:
        line = str(error).splitlines()[0] if str(error) else ""
        _send(answers, {"error": f"{type(error).__name__}: {line}"})


if __name__ == "__main__":
    _main()
