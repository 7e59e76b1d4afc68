"""`latentmill ui`: the record in MLflow, and the Ray dashboard while it lives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.commands.arguments import StorePath, Switch


@dataclass(frozen=True, kw_only=True)
class Ui:
    """Open MLflow on the store's record, and say where the Ray dashboard is."""

    store: StorePath = None
    """The store whose record is shown."""
    port: int = 5000
    """Of the MLflow server on this machine."""
    json: Switch = False
    """Print the addresses as JSON, start nothing."""

    def __call__(self, flags: Sequence[str]) -> int:
        raise NotImplementedError
