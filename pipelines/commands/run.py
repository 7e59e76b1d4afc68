"""`latentmill run`: do what is not done; the same command again is resume."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction

from pipelines.commands.arguments import StorePath, Switch, shown_as
from pipelines.commands.console import console, program, say_json, store
from pipelines.commands.retrying import Retry

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.session import RaySession
    from cluster.storage import Storage
    from pipelines.config import Recipe
    from pipelines.runner.plan import Plan

SHOWN = 8
"""Pictures shown when a run is over."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Run the stages of a recipe that are not finished; again is resume.

    Fields of its stages are flags: --STAGE.FIELD VALUE (`latentmill plan RECIPE --fields` lists them).
    Without a recipe, the shipped ones are listed.
    """

    recipe: Annotated[Positional[str | None], shown_as("[RECIPE]")] = None
    """A recipe's file, or the name of a shipped one."""
    until: Annotated[str | None, shown_as("STAGE")] = None
    """Stop after this stage; only those it needs are run."""
    force: Annotated[UseAppendAction[tuple[str, ...]], shown_as("STAGE")] = ()
    """Run this stage though it is finished; may be repeated."""
    retry_rejects: Switch = False
    """Make once more what stages have rejected: new datasets, into which all else is copied."""
    executor: Literal["ray", "inline"] = "ray"
    """On Ray (RAY_ADDRESS, else started on this machine), or within this process."""
    store: StorePath = None
    """Where results go: a path, or an s3, gs or az URL."""
    json: Switch = False
    """Print JSON when it is over, and nothing before."""

    def __call__(self, flags: Sequence[str]) -> int:
        from cluster.jobs import current
        from pipelines import config
        from pipelines.runner.plan import Planner, plan
        from pipelines.runner.uses import note_done

        if self.recipe is None:
            return self._list()
        job = current()
        if job is not None:
            from pipelines.submission import check_installed

            check_installed(job)
            # How a job is stopped; a cluster that a script has started in the background ignores it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        recipe = config.load(self.recipe, flags)
        place = store(self.store)
        planned = plan(recipe, place, until=self.until, force=self.force)
        screen, command = console(), self._command(flags)
        retry = Retry.of(recipe, place, planned) if self.retry_rejects else None
        if retry is not None:
            planned = plan(recipe, place, until=self.until, force=self.force)
        if planned.done:
            planned = note_done(Planner(recipe, place, until=self.until), partial=self.until is not None)
        if not self.json:
            for line in retry.announced() if retry else ():
                screen.print(line, markup=False, soft_wrap=True)
            _introduce(screen, planned, place)
        if not planned.done:
            from pipelines.pipeline import StageError

            try:
                self._run(recipe, place, planned, screen)
            except StageError as error:
                again = f"what is finished stays; again: {shlex.join(command)}"
                print(f"latentmill: {error}\nlatentmill: {again}", file=sys.stderr)
                return 1
            planned = plan(recipe, place, until=self.until)
            if not self.json:
                _show_drawn(screen, planned)
        if self.json:
            said = {"retried": retry.found(planned)} if retry else {}
            say_json(_summary(planned, place) | said)
        else:
            for line in retry.concluded(planned) if retry else ():
                screen.print(line, markup=False, soft_wrap=True)
            _conclude(screen, planned, place, command, self.recipe)
        return 0

    def _run(self, recipe: Recipe, place: Storage, planned: Plan, screen: Console) -> None:
        """Raises `StageError` where a stage failed."""
        from cluster.mapping import InlineExecutor, RayExecutor
        from cluster.session import RaySession
        from pipelines import progress
        from pipelines.commands.ending import politely
        from pipelines.pipeline import run

        with contextlib.ExitStack() as stack:
            listeners: list[Any] = []
            if not self.json:
                told = [(s.name, "done" if s.state == "done" else s.reason) for s in planned.stages]
                listeners.append(stack.enter_context(progress.shown(screen, told)))
            session = RaySession(shared=place.folder("cache").folder("ray").url)
            executor: Any = RayExecutor(session) if self.executor == "ray" else InlineExecutor()
            stack.enter_context(politely(executor))
            if self.executor == "ray":
                stack.callback(executor.close)
                session.begin()
                if not self.json:
                    listeners.append(_DashboardNote(session, screen))
            run(recipe, place, executor=executor, until=self.until, force=self.force, listeners=listeners)

    def _list(self) -> int:
        from pipelines import config

        recipes = {name: config.about(path) for name, path in config.shipped().items()}
        if self.json:
            say_json(recipes)
            return 0
        screen = console()
        screen.print("Shipped recipes:\n")
        for name, lines in recipes.items():
            screen.print(f"[bold]{name}[/]")
            for line in lines:
                screen.print(f"  {line}".rstrip(), markup=False)
            screen.print()
        screen.print(
            f"{program()} run NAME    runs one; {program()} plan NAME shows what that would do",
            soft_wrap=True,
        )
        screen.print(f"{program()} init DIR    writes one for your images", soft_wrap=True)
        return 0

    def _command(self, flags: Sequence[str]) -> list[str]:
        """Itself, as words: what goes on from here."""
        store = ["--store", self.store] if self.store else []
        return [program(), "run", str(self.recipe), *flags, *store]


@dataclass
class _DashboardNote:
    """Says once where the Ray dashboard is, with the first event after Ray has come up."""

    session: RaySession
    screen: Console
    told: bool = False

    def __call__(self, event: dict[str, Any]) -> None:
        if not self.told and self.session.dashboard_url:
            self.told = True
            self.screen.print(f"Ray        {self.session.dashboard_url}", markup=False, soft_wrap=True)


def _introduce(screen: Console, planned: Plan, place: Storage) -> None:
    from pipelines.commands.plan import table

    screen.print(table(planned))
    screen.print()
    if not planned.done:
        screen.print(
            f"report     {_report(planned, place)}   (fills as stages end)", markup=False, soft_wrap=True
        )


def _conclude(screen: Console, planned: Plan, place: Storage, command: Sequence[str], recipe: str) -> None:
    """Scores, where things are, and the next commands."""
    from cluster.jobs import current
    from pipelines.commands.results import of_run
    from pipelines.report.gather import gather

    told = of_run(gather(place, planned.recipe))
    told += [""] * bool(told)
    if current() is not None:  # the log of a job: what can be done next is said where it was submitted
        told.append(f"report     {_report(planned, place)}")
        for line in told:
            screen.print(line, markup=False, soft_wrap=True)
        return
    for stage in planned.stages:
        # by name only where the recipe alone finds it: flags make other results
        name = stage.folder.url if len(command) > 3 and stage.folder else f"{recipe}:{stage.name}"
        if getattr(stage.stage, "low_resolution", None) is not None:
            told.append(f"enlarge    {program()} apply upscale IN OUT --model {name}")
        elif stage.stage.name() == "train":
            told.append(f'draw       {program()} generate "..." --model {name}')
        if stage.stage.name() in ("generate", "augment"):
            told.append(f"{stage.name:10} {program()} export {name} OUT   (as files)")
    runs = place.folder("runs").folder(planned.recipe)
    told += [f"pictures   {runs.url}/pictures"] * any(runs.list("pictures"))
    told += [
        f"report     {_report(planned, place)}",
        f"record     {program()} ui",
        "",
        "Next:",
        f"  {shlex.join(command)}",
        "      again: what is finished stays, a changed field runs what depends on it",
        f"  {program()} init ~/photos && {program()} run photos.yaml",
        "      your own images",
        f"  {program()} submit {recipe} --address http://HEAD:8265 --store s3://BUCKET/store",
        "      on a Ray cluster",
    ]
    for line in told:
        screen.print(line, markup=False, soft_wrap=True)


def _show_drawn(screen: Console, planned: Plan) -> None:
    """The first pictures of the last stage that drew any."""
    from pipelines import terminal
    from pipelines.dataset import Dataset

    drawn = [s for s in planned.stages if s.stage.name() == "generate" and s.state == "done" and s.folder]
    if not drawn or screen.color_system is None or drawn[-1].folder is None:
        return
    dataset = Dataset.open(drawn[-1].folder)
    records = dataset.read(dataset.shards[0].name, dataset.index(dataset.shards[0].name).keys[:SHOWN])
    row = terminal.row([record.members["image"] for record in records], columns=screen.width - 2, lines=12)
    screen.print(row)
    screen.print()


def _report(planned: Plan, place: Storage) -> str:
    return f"{place.folder('runs').folder(planned.recipe).url}/report.html"


def _summary(planned: Plan, place: Storage) -> dict[str, Any]:
    from pipelines.commands.results import verdicts
    from pipelines.report.gather import gather

    found = gather(place, planned.recipe)
    return {
        "recipe": planned.recipe,
        "store": planned.store,
        "done": planned.done,
        "stages": [stage.as_json() for stage in planned.stages],
        "scores": found.scores,
        "verdicts": verdicts(found),
        "report": _report(planned, place),
    }
