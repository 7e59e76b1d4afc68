"""A lease changes hands by release, by patience or by the holder's end, and never by a wall clock."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import lease as leases
from cluster.lease import Lease, LeaseLost, _name
from cluster.storage import Storage


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path)


def foreign(lease: Lease) -> None:
    """Makes the holder a process of another machine, about which nothing but its counter can be known."""
    name = _name(lease.number)
    owner = json.loads(lease.storage.read(name)) | {"kernel": "another machine"}
    lease.storage.replace(name, json.dumps(owner).encode())


def test_numbers_rise_and_a_released_lease_is_free_at_once(storage: Storage):
    first, second = Lease(storage, patience=1000), Lease(storage, patience=1000)
    assert first.acquire()
    first.release()
    assert second.acquire()
    assert (first.number, second.number) == (1, 2)
    with pytest.raises(LeaseLost):
        first.beat()
    with pytest.raises(LeaseLost):
        first.check()
    second.check()


def test_a_counter_that_stands_still_is_overtaken_after_the_waiters_patience(storage: Storage):
    first = Lease(storage)
    first.acquire()
    foreign(first)
    clock = Clock()
    second = Lease(storage, patience=0.5, clock=clock)
    seen: list[str] = []
    assert second.acquire(waiting=seen.append)
    assert second.number == 2
    assert len(seen) <= 1


def test_a_counter_that_moves_is_waited_for_until_the_work_is_finished(storage: Storage):
    first = Lease(storage)
    first.acquire()
    foreign(first)
    second = Lease(storage, patience=0.3)
    looks = 0

    def finished() -> bool:
        nonlocal looks
        looks += 1
        first.beat()
        return looks > 30

    seen: list[str] = []
    assert not second.acquire(finished=finished, waiting=seen.append)
    assert looks > 30
    assert len(seen) == 1
    assert second.number == 0


def test_a_lease_is_released_when_its_block_ends_in_an_error(storage: Storage):
    first = Lease(storage, patience=1000)
    first.acquire()
    with pytest.raises(KeyError), first.held():
        raise KeyError
    assert Lease(storage, patience=1000).acquire()


def test_a_holder_whose_end_rays_cluster_has_seen_is_not_waited_for(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another machine, where its process cannot be seen."""
    holder, waiter = Lease(storage, patience=1e9), Lease(storage, patience=1e9)
    monkeypatch.setattr(leases, "_job", lambda: {"cluster": "c", "job": "01"})
    assert holder.acquire()
    foreign(holder)
    known = [{"JobID": "00", "IsDead": True}, {"JobID": "01", "IsDead": False}]
    monkeypatch.setattr("ray._private.state.jobs", lambda: known)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address="head:1"))
    heads = {"head:1"}
    monkeypatch.setattr(leases, "reached", heads.__contains__)
    monkeypatch.setattr(leases, "_job", lambda: {"cluster": "c", "job": "02"})
    assert waiter.busy()
    known[1]["IsDead"] = True
    assert not waiter.busy()
    monkeypatch.setattr(leases, "_job", lambda: {"cluster": "another", "job": "02"})
    assert waiter.busy()  # its first job is not that one
    monkeypatch.setattr(leases, "_job", dict)
    assert waiter.busy()
    monkeypatch.setattr(leases, "_job", lambda: {"cluster": "c", "job": "02"})
    heads.clear()
    assert waiter.busy()  # Ray is not asked once its head is away: it would end the process
    heads.add("head:1")
    assert waiter.acquire()
    assert waiter.number == 2


def test_a_holder_on_this_machine_is_judged_without_ray(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster whose head is away may not be asked while its driver lets go."""
    monkeypatch.setattr(leases, "_ended", lambda holder: pytest.fail("Ray was asked"))
    holder, waiter = Lease(storage, patience=1e9), Lease(storage, patience=1e9)
    assert holder.acquire()
    assert waiter.busy()
