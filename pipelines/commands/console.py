"""What every command says, and how: for people on the terminal, or as JSON for programs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.storage import Storage

PIPE_WIDTH = 160


def program() -> str:
    """How this command is called from here: by its name, or by its path where the name is not found."""
    from cluster.jobs import current

    called = sys.argv[0]
    if current() is not None:  # a node's path helps nobody
        return "latentmill"
    if os.path.basename(called) != "latentmill" or shutil.which("latentmill"):
        return "latentmill"
    near = os.path.relpath(called)
    return called if near.startswith("..") else near


def console() -> Console:
    """For people: colours and live rows where stdout is a terminal, long lines where it is a pipe."""
    from rich.console import Console

    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, width=PIPE_WIDTH if piped else None)


def store(url: str | None) -> Storage:
    """The store: what the command says, else LATENTMILL_STORE, else ./store."""
    from cluster.storage import Storage

    return Storage.at(url or os.environ.get("LATENTMILL_STORE") or "store")


def say_json(value: Any) -> None:
    """One JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")
