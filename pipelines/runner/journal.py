"""A run's folder in the store: its recipe, what happened in it, and the pictures it drew."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from cluster.storage import LocalStorage, Storage
from pipelines.runner.fingerprint import Identity
from pipelines.runner.plan import LAST, last_identities

PROGRESS = 1.0
"""Seconds between two progress events that are kept."""


class Journal:
    """Listens to a run's events and keeps them: `events.jsonl`, `pictures/`, `recipe.yaml`, `last.json`.

    It is a record and never read to decide what to run. It appears with the first stage that runs.
    """

    def __init__(self, store: Storage, recipe: str, text: str) -> None:
        self.folder = store.folder("runs").folder(recipe)
        self._store, self._recipe, self._text = store, recipe, text
        self._lines: list[str] = []
        self._told: dict[str, float] = {}

    def open(self) -> None:
        self.folder.replace("recipe.yaml", self._text.encode())

    def __call__(self, event: Mapping[str, Any]) -> None:
        kept = dict(event)
        if kept["kind"] == "progress":
            if kept["time"] - self._told.get(kept["stage"], 0.0) < PROGRESS and kept["done"] < kept["total"]:
                return
            self._told[kept["stage"]] = kept["time"]
        if kept["kind"] == "picture":
            name = re.sub(r"[^A-Za-z0-9_-]+", "-", str(kept["name"]))
            kept["file"] = f"pictures/{kept['stage']}-{name}-{int(kept.get('step') or 0):09d}.png"
            self.folder.replace(kept["file"], kept.pop("png"))
        line = json.dumps(kept, default=str, ensure_ascii=False) + "\n"
        if isinstance(self.folder, LocalStorage):
            self.folder.path.mkdir(parents=True, exist_ok=True)
            # One write of O_APPEND: two drivers' lines do not mix.
            handle = os.open(self.folder.path / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)
        else:
            self._lines.append(line)
            if kept["kind"] in ("stage_end", "run_end"):
                self.folder.replace("events.jsonl", "".join(self._lines).encode())

    def remember(self, stage: str, identity: Identity) -> None:
        """What the stage is now, so that a later plan can say what changed."""
        known = last_identities(self._store, self._recipe)
        known[stage] = {
            "fingerprint": identity.fingerprint,
            "version": identity.version,
            "meaning": dict(identity.meaning),
            "inputs": dict(identity.inputs),
            "external": dict(identity.external),
        }
        self.folder.replace(LAST, json.dumps(known, indent=1, sort_keys=True).encode())
