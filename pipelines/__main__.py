"""The command line: `latentmill COMMAND ...`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, Any

from pipelines.commands.console import program

RECIPE_COMMANDS = ("plan", "run", "submit")
"""Commands that take a recipe's fields as flags with a dot: `--stage.field value`."""

DESCRIPTION = """From a pile of images to a trained latent-diffusion model, and on to synthetic training data.

  latentmill run quickstart                       the whole line on 1,599 emoji, in ten minutes
  latentmill generate "a rocket"                  pictures by the model that ships with it
  latentmill init ~/photos                        look at your images, write photos.yaml
  latentmill run photos.yaml --images.size 64     run it, with a field of its stage `images` changed

Environment: LATENTMILL_STORE (results, ./store), RAY_ADDRESS (a cluster), MLFLOW_TRACKING_URI (a server)."""


def commands() -> Any:
    """The union of all commands, for tyro."""
    from tyro.conf import subcommand

    from pipelines.commands.apply import Apply
    from pipelines.commands.export import Export
    from pipelines.commands.gc import Gc
    from pipelines.commands.generate import Generate
    from pipelines.commands.init import Init
    from pipelines.commands.jobs import Jobs
    from pipelines.commands.models import Models
    from pipelines.commands.plan import Plan
    from pipelines.commands.run import Run
    from pipelines.commands.show import Show
    from pipelines.commands.submit import Submit
    from pipelines.commands.ui import Ui

    return (
        Annotated[Init, subcommand("init")]
        | Annotated[Plan, subcommand("plan")]
        | Annotated[Run, subcommand("run")]
        | Annotated[Submit, subcommand("submit")]
        | Annotated[Jobs, subcommand("jobs")]
        | Annotated[Show, subcommand("show")]
        | Annotated[Generate, subcommand("generate")]
        | Annotated[Apply, subcommand("apply")]
        | Annotated[Export, subcommand("export")]
        | Annotated[Models, subcommand("models")]
        | Annotated[Gc, subcommand("gc")]
        | Annotated[Ui, subcommand("ui")]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; its exit status: 2 for what the user can mend, 130 after Ctrl-C, 75 where
    it is to be run again: after SIGTERM, or because its cluster has lost its head."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        return _run(given)
    except KeyboardInterrupt as error:
        from cluster.head import HeadLost
        from cluster.jobs import current

        lost = f"{error}: " if isinstance(error, HeadLost) else ""
        again = f"; `{program()} {shlex.join(given)}` goes on from here" if given[0] == "run" else ""
        again = "; submitted again, it goes on from here" if current() is not None else again
        print(f"\nlatentmill: {lost}stopped{again}.", file=sys.stderr)
        return getattr(error, "status", 130)
    except BrokenPipeError:  # `latentmill ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
        if os.environ.get("LATENTMILL_TRACEBACK"):
            raise
        for line in str(error).splitlines() or [type(error).__name__]:
            print(f"latentmill: {line}", file=sys.stderr)
        return 2


def _run(given: list[str]) -> int:
    import tyro

    from pipelines.recipe.flags import split

    flags: list[str] = []
    if given[0] in RECIPE_COMMANDS:
        given, flags = split(given)
    command = tyro.cli(
        commands(),
        prog="latentmill",
        description=DESCRIPTION,
        args=given,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
    )
    return command(flags)


if __name__ == "__main__":
    sys.exit(main())
