"""A Ray head of its own on this machine, which asks for a token: for tests and benchmarks."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 2
PORTS = (
    "port",
    "dashboard-port",
    "metrics-export-port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "node-manager-port",
    "object-manager-port",
)


@dataclass
class Head:
    url: str
    """Of the job server."""
    metrics: str
    place: Path
    """Where commands are run."""
    environment: dict[str, str]

    def run(self, *arguments: str, code: int | None = 0, **environment: str) -> str:
        """What `latentmill` prints, on both channels."""
        done = subprocess.run(
            self.command(*arguments), cwd=self.place, env={**self.environment, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
        )  # fmt: skip
        assert code is None or done.returncode == code, done.stdout[-3000:]
        return done.stdout

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pipelines", *arguments]

    def get(self, path: str) -> Any:
        asked = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return json.load(answer)

    def gauges(self) -> dict[tuple[str, str], float]:
        """(name, stage) -> value of all that runs report, as Prometheus reads it."""
        with urllib.request.urlopen(self.metrics, timeout=30) as answer:
            text = answer.read().decode()
        shown = re.findall(r'^ray_latentmill_(\w+)\{.*stage="(\w+)".*\} (\S+)$', text, re.M)
        return {(name, stage): float(value) for name, stage, value in shown}


def until(there: Callable[[], Any], seconds: float = 240.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := there()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.5)
    return found


@contextlib.contextmanager
def head(place: Path) -> Iterator[Head]:
    """The head with two CPUs while the block runs; `place/store` is the store."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "LATENTMILL_", "MLFLOW_"))}
    base = _free(100)
    environment = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{base + 1}",
        "LATENTMILL_STORE": str(place / "store"),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's workers stand back by 15 otherwise, behind everything else that this machine does.
        "RAY_worker_niceness": "0",
    }
    # Ray's sockets lie in its folder, and their names may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="mill-", ignore_cleanup_errors=True) as folder:
        command = ["ray", "start", "--head", "--block", "--num-cpus", "2", "--temp-dir", folder]
        command += ["--node-ip-address", "127.0.0.1", "--object-store-memory", str(120 * 2**20)]
        for n, port in enumerate(PORTS):
            command += [f"--{port}", str(base + n)]
        command += ["--min-worker-port", str(base + len(PORTS)), "--max-worker-port", str(base + 99)]
        with open(place / "head.log", "wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, env={k: v for k, v in environment.items() if k != "PYTHONPATH"},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        server = Head(
            url=f"http://127.0.0.1:{base + 1}",
            metrics=f"http://127.0.0.1:{base + 2}/metrics",
            place=place,
            environment=environment,
        )
        try:
            until(lambda: process.poll() is None and _answers(server))
            yield server
        finally:
            process.send_signal(signal.SIGTERM)  # it takes its own processes down
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _answers(server: Head) -> bool:
    try:
        return bool(server.get("/api/v0/nodes"))
    except OSError:
        return False


def _free(count: int) -> int:
    """The first of so many ports that nobody has."""
    for base in random.SystemRandom().sample(range(20_000, 31_000, count), 40):
        try:
            for port in range(base, base + len(PORTS)):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise RuntimeError("There are no free ports between 20000 and 31000.")
