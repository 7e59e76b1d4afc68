"""Fields that a configuration did not have at first."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def later(default: Any) -> Any:
    """A field that came later: at its default, what records a configuration may leave it out, so that
    digests of older records stand."""
    return field(default=default, metadata={"added": default})
