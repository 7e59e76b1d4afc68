"""How a recipe names a model of the hub: `org/name@COMMIT` or `org/name/folder@COMMIT`, as a URL `hub:...`.

A branch moves, and what was made with it would change without a line of the recipe changing; so a commit is
asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SCHEME = "hub:"
NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?P<folder>(?:/[A-Za-z0-9_][\w.-]*)*)"
    r"(?:@(?P<revision>[\w./-]*))?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A folder of a repository of the hub, as it was at one commit."""

    repo: str
    """"org/name"."""
    folder: str = ""
    """Within the repository; "" for all of it."""
    commit: str
    """40 hex digits."""

    @property
    def path(self) -> str:
        return f"{self.repo}/{self.folder}" if self.folder else self.repo

    @property
    def reference(self) -> str:
        return f"{SCHEME}{self.path}@{self.commit}"

    def __str__(self) -> str:
        return f"{self.path}@{self.commit[:7]}"


def spelled(text: str, folder: Path) -> str | None:
    """`text` as a `hub:` reference, where it can be nothing but a model of the hub; None for a path.

    What is there as a path, as seen from `folder`, is one; so is what has no commit and starts with a folder
    that is there.
    """
    match = NAME.fullmatch(text)
    if match is None or (folder / text).exists():
        return None
    pinned = COMMIT.fullmatch(match["revision"] or "")
    if not pinned and (folder / text.partition("/")[0]).exists():
        return None
    return SCHEME + text


def hub_model(reference: str, *, ask: bool = False) -> HubModel:
    """The model that a `hub:` reference names.

    Args:
        ask: whether the hub may be asked which commit a model has now, to say it.

    Raises:
        ValueError: it is no such name, or lacks its commit; says how to write it.
    """
    text = reference.removeprefix(SCHEME)
    match = NAME.fullmatch(text)
    if match is None:
        raise ValueError(f"{reference} is no model of the hub: write {SCHEME}org/name@<40 hex digits>.")
    path, revision = match["repo"] + match["folder"], match["revision"]
    if revision is None or not COMMIT.fullmatch(revision):
        raise ValueError(_unpinned(match["repo"], path, revision, ask=ask))
    return HubModel(repo=match["repo"], folder=match["folder"].lstrip("/"), commit=revision)


def _unpinned(repo: str, path: str, revision: str | None, *, ask: bool) -> str:
    said = f"{path}@{revision}" if revision else path
    why = f"{said} is no folder here, and as a model of the hub it lacks its commit"
    if ask:
        from pipelines.pretrained.hub import commit_now

        now = commit_now(repo, revision or None)
        if now:
            return f"{why}: write {path}@{now}, which it is now."
    return f"{why}: write {path}@<the 40 hex digits of a commit>, from https://huggingface.co/{repo}/commits."
