"""What `plan --fields` lists: every field at every depth, with its value and its meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pipelines.recipe.fields import fields
from pipelines.stage import Stage, execution


@dataclass(frozen=True, kw_only=True)
class Pace:
    lr: float = 1e-3
    """Learning rate,
    between warm-up and cooldown."""


@dataclass(frozen=True, kw_only=True)
class Learn(Stage):
    """Not a field's text."""

    output: ClassVar[Any] = "snapshot"
    size: int | None = None
    """Side, in px."""
    pace: Pace = Pace()
    """How fast."""
    every: int = execution(5)

    def summary(self) -> str:
        return ""

    def run(self, session: Any) -> dict[str, Any]:
        return {}


def test_every_field_is_a_flag_with_its_value_and_meaning() -> None:
    found = {f.flag: f for f in fields("model", Learn(pace=Pace(lr=0.5)))}
    assert [f for f in found if "resources" not in f] == [
        "--model.size",
        "--model.pace",
        "--model.pace.lr",
        "--model.every",
    ]
    assert found["--model.size"].meaning == "Side, in px."
    assert (found["--model.size"].value, found["--model.size"].group) == (None, False)
    assert found["--model.pace"].group
    assert found["--model.pace.lr"].value == 0.5
    assert found["--model.pace.lr"].meaning == "Learning rate, between warm-up and cooldown."
    assert found["--model.every"].execution
    assert not found["--model.size"].execution
    assert found["--model.resources.cpus"].execution
    assert "CPUs" in found["--model.resources.cpus"].meaning
