"""Where a training stands, and what the files that keep it are called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

INDEX = re.compile(r"\d{12}-\d{6}\.json")
PART = re.compile(r"(\d{12}-\d{6})\.([0-9a-f]{16})\.(\d{5})-of-(\d{5})\.safetensors")
"""A checkpoint's name, the attempt that wrote it, and which part it is of how many."""
FILE = re.compile(r"(\d{12}-\d{6})\.(json|safetensors|[0-9a-f]{16}\.\d{5}-of-\d{5}\.safetensors)")
"""Any file of a checkpoint, those of format 1 too."""


class Damaged(ValueError):
    """A checkpoint, or what is left of one, that cannot be used; says why."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Where a training stands, in words that decide who may continue from there."""

    images_seen: int
    lease: int
    """Number of the lease under which it was written; of two for the same place the higher one is read."""
    cooling: bool
    """Whether the learning rate had begun to fall: then only a run with the same `target` goes on from it."""
    target: int
    """`images_seen` at which the run that wrote it was to end."""

    @property
    def name(self) -> str:
        return f"{self.images_seen:012d}-{self.lease:06d}"

    @property
    def file(self) -> str:
        """Of its index."""
        return f"{self.name}.json"

    def facts(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in KINDS}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Mark:
        """From `facts`; Damaged where one is missing or of another kind."""
        if any(type(facts.get(key)) is not kind for key, kind in KINDS.items()):
            raise Damaged("does not say where it stands")
        return cls(**{key: facts[key] for key in KINDS})


KINDS = {"images_seen": int, "lease": int, "cooling": bool, "target": int}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    mark: Mark
    tensors: Mapping[str, Tensor]
    """Laid out as the training that asked has them; one that is sharded is made when it is asked for."""
    state: dict[str, Any]
    """What is no tensor (JSON)."""
