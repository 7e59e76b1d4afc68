"""Types of arguments that several commands have, and how help shows them."""

from __future__ import annotations

from typing import Annotated, Any

from tyro.conf import arg


def shown_as(metavar: str, *, default: str = "") -> Any:
    """How help names an option's value, and what it says of the default."""
    return arg(metavar=metavar, help_behavior_hint=default)


StorePath = Annotated[str | None, shown_as("PATH", default="(LATENTMILL_STORE, else ./store)")]
Switch = Annotated[bool, arg(help_behavior_hint="")]
