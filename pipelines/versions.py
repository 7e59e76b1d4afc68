"""Versions of registered models, as MLflow's tags describe them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.storage import Storage

TAG = "latentmill."
"""In front of each of our tags."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a registered model."""

    name: str
    number: int
    url: str
    """Where its snapshot was when it was registered."""
    created: float
    """Seconds since 1970."""
    run: str | None = None
    """MLflow's run that made it."""
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    """Ours, less their prefix."""

    @property
    def reference(self) -> str:
        return f"models:/{self.name}/{self.number}"

    @property
    def digest(self) -> str | None:
        """Of the snapshot; None for a version that something else registered."""
        return self.tags.get("digest")

    @property
    def before(self) -> int | None:
        """The version that was champion before this one became it."""
        number = self.tags.get("champion_before", "")
        return int(number) if number.isdigit() else None


def described(manifest: Mapping[str, Any], *, url: str) -> dict[str, str]:
    """What a version's tags say of its snapshot."""
    from pipelines.models import SnapshotFolder

    snapshot = manifest.get("snapshot", {})
    stage, fingerprint = str(manifest.get("stage", "")), str(manifest.get("fingerprint", ""))
    tags = {
        "url": url,
        "digest": SnapshotFolder(Storage.at(url or "."), dict(manifest)).digest(),
        "fingerprint": fingerprint,
        "folder": f"{stage}/{fingerprint}",
        "task": str(snapshot.get("task", "")),
        "images_seen": str(snapshot.get("images_seen", "")),
    }
    curve = snapshot.get("curve") or []
    loss = curve[-1][1].get("validation_loss") if curve else None
    return tags if loss is None else {**tags, "validation_loss": f"{loss:.6g}"}


def version_of(found: Any, aliases: Mapping[str, int]) -> Version:
    """A version as MLflow's client gives it."""
    tags = {k.removeprefix(TAG): v for k, v in found.tags.items() if k.startswith(TAG)}
    return Version(
        name=found.name,
        number=int(found.version),
        # A server refuses another machine's path as a source, so our own tag comes first.
        url=tags.get("url") or found.source or "",
        created=found.creation_timestamp / 1000,
        run=found.run_id or None,
        aliases=tuple(sorted(alias for alias, number in aliases.items() if number == int(found.version))),
        tags=tags,
    )


def who(how: str) -> str:
    """promote (ada): how a champion was made, and by whom."""
    import getpass

    try:
        return f"{how} ({getpass.getuser()})"
    except (KeyError, OSError):  # a container without a name for its user
        return how
