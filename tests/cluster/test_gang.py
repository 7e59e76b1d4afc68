"""A gang under Ray Train whose worker, and then whose driver, is told to end: no step is done twice."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.gang import GangFailed, GangPaused
from cluster.mapping import RayExecutor
from cluster.resources import Resources
from cluster.session import RaySession
from tests.cluster import gangs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
TWO = Resources(cpus=1, workers=2)


@pytest.fixture(scope="module")
def session() -> Iterator[RaySession]:
    # Ray's sockets lie in its folder, and their names may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        options = {"num_cpus": 2, "object_store_memory": 100 * 2**20, "_temp_dir": folder}
        session = RaySession(dashboard=False, options=options)
        os.environ["RAY_TRAIN_ENABLE_STATE_TRACKING"] = "0"
        session.begin()
        yield session
        session.close()


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_what_is_told_to_end_writes_a_checkpoint_first(session: RaySession, tmp_path: Path) -> None:
    """There are no others, so a step that was lost would be done twice."""
    executor, events = RayExecutor(session), list[dict[str, Any]]()
    config = {"folder": str(tmp_path), "steps": 4_000, "every": 1_000, "leave": {7: 1}}

    def listen(event: dict[str, Any]) -> None:
        events.append(event)
        if event["kind"] == "restart":
            executor.paused.set()  # as `latentmill run` does when it gets SIGTERM

    with pytest.raises(GangPaused, match="which are safe"):
        executor.gang(gangs.count, config, resources=TWO, name="count", on_event=listen)
    done = len(steps(tmp_path))
    assert [event["attempt"] for event in events if event["kind"] == "restart"] == [1]
    with pytest.raises(GangPaused):  # one that is told to end starts nothing
        executor.gang(gangs.count, config, resources=TWO, name="count", on_event=listen)
    again = RayExecutor(session)
    told = again.gang(
        gangs.count, {**config, "steps": done + 5}, resources=TWO, name="count", on_event=events.append
    )
    assert told["steps"] == done + 5
    assert steps(tmp_path) == list(range(done + 5))
    gangs.check(tmp_path, done + 5)


@pytest.mark.slow
def test_a_gang_that_dies_at_the_same_step_each_time_ends_with_the_cause(
    session: RaySession, tmp_path: Path
) -> None:
    config = {"folder": str(tmp_path), "steps": 20, "poison": 7}
    with pytest.raises(GangFailed, match="3 times in a row without getting any further.*was lost"):
        RayExecutor(session).gang(
            gangs.count, config, resources=TWO, name="count", on_event=lambda event: None
        )
    assert len(list(tmp_path.glob("attempt-*-0"))) == 4


@pytest.mark.slow
def test_a_lost_worker_is_replaced_by_a_process_that_has_waited(session: RaySession, tmp_path: Path) -> None:
    one, events = Resources(cpus=1, workers=1), list[dict[str, Any]]()
    config = {"folder": str(tmp_path)}
    told = RayExecutor(session).gang(
        gangs.replaced, config, resources=one, name="replaced", on_event=events.append
    )
    assert told["taken"] in told["waited"]
