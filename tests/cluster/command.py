"""`latentmill` with one kind of stage, which counts: `python -m tests.cluster.command run count.yaml`.

The stage's `folder` is where `tests.cluster.gangs` writes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from pipelines.stage import Stage

RECIPE = """\
# latentmill run count
name: count
stages:
  counted: {{stage: count, folder: {folder}, steps: 100000, resources: {{cpus: 1, workers: 2}}}}
"""


@dataclass(frozen=True, kw_only=True)
class Count(Stage):
    """Counts."""

    output: ClassVar[Any] = "report"
    folder: str
    steps: int

    def summary(self) -> str:
        return f"{self.steps} steps"

    def run(self, session: Any) -> dict[str, Any]:
        from tests.cluster import gangs

        config = {"folder": self.folder, "steps": self.steps, "pause": 0.1, "every": 1_000_000}
        return session.gang(gangs.count, config)


def main() -> int:
    import pipelines.stages
    from pipelines.__main__ import main as latentmill

    pipelines.stages.STAGES = {"count": "tests.cluster.command:Count"}
    return latentmill()


if __name__ == "__main__":
    sys.exit(main())
