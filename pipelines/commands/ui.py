"""`latentmill ui`: the record in MLflow, and the Ray dashboard while it lives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.commands.arguments import StorePath, Switch
from pipelines.commands.console import console, say_json, store

if TYPE_CHECKING:
    from pipelines.tracking import Destination

DASHBOARD_PORTS = range(8265, 8269)
"""Where Ray puts its dashboard: the first free one from its usual port on."""


@dataclass(frozen=True, kw_only=True)
class Ui:
    """Open MLflow on the store's record, and say where the Ray dashboard is."""

    store: StorePath = None
    """The store whose record is shown."""
    port: int = 5000
    """Of the MLflow server on this machine."""
    json: Switch = False
    """Print the addresses as JSON and start nothing."""

    def __call__(self, flags: Sequence[str]) -> int:
        from pipelines.tracking import Destination, leftovers

        place = store(self.store)
        record = Destination.of(place, "ui")
        served = record.uri.startswith(("http://", "https://"))
        mlflow = record.uri if served else f"http://127.0.0.1:{self.port}"
        dashboard = ray_dashboard()
        if self.json:
            say_json({"store": place.url, "mlflow": mlflow, "record": record.uri, "ray": dashboard})
            return 0
        if not served:
            _require_record(record)
        screen = console()
        for destination in leftovers(place):
            destination.flush()
        screen.print(f"MLflow     {mlflow}", markup=False, soft_wrap=True)
        screen.print(f"Ray        {dashboard or 'nothing is running'}", markup=False, soft_wrap=True)
        if served:
            return 0
        screen.print("Ctrl-C ends it.", style="dim")
        try:
            return subprocess.call(server(record, self.port), env=_environment())
        except KeyboardInterrupt:
            return 0


def server(record: Destination, port: int) -> list[str]:
    """The command that serves a database in this machine's store, to this machine alone."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", record.uri]
    command += ["--artifacts-destination", record.artifacts] if record.artifacts else []
    return [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def ray_dashboard() -> str | None:
    """The address of a dashboard that answers: the cluster's, or one of this machine's."""
    import urllib.error
    import urllib.request
    from urllib.parse import urlsplit

    address = os.environ.get("RAY_ADDRESS", "")
    host = urlsplit(address if "://" in address else f"//{address}").hostname or "127.0.0.1"
    for port in DASHBOARD_PORTS:
        url = f"http://{host}:{port}"
        try:
            with urllib.request.urlopen(f"{url}/api/version", timeout=1.0):
                return url
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):  # it lives, and wants Ray's token
                return url
        except OSError:
            continue
    return None


def _require_record(record: Destination) -> None:
    from pathlib import Path

    file = Path(record.uri.removeprefix("sqlite:///"))
    if record.uri.startswith("sqlite:///") and not file.exists():
        raise ValueError(f"there is no record at {file} yet: `latentmill run` makes one.")


def _environment() -> dict[str, str]:
    from pipelines.tracking import environment

    return environment()
