"""Ray jobs: a program handed to a cluster over HTTP, then followed, listed and stopped.

Ray shows everything that a job is given (its environment, its metadata, its command) to everyone who may see
the dashboard: nothing secret is to be among it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PORT = 8265
"""Of the job server, where an address names none."""
ANSWER = 5.0
"""Seconds that a cluster has to take a connection."""
POLL = 0.5
"""Seconds between two looks at a job that has not started."""
STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "45"}
"""A job that is stopped has seconds to write a checkpoint and down where it stands. As from the keyboard: a
driver that is only told to end says that it can be run again, and a job that was stopped is not to be."""
ENDED = ("stopped", "succeeded", "failed")
CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray tells a driver of the job that it is; the variable is called so."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the cluster knows it."""

    id: str
    status: str
    """pending, running, stopped, succeeded or failed."""
    command: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    started: float | None = None
    """Unix time."""
    ended: float | None = None
    message: str = ""
    """Why it failed, where Ray knows it."""

    @property
    def over(self) -> bool:
        return self.status in ENDED

    @property
    def seconds(self) -> float | None:
        """From its submission to its end, or to now."""
        return None if self.started is None else (self.ended or time.time()) - self.started


@dataclass(frozen=True, kw_only=True)
class Node:
    address: str
    """IP."""
    head: bool

    @property
    def here(self) -> bool:
        """Whether it is this machine, as far as its address says."""
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((self.address, 0))
            except OSError:
                return False
        return True


@dataclass(frozen=True, kw_only=True)
class CurrentJob:
    """The job whose driver this process is."""

    id: str
    metadata: Mapping[str, str]


def current() -> CurrentJob | None:
    """None where this process was not started as a job."""
    told = os.environ.get(CONFIG)
    if not told:
        return None
    metadata = json.loads(told).get("metadata") or {}
    name = metadata.get("job_submission_id")
    return CurrentJob(id=name, metadata=metadata) if name else None


class JobServer:
    """A cluster's job server. What goes wrong between here and there is a `ValueError` of one line."""

    def __init__(self, address: str | None = None) -> None:
        """`address`: http://head:8265; if None, RAY_API_SERVER_ADDRESS, else what RAY_ADDRESS leads to.

        Raises:
            ValueError: no address, nothing that answers there, or a token that is missing or wrong.
        """
        self.url = _resolve(address)
        _reach(self.url)
        from ray.job_submission import JobSubmissionClient

        # What Ray tells of its uploads is not what a user asked for.
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.ERROR)
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.ERROR)
        # The client takes its address from the environment first, whatever it is told.
        with self._told(), _environment(RAY_API_SERVER_ADDRESS=self.url):
            self._client = JobSubmissionClient(self.url)

    def check_versions(self) -> None:
        """`ValueError` where the cluster's Ray or Python is not this process's."""
        import ray

        there = self._get("/api/v0/cluster_metadata")
        pairs = {
            "Ray": (ray.__version__, str(there.get("rayVersion") or there.get("ray_version"))),
            "Python": (
                _minor(platform.python_version()),
                _minor(str(there.get("pythonVersion") or there.get("python_version"))),
            ),
        }
        for name, (mine, theirs) in pairs.items():
            if mine != theirs:
                raise ValueError(
                    f"{self.url} runs {name} {theirs}, and this is {name} {mine}: submit with an environment "
                    "of the cluster's versions, or bring the cluster to these."
                )

    def nodes(self) -> list[Node]:
        """Those that are alive."""
        listed = self._get("/api/v0/nodes")["result"]["result"]
        return [
            Node(address=node["node_ip"], head=bool(node["is_head_node"]))
            for node in listed
            if node["state"] == "ALIVE"
        ]

    def submit(
        self,
        name: str,
        *,
        command: str,
        files: Mapping[str, bytes],
        packages: Sequence[Path] = (),
        environment: Mapping[str, str],
        metadata: Mapping[str, str],
    ) -> bool:
        """Hands over a job; False, and nothing done, if there is one of that name.

        Args:
            command: run by a shell on the head, with `files` in its working directory.
            packages: folders of Python packages that every process of the job can import.
            environment: for the job's processes, readable in the dashboard.
        """
        runtime: dict[str, Any] = {"env_vars": {**STOPPING, **environment}}
        if packages:
            runtime["py_modules"] = [str(package) for package in packages]
        with tempfile.TemporaryDirectory(prefix="latentmill-job-") as folder:
            for file, data in files.items():
                Path(folder, file).write_bytes(data)
            runtime["working_dir"] = folder
            try:
                with self._told():
                    self._client.submit_job(
                        entrypoint=command, submission_id=name, runtime_env=runtime, metadata=dict(metadata)
                    )
            except ValueError as error:
                if "already exists" in str(error):
                    return False
                raise
        return True

    def jobs(self) -> list[Job]:
        """All that were submitted, oldest first; those of other programs too."""
        with self._told():
            found = self._client.list_jobs()
        jobs = [_job(details) for details in found if details.submission_id]
        return sorted(jobs, key=lambda job: (job.started or 0.0, job.id))

    def job(self, name: str) -> Job:
        """`ValueError` if there is none of that name."""
        try:
            with self._told():
                return _job(self._client.get_job_info(name))
        except ValueError as error:
            if "does not exist" in str(error):
                raise ValueError(f"{self.url} knows no job {name}; `latentmill jobs` lists them.") from None
            raise

    def attempts(self, name: str) -> list[Job]:
        """The jobs called `name`, `name-2`, `name-3`, ... in this order."""
        found = {}
        for job in self.jobs():
            match = re.fullmatch(re.escape(name) + r"(?:-(\d+))?", job.id)
            if match:
                found[int(match[1] or 1)] = job
        return [found[number] for number in sorted(found)]

    def logs(self, name: str) -> str:
        with self._told():
            return self._client.get_job_logs(name)

    def follow(self, name: str, tell: Callable[[str], None]) -> Job:
        """Tells what the job prints, from its beginning, until it ends; the job as it ended.

        A connection that breaks is taken up where it was. `KeyboardInterrupt` comes through and leaves the
        job running.
        """
        import asyncio

        told = 0
        while not (job := self.job(name)).over:
            if job.status == "pending":
                time.sleep(POLL)
                continue
            told = asyncio.run(self._tail(name, tell, told))
            # A job's last words are read before its status is written.
            time.sleep(POLL)
        logs = self.logs(name)
        tell(logs[told:] + "\n" * (not logs.endswith("\n")))
        return job

    async def _tail(self, name: str, tell: Callable[[str], None], told: int) -> int:
        """Tells what comes behind the first `told` characters; how many there were at its end."""
        import aiohttp

        seen = 0
        with contextlib.suppress(OSError, RuntimeError, aiohttp.ClientError):
            async for text in self._client.tail_job_logs(name):
                new = text[max(0, told - seen) :]
                seen += len(text)
                if new:
                    tell(new)
        return max(seen, told)

    def stop(self, name: str) -> bool:
        """Asks the job to end; False if it had ended before."""
        with self._told():
            return self._client.stop_job(name)

    def page(self, name: str) -> str:
        """The job in the dashboard."""
        return f"{self.url}/#/jobs/{name}"

    def _get(self, path: str) -> dict[str, Any]:
        with self._told():
            # The client has no call for these two pages, and knows how to show a token.
            answer = self._client._do_request("GET", path)
            answer.raise_for_status()
        return answer.json()["data"]

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Brings what Ray raises into one line."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            if "Authentication failed" in str(error):
                raise ValueError(
                    f"{self.url} refuses this token: RAY_AUTH_TOKEN, the file at RAY_AUTH_TOKEN_PATH or "
                    "~/.ray/auth_token is not this cluster's."
                ) from None
            raise ValueError(
                f"{self.url} asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH or "
                "RAY_AUTH_TOKEN."
            ) from None
        except (ConnectionError, requests.ConnectionError, requests.Timeout):
            raise ValueError(f"{self.url} answers no more.") from None
        except (RuntimeError, requests.RequestException) as error:
            raise ValueError(f"{self.url}: {_one_line(error)}") from None


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        status=str(details.status).lower(),
        command=details.entrypoint,
        metadata=details.metadata or {},
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        message=details.message or "",
    )


def _resolve(address: str | None) -> str:
    """The URL of the job server that is meant."""
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if address is None:
        cluster = os.environ.get("RAY_ADDRESS")
        if not cluster:
            raise ValueError(
                "Which cluster? --address http://HEAD:8265 says it, or RAY_API_SERVER_ADDRESS in the "
                "environment."
            )
        if cluster.startswith(("http://", "https://")):
            return cluster.rstrip("/")
        from ray.dashboard.utils import get_address_for_submission_client

        try:
            return str(get_address_for_submission_client(cluster)).rstrip("/")
        except Exception as error:
            raise ValueError(
                f"No Ray cluster answers at RAY_ADDRESS={cluster} ({_one_line(error)}): give its job server "
                "instead, --address http://HEAD:8265."
            ) from None
    if "://" not in address:
        address = f"http://{address}"
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{address} is no job server's address; it reads http://HEAD:8265.")
    if parts.username or parts.password:
        raise ValueError("The address must not hold a password; Ray's token is in RAY_AUTH_TOKEN.")
    if parts.port is None and parts.scheme == "http":
        address = f"http://{parts.netloc}:{PORT}{parts.path}"
    return address.rstrip("/")


def _reach(url: str) -> None:
    """`ValueError` where nothing takes a connection: Ray's client would wait for minutes."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=ANSWER).close()
    except OSError as error:
        raise ValueError(
            f"No job server answers at {url} ({error.strerror or error}): is the cluster up, and its "
            "dashboard reachable from here (ray start --head --dashboard-host)?"
        ) from None


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _one_line(error: BaseException) -> str:
    """The line of an answer that says most: of a traceback the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
    if not lines:
        return type(error).__name__
    return lines[-1] if "Traceback" in str(error) else lines[0]
