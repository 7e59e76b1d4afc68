"""Servers of one folder: each started with a log and a mark, awaited, and ended without a trace."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PORTS = range(20_000, 32_000)
"""Above those that Ray gives its workers (10002 to 19999), below those of outgoing connections."""
PATIENCE = 120.0
"""Seconds that a server may take to answer; eight to twenty are usual."""
DROPPED = ("RAY_", "AWS_", "MLFLOW_", "LATENTMILL_")
"""Variables of the caller that would lead the servers astray."""
MARK = "LATENTMILL_LOCAL_CLUSTER"
"""Variable by which processes are known that have left their server's session."""


@dataclass
class Services:
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    """Of every server, beside the caller's."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        more: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """`more`: environment of this one alone. `user`: whose rights it has; the caller's if None."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED)}
        kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
        with open(self.folder / f"{name}.log", "wb") as log:
            process = self.processes[name] = subprocess.Popen(
                command,
                env={**kept, **self.environment, **(more or {}), MARK: self._mark(name)},
                user=user,
                cwd=cwd or self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return process

    def wait(self, name: str, there: str | Callable[[], bool]) -> None:
        """Until a URL answers, or a function says that the server is there.

        Raises:
            RuntimeError: the server ended, or took too long; with the end of its log.
        """
        ask = there if callable(there) else lambda: _answers(there)
        end = time.monotonic() + PATIENCE
        while not ask():
            if self.processes[name].poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} did not start:\n{self.log(name)[-3000:]}")
            time.sleep(0.2)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def ask(self, name: str, number: int = signal.SIGINT) -> None:
        """A server to end by itself, for ten seconds."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.processes[name].send_signal(number)
            self.processes[name].wait(10)

    def kill(self, name: str) -> None:
        """A server with all that it started, at once and unasked."""
        process, mark = self.processes.pop(name), self._mark(name)
        found: dict[int, psutil.Process] = {}
        for candidate in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                own = os.getsid(candidate.pid) == process.pid
                if own or candidate.environ().get(MARK) == mark:
                    found |= {p.pid: p for p in (candidate, *candidate.children(recursive=True))}
        for doomed in found.values():
            with contextlib.suppress(psutil.Error):
                doomed.kill()
        with contextlib.suppress(OSError):
            process.kill()
        process.wait()
        psutil.wait_procs(list(found.values()), timeout=10)

    def _mark(self, name: str) -> str:
        return str(self.folder / name)


def free_port() -> int:
    for port in random.SystemRandom().sample(PORTS, 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("There is no free port between 20000 and 32000.")


def program(name: str) -> str:
    """A command of this Python's environment."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name


def postgres(name: str) -> str | None:
    """Debian keeps PostgreSQL's programs off the path, one folder a version."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[4]))
    return str(versions[-1]) if versions else shutil.which(name)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False
