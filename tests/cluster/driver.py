"""A driver of a gang, as a process of its own: `python -m tests.cluster.driver FOLDER STEPS PAUSE`.

It joins the cluster at RAY_ADDRESS.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from cluster.mapping import RayExecutor
from cluster.resources import Resources
from cluster.session import RaySession
from tests.cluster import gangs


def main(folder: str, steps: int, pause: float) -> None:
    executor = RayExecutor(RaySession(dashboard=False))
    config = {"folder": folder, "steps": steps, "pause": pause, "every": 5}
    events: list[dict[str, Any]] = []
    resources = Resources(cpus=1, workers=2)
    told = executor.gang(gangs.count, config, resources=resources, name="count", on_event=events.append)
    print(json.dumps(told))
    executor.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
