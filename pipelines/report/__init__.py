"""The report of a run: one HTML file that holds everything it shows and loads nothing.

`write` is called whenever a stage ends, so that the page fills as the run goes on. Neither torch nor mlflow
is imported for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.storage import Storage

NAME = "report.html"


def write(store: Storage, recipe: str) -> str:
    """Writes `<store>/runs/<recipe>/report.html` from what lies there; returns its path or URL."""
    from pipelines.report.gather import gather
    from pipelines.report.page import render

    folder = store.folder("runs").folder(recipe)
    folder.replace(NAME, render(gather(store, recipe)).encode())
    return f"{folder.url}/{NAME}"


__all__ = ["NAME", "write"]
