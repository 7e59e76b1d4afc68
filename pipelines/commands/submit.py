"""`latentmill submit`: run a recipe as a job of a Ray cluster; the same command again is resume."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from pipelines.commands.arguments import Switch, shown_as
from pipelines.commands.console import console, program, say_json

if TYPE_CHECKING:
    from cluster.jobs import Job, JobServer
    from pipelines.submission import Submission

Address = Annotated[str | None, shown_as("URL", default="(RAY_API_SERVER_ADDRESS, RAY_ADDRESS)")]


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Run a recipe on a Ray cluster, as a job; again is resume, and while it runs, to watch it.

    Fields of its stages are flags, as for `run`: --STAGE.FIELD VALUE. Ctrl-C leaves the job running. Ray's
    token comes from Ray's own environment (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH); credentials for the
    store and for MLflow are the nodes' own and never sent.
    """

    recipe: Annotated[Positional[str], shown_as("RECIPE")]
    """A recipe's file, or the name of a shipped one."""
    address: Address = None
    """The cluster's job server, http://HEAD:8265."""
    store: Annotated[str | None, shown_as("URL", default="(LATENTMILL_STORE)")] = None
    """Where results go: an s3, gs or az URL, or a folder that every node sees."""
    shared_store: Switch = False
    """The store is a folder, and every node sees it under that path."""
    shared: Annotated[UseAppendAction[tuple[Path, ...]], shown_as("FOLDER")] = ()
    """A folder that every node sees under the same path: what lies in it is not copied; may be repeated."""
    upload: Switch = False
    """Copy what the recipe names on this machine (images, prompts, models) into the store, once."""
    installed: Switch = False
    """Send no code: this version of latentmill is installed on every node."""
    until: Annotated[str | None, shown_as("STAGE")] = None
    """Stop after this stage; only those it needs are run."""
    force: Annotated[UseAppendAction[tuple[str, ...]], shown_as("STAGE")] = ()
    """Run this stage though it is finished; may be repeated."""
    follow: Annotated[bool, arg(help_behavior_hint="(on a terminal)")] = False
    """Show what the job prints until it ends, though stdout is no terminal."""
    detach: Switch = False
    """Return when the job is submitted."""
    json: Switch = False
    """Print the job as JSON, and nothing else."""

    def __call__(self, flags: Sequence[str]) -> int:
        from cluster.jobs import JobServer
        from cluster.storage import Storage
        from pipelines import config
        from pipelines.submission import Reach, prepare

        recipe = config.load(self.recipe, flags)
        _known(self.until, *self.force, stages=recipe.stages)
        url = self.store or os.environ.get("LATENTMILL_STORE")
        if not url:
            raise ValueError(
                "Where do results go? --store s3://BUCKET/store, or a folder that every node sees, or "
                "LATENTMILL_STORE."
            )
        server = JobServer(self.address)
        server.check_versions()
        reach = Reach(nodes=server.nodes(), store=self.shared_store, folders=self.shared, upload=self.upload)
        submission = prepare(
            recipe,
            Storage.at(url),
            server,
            reach=reach,
            until=self.until,
            force=self.force,
            installed=self.installed,
        )
        job, new = submit(server, submission)
        if not self.json:
            self._tell(server, submission, job, new, nodes=len(reach.nodes))
        follows = self.follow or (sys.stdout.isatty() and not self.detach and not self.json)
        if follows:
            quiet = self.json
            job = watch(server, job, tell=(lambda text: None) if quiet else print_as_it_is)
        if self.json:
            say_json(as_json(job, server))
        return 1 if follows and job.status != "succeeded" else 0

    def _tell(self, server: JobServer, submission: Submission, job: Job, new: bool, *, nodes: int) -> None:
        screen = console()
        size = f"{nodes} node{'s' * (nodes != 1)}"
        lines = [f"cluster    {server.url} ({size})"]
        for field, url, copied in submission.copied:
            done = f"{copied / 1e6:.1f} MB copied" if copied else "there already"
            lines.append(f"upload     {field} -> {url} ({done})")
        lines += [f"note       {note}" for note in submission.notes]
        said = "" if new else f"   ({job.status} already: nothing new is submitted)"
        lines += [
            f"job        {job.id}{said}",
            f"dashboard  {server.page(job.id)}",
            f"MLflow     {submission.metadata['mlflow']}",
            f"report     {submission.metadata['report']}",
            f"stop       {program()} jobs {job.id} --stop{_address(self.address)}",
        ]
        for line in lines:
            screen.print(line, markup=False, soft_wrap=True)
        screen.print()


def submit(server: JobServer, submission: Submission) -> tuple[Job, bool]:
    """The job that does what is asked, and whether it is new: one that still runs is not submitted twice.

    Behind one that has ended stands another attempt, `-2` and so on, which finishes what that one left.
    """
    while True:
        attempts = server.attempts(submission.name)
        if attempts and not attempts[-1].over:
            return attempts[-1], False
        number = len(attempts) + 1
        name = submission.name if number == 1 else f"{submission.name}-{number}"
        file = f"{submission.recipe}.yaml"
        new = server.submit(
            name,
            command=submission.command,
            files={file: submission.text.encode()},
            packages=submission.packages,
            environment=submission.environment,
            metadata=submission.metadata,
        )
        if new:
            return server.job(name), True


def watch(server: JobServer, job: Job, *, tell: Any) -> Job:
    """Follows a job to its end; says how it ended, or after Ctrl-C that it goes on."""
    try:
        job = server.follow(job.id, tell)
    except KeyboardInterrupt:
        print(
            f"\nlatentmill: {job.id} goes on. Watch it again: {program()} jobs {job.id} --follow   "
            f"Stop it: {program()} jobs {job.id} --stop",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    if job.status != "succeeded":
        why = f": {job.message.splitlines()[0]}" if job.status == "failed" and job.message else ""
        print(f"latentmill: {job.id} {job.status}{why}", file=sys.stderr)
    return job


def print_as_it_is(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def as_json(job: Job, server: JobServer) -> dict[str, Any]:
    return {
        "id": job.id,
        "status": job.status,
        "started": job.started,
        "ended": job.ended,
        "message": job.message,
        "dashboard": server.page(job.id),
        **{key: job.metadata.get(key) for key in ("recipe", "store", "report", "mlflow")},
    }


def _address(address: str | None) -> str:
    return f" --address {address}" if address else ""


def _known(*names: str | None, stages: Any) -> None:
    from pipelines.recipe.spelling import near

    for name in names:
        if name is not None and name not in stages:
            raise ValueError(f"there is no stage {name!r}{near(name, stages)}")
