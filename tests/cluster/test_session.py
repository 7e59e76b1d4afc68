"""Joining a cluster: a store that is a folder of one node is refused, and what was connected stays so."""

from __future__ import annotations

import os

import pytest
import ray

from cluster.session import ALONE, SHARED_STORE, RaySession


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A process that is connected to a cluster of two live nodes and a dead one; what was done to that."""
    done: list[str] = []

    class Context:
        gcs_address = "head:6379"

    nodes = [
        {"Alive": True, "Resources": {"node:1": 1.0}},
        {"Alive": True, "Resources": {"CPU": 6.0, "GPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "init", lambda **_: done.append("init"))
    monkeypatch.setattr(ray, "shutdown", lambda: done.append("shutdown"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv(SHARED_STORE, raising=False)
    return done


def test_a_connection_that_is_there_is_used_and_left(joined: list[str]):
    session = RaySession(shared="s3://bucket/store").start()
    capacity = session.capacity()
    assert (session.address, session.local) == ("head:6379", False)
    assert (capacity.cpus, capacity.gpus, capacity.nodes) == (6.0, 2.0, ((6.0, 2.0),))
    session.close()
    assert joined == []


def test_a_cluster_that_was_joined_before_may_still_take_its_machines_away(
    joined: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Settings for a Ray that is started here would switch off what tells of it."""
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)
    session = RaySession(shared="s3://bucket/store").start()
    assert not set(ALONE) & set(os.environ)
    session.close()


def test_a_folder_is_no_store_of_several_nodes(joined: list[str], monkeypatch: pytest.MonkeyPatch):
    session = RaySession(shared="/store")
    with pytest.raises(ValueError, match=f"2 nodes and the store is a folder.*{SHARED_STORE}=1"):
        session.start()
    session.close()
    monkeypatch.setenv(SHARED_STORE, "1")
    session = RaySession(shared="/store").start()
    assert session.train_storage == "/store"
    session.close()
