from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from cluster.beside import NICE, Beside

LIMIT = 60.0


def opened() -> Callable[[Any], Any]:
    """In the child: an echo that also does as it is told."""
    calls: list[Any] = []

    def answer(message: dict[str, Any]) -> dict[str, Any]:
        calls.append(message)
        if message.get("do") == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if message.get("do") == "hang":
            time.sleep(3600)
        if message.get("do") == "raise":
            raise ValueError("nothing to see")
        while message.get("until") and not os.path.exists(message["until"]):
            time.sleep(0.01)
        return {
            "calls": len(calls),
            "pid": os.getpid(),
            "nice": os.nice(0),
            "threads": os.environ["OMP_NUM_THREADS"],
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "png": b"\x00\xff",
        }

    return answer


def beside(**given: Any) -> Beside:
    return Beside(opened, name="looks", **{"patience": 5 * LIMIT, **given})


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_it_answers_from_a_humble_process_that_ends_with_it() -> None:
    done: list[Any] = []
    one = beside(prepare=lambda item: {"number": item}, done=done.append)
    for number in range(2):
        one.offer(number)
        assert one.wait(LIMIT)
    (first, answer), (second, again) = one.answers()
    assert (first, second) == (0, 1)
    assert done == [{"number": 0}, {"number": 1}]
    assert answer["png"] == b"\x00\xff"
    assert (answer["nice"], answer["threads"], answer["gpus"]) == (NICE, "1", "")
    assert (answer["calls"], again["calls"], again["pid"]) == (1, 2, answer["pid"])
    assert answer["pid"] != os.getpid()
    assert one.fault is None
    assert one.longest > 0
    one.close()
    assert gone(answer["pid"])
    assert one.answers() == []


def test_of_those_that_wait_the_newest_stays_and_the_others_are_counted(tmp_path) -> None:
    gate = tmp_path / "open"
    begun = threading.Event()

    def prepare(item: int) -> dict[str, Any]:
        begun.set()
        return {"until": str(gate)}

    one = beside(prepare=prepare)
    one.offer(0)
    assert begun.wait(LIMIT)
    start = time.monotonic()
    for number in range(1, 5):
        one.offer(number)
    assert time.monotonic() - start < 0.1  # nobody waited
    assert one.answers() == []
    assert not one.wait(0.0)
    gate.touch()
    assert one.wait(LIMIT)
    assert [item for item, _ in one.answers()] == [0, 4]
    assert one.skipped == 3
    one.close()


@pytest.mark.parametrize(
    ("does", "fault"), [("die", "died of signal 9"), ("raise", "ValueError: nothing to see")]
)
def test_what_happens_to_it_is_told_and_no_more(does: str, fault: str) -> None:
    done: list[Any] = []
    one = beside(done=done.append)
    one.offer({"do": does})
    assert one.wait(LIMIT)
    assert one.fault is not None
    assert fault in one.fault
    one.offer({})
    one.offer({})
    assert one.wait(0.0)
    assert (one.answers(), one.skipped) == ([], 3)
    assert done == [{"do": does}]  # what it was given is cleared away all the same
    one.close()


def test_one_that_hangs_is_ended() -> None:
    one = beside()
    one.offer({})
    assert one.wait(LIMIT)
    ((_, answer),) = one.answers()
    one._patience = 0.3
    one.offer({"do": "hang"})
    assert one.wait(LIMIT)
    assert one.fault == "it did not answer within 0 s"
    assert gone(answer["pid"])


def test_closing_does_not_wait_for_what_it_does() -> None:
    one = beside()
    one.offer({})
    assert one.wait(LIMIT)
    ((_, answer),) = one.answers()
    one.offer({"do": "hang"})
    start = time.monotonic()
    one.close()
    assert time.monotonic() - start < 5
    assert gone(answer["pid"])
    assert one.fault is None


def test_it_ends_with_a_parent_that_is_killed(tmp_path) -> None:
    """Such a parent says no goodbye, and the child may be in the middle of something."""
    code = (
        "import sys, time; from tests.cluster.test_beside import beside\n"
        "if __name__ == '__main__':\n"
        "    one = beside(); one.offer({}); one.wait(60); ((_, answer),) = one.answers()\n"
        "    one.offer({'do': 'hang'}); time.sleep(0.2); print(answer['pid'], flush=True); time.sleep(3600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + LIMIT
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(pid)


@pytest.mark.ray
def test_under_ray_it_is_an_actor_with_resources_of_its_own(tmp_path) -> None:
    """In a process of its own, which is connected to a cluster and leaves none behind."""
    code = (
        "import tempfile, ray; from cluster import beside; from tests.cluster import test_beside\n"
        "folder = tempfile.TemporaryDirectory(prefix='ray', ignore_cleanup_errors=True)\n"
        "ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20, "
        "_temp_dir=folder.name)\n"
        "assert beside.spare(cpus=1, gpus=0) and not beside.spare(cpus=1, gpus=1)\n"
        "one = test_beside.beside()\n"
        "one.offer({}); assert one.wait(300); ((_, answer),) = one.answers()\n"
        "assert (answer['nice'], answer['calls'], answer['png']) == (19, 1, bytes([0, 255])), answer\n"
        "one.offer({'do': 'die'}); assert one.wait(300)\n"
        "assert 'died' in one.fault and one.skipped == 1, one.fault\n"
        "one.close(); ray.shutdown()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
