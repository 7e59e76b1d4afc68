"""`latentmill jobs`: what was submitted to a cluster, how it stands, and how to stop it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from pipelines.commands.arguments import Switch, shown_as
from pipelines.commands.console import console, say_json
from pipelines.commands.submit import Address, as_json, print_as_it_is, watch

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cluster.jobs import Job, JobServer

STYLES = {"running": "bold", "succeeded": "green", "failed": "red", "stopped": "yellow", "pending": "dim"}


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """List the recipes that were submitted to a Ray cluster; or look at one of them, or stop it."""

    job: Annotated[Positional[str | None], shown_as("[ID]")] = None
    """One job, if not all."""
    address: Address = None
    """The cluster's job server, http://HEAD:8265."""
    logs: Switch = False
    """What the job has printed."""
    follow: Switch = False
    """What it prints, until it ends; Ctrl-C leaves it running."""
    stop: Switch = False
    """Stop it: what is finished stays, and submitting it again goes on from there."""
    json: Switch = False
    """Print JSON."""

    def __call__(self, flags: Sequence[str]) -> int:
        from cluster.jobs import JobServer
        from pipelines.submission import PREFIX

        wanted = [name for name in ("logs", "follow", "stop") if getattr(self, name)]
        if len(wanted) > 1:
            raise ValueError(f"--{wanted[0]} and --{wanted[1]} together: give one of them.")
        if wanted and self.job is None:
            raise ValueError(f"--{wanted[0]} of which job? latentmill jobs ID --{wanted[0]}.")
        server = JobServer(self.address)
        if self.job is not None:
            return self._one(server, server.job(self.job))
        jobs = [job for job in server.jobs() if job.id.startswith(PREFIX)]
        if self.json:
            say_json([as_json(job, server) for job in jobs])
        elif jobs:
            console().print(table(jobs))
        else:
            console().print(f"No recipe was submitted to {server.url} yet.", markup=False, soft_wrap=True)
        return 0

    def _one(self, server: JobServer, job: Job) -> int:
        if self.stop:
            stopped = server.stop(job.id)
            if self.json:
                say_json({"id": job.id, "stopped": stopped})
            else:
                told = "is told to stop" if stopped else f"had {job.status} before"
                console().print(f"{job.id} {told}.", markup=False, soft_wrap=True)
            return 0
        if self.follow:
            return 0 if watch(server, job, tell=print_as_it_is).status == "succeeded" else 1
        logs = server.logs(job.id)
        if self.json:
            say_json(as_json(job, server) | {"stages": stages(logs)} | ({"logs": logs} if self.logs else {}))
        elif self.logs:
            print_as_it_is(logs)
        else:
            for line in described(job, logs, server):
                console().print(line, markup=False, soft_wrap=True)
        return 0


def table(jobs: Sequence[Job]) -> RenderableType:
    """One line a job, the newest last."""
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("job", "recipe", "status", "submitted", "took", "store"):
        rows.add_column(title, no_wrap=True, overflow="ellipsis" if title == "store" else "fold")
    for job in jobs:
        rows.add_row(
            Text(job.id),
            Text(job.metadata.get("recipe", "?")),
            Text(job.status, STYLES.get(job.status, "")),
            _when(job.started),
            _took(job),
            Text(job.metadata.get("store", "?"), "dim"),
        )
    return rows


def described(job: Job, logs: str, server: JobServer) -> list[str]:
    """All that is known of one job, a line each."""
    told = [f"job        {job.id}", f"status     {job.status}, {_took(job)} since {_when(job.started)}"]
    if job.status == "failed" and job.message:
        told.append(f"why        {job.message.splitlines()[0]}")
    for state, names in stages(logs).items():
        told += [f"{state:<10} {', '.join(names)}"] * bool(names)
    told += [
        f"{key:<10} {job.metadata[key]}"
        for key in ("recipe", "store", "report", "mlflow")
        if key in job.metadata
    ]
    return [*told, f"dashboard  {server.page(job.id)}"]


def stages(logs: str) -> dict[str, list[str]]:
    """The stages of a run that a job's log tells of: which are done, which run, and which failed."""
    states: dict[str, str] = {}
    for line in logs.splitlines():
        name, colon, told = line.partition(": ")
        if not colon or not name.isidentifier():
            continue
        if told == "starts":
            states[name] = "running"
        elif name in states and told.startswith("failed: "):
            states[name] = "failed"
        elif name in states and ("done in " in told):
            states[name] = "done"
    wanted = ("done", "running", "failed")
    return {state: [name for name, now in states.items() if now == state] for state in wanted}


def _when(moment: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) if moment else ""


def _took(job: Job) -> str:
    from pipelines.progress import duration

    return duration(job.seconds) if job.seconds is not None else ""
