"""Items that crash, hang, eat memory or lie cost themselves: neighbours keep their results and order."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.children import ChildFailed, Died, Done, Ended, Limits, Work, in_children
from cluster.fork import nursery
from tests.cluster.stubs import open_nothing, open_stub

LIMITS = Limits(memory=256 << 20, seconds=0.4)


def run(items: list[Any], limits: Limits = LIMITS, **options: Any) -> list[Any]:
    works = [item if isinstance(item, (Done, Work)) else Work(item) for item in items]
    return list(in_children(open_stub, {"n": 1}, works, limits=limits, **options))


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_whatever_their_size(threads: int) -> None:
    items = [{"data": bytes([n % 256]) * (n * n * 400 % 300_000)} for n in range(60)]
    found = run([*items, Done("known")], Limits(threads=threads))
    assert found == [{"data": item["data"] * 2, "argument": {"n": 1}} for item in items] + ["known"]


@pytest.mark.parametrize("threads", [1, 4])
def test_thirty_poisons_cost_thirty_items(threads: int) -> None:
    """10 that crash, 10 that never end, 10 that want 2 GiB, among 60 that are sound."""
    ends: list[Ended] = []
    items: list[Any] = []
    for n in range(30):
        items += [{"data": b"a%d" % n}, {"do": ("crash", "loop", "grow")[n % 3]}, {"data": b"b%d" % n}]
    found = run(items, Limits(memory=256 << 20, seconds=0.05, threads=threads), ended=ends.append)
    poisoned = [result.reason for result in found if isinstance(result, Died)]
    assert poisoned == ["signal 11", "time", "memory"] * 10
    sound = [result["data"] for result in found if not isinstance(result, Died)]
    assert sound == [item["data"] * 2 for item in items if "data" in item]
    assert max(end.peak for end in ends) < 200 << 20


@pytest.mark.parametrize(
    ("item", "reason"),
    [({"do": "exit"}, "code 3"), ({"do": "lie"}, "nonsense"), ({"do": "deep"}, "nonsense")],
)
def test_an_end_has_its_reason(item: dict[str, Any], reason: str) -> None:
    assert run([{"do": "print"}, item, {"do": "print"}]) == ["done", Died(reason), "done"]


def test_a_child_that_waits_is_given_up() -> None:
    start = time.monotonic()
    found = run([{"do": "sleep", "seconds": 60}, {"do": "print"}], Limits(silence=0.2))
    assert found == [Died("time"), "done"]
    assert time.monotonic() - start < 20


def test_an_exception_of_the_function_is_our_own_mistake() -> None:
    with pytest.raises(ChildFailed, match="KeyError: 'our own mistake'"):
        run([{"do": "raise"}])
    with pytest.raises(ChildFailed, match="ValueError: not today$"):
        list(in_children(open_nothing, None, [Work(1)], limits=LIMITS))


def test_a_large_item_has_a_child_that_may_take_more() -> None:
    ends: list[Ended] = []
    large = {"do": "take", "bytes": 300 << 20}
    assert run([{"do": "print"}, large, {"do": "print"}]) == ["done", Died("memory"), "done"]
    works = [Work({"do": "print"}), Work(large, 400 << 20), Work({"do": "print"})]
    assert run(works, ended=ends.append) == ["done", 300 << 20, "done"]
    assert len(ends) == 3
    # Neither are more small ones there at once than fit.
    half = Work({"do": "take", "bytes": 150 << 20}, 160 << 20)
    assert run([half] * 6, Limits(memory=256 << 20, threads=4)) == [150 << 20] * 6


def test_a_child_has_no_credentials_files_or_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The nursery is started with the first child: one for this test alone.
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    (environment,) = run([{"do": "environment"}], modules=("json", "base64"))
    assert "canary" not in environment.values()
    with pytest.raises(ChildFailed, match="OSError"):
        run([{"do": "file", "path": str(tmp_path / "file")}])
    assert (tmp_path / "file").stat().st_size == 0
    with pytest.raises(ChildFailed, match="Too many open files"):
        run([{"do": "files"}])


def test_each_call_has_a_child_of_its_own_and_leaves_none() -> None:
    one, other = (run([{"do": "process"}] * 2) for _ in range(2))
    assert one[0] == one[1] != other[0]
    calls = in_children(open_stub, None, (Work({"do": "process"}) for _ in range(100)), limits=LIMITS)
    left = next(calls)
    calls.close()
    for process in (*one, *other, left):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_a_nursery_that_was_killed_is_replaced() -> None:
    run([{"do": "print"}], modules=("json",))
    found = nursery(("json",)).process
    assert found
    found.kill()
    found.wait()
    assert run([{"do": "print"}], modules=("json",)) == ["done"]
    with pytest.raises(ChildFailed, match="did not start"):
        run([{"do": "print"}], modules=("no_such_module",))


def test_a_nursery_ends_with_its_process() -> None:
    import subprocess
    import sys

    code = (
        "from cluster.fork import nursery; n = nursery(('json',)); n.child(); "
        "print(n.process.pid, flush=True); import os; os.kill(os.getpid(), 9)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE).stdout)
    until = time.monotonic() + 5
    while time.monotonic() < until and Path(f"/proc/{pid}").exists():
        if "zombie" in Path(f"/proc/{pid}/status").read_text():
            break
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{pid}").exists()


def test_calls_of_several_threads_share_a_nursery() -> None:
    found: dict[int, list[Any]] = {}

    def call(n: int) -> None:
        found[n] = run([{"data": b"%d-%d" % (n, m)} for m in range(20)])

    threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(4):
        assert [one["data"] for one in found[n]] == [(b"%d-%d" % (n, m)) * 2 for m in range(20)]


def test_items_are_taken_as_they_are_needed() -> None:
    taken = []

    def items() -> Iterator[Work]:
        for n in range(1000):
            taken.append(n)
            yield Work({"data": bytes(1000)})

    calls = in_children(open_stub, None, items(), limits=LIMITS)
    next(calls)
    assert len(taken) < 30
    calls.close()
