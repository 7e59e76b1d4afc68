"""A driver of a gang, as a process of its own: `python -m tests.cluster.driver FOLDER STEPS [PAUSE]`.

It joins the cluster at RAY_ADDRESS, else starts one in FOLDER/ray, and ends as `latentmill run` does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cluster.gang import GangPaused
from cluster.mapping import RayExecutor
from cluster.resources import Resources
from cluster.session import RaySession
from pipelines.commands.ending import Terminated, politely
from tests.cluster import gangs


def main(folder: Path, steps: int, pause: float) -> int:
    options = {"num_cpus": 2, "object_store_memory": 100 * 2**20, "_temp_dir": str(folder / "ray")}
    session = RaySession(dashboard=False, options=options)
    executor = RayExecutor(session)
    executor.training = True  # pyright: ignore[reportAttributeAccessIssue]
    executor.pause = lambda seconds: executor.paused.set()  # the gang is in this thread
    try:
        with politely(executor):
            config = {"folder": str(folder), "steps": steps, "pause": pause, "every": 1_000}
            resources = Resources(cpus=1, workers=2)
            events: list[dict[str, object]] = []
            told = executor.gang(
                gangs.count, config, resources=resources, name="count", on_event=events.append
            )
            print(json.dumps(told))
            return 0
    except GangPaused as paused:
        print(f"{paused}", file=sys.stderr)
        return Terminated.status
    finally:
        executor.close()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
