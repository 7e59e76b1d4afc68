"""Fresh processes that are there at once: forks of one in which all is imported and nothing was computed.

Autograd may not be forked once it has been used, so whatever forks ranks does it in such a process; a new
interpreter would import for six seconds first.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.driver"])


def start(work: Callable[..., Any], *args: Any) -> BaseProcess:
    """A process, with this one's environment and one thread, that has begun with `work(*args)`."""
    return _start(None, work, args)


def run(work: Callable[..., Any], *args: Any, timeout: float) -> None:
    """Waits for `work(*args)` in a process of its own, whose error is shown here; `timeout` in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        error = Path(folder) / "error"
        process = _start(error, work, args)
        process.join(timeout)
        late = process.exitcode is None
        if late:
            process.kill()
            process.join()
        assert not late, f"not done within {timeout:g} s"
        assert process.exitcode == 0, error.read_text() if error.exists() else f"exit code {process.exitcode}"


def _start(error: Path | None, work: Callable[..., Any], args: tuple[Any, ...]) -> BaseProcess:
    process = CONTEXT.Process(target=_begin, args=(dict(os.environ), error, work, args))
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):  # the server's, if this is what starts it
        process.start()
    return process


def _begin(
    environment: Mapping[str, str], error: Path | None, work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ.update({**environment, "OMP_NUM_THREADS": "1"})
    torch = sys.modules["torch"]
    torch.set_num_threads(1)
    # The first to ask a forked torch for its pool of threads makes it anew, and two that ask at once abort.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
    try:
        work(*args)
    except Exception:
        if error is not None:
            error.write_text(traceback.format_exc())
        raise
