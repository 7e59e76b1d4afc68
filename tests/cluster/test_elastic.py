"""How many workers there is room for, and what is said of a lost one; without a cluster."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

pytest.importorskip("ray.train.torch")
from cluster.elastic import answering, cause, count


def test_workers_are_counted_by_machine_and_by_the_scarcest_of_what_they_ask_for() -> None:
    nodes = {"a": {"CPU": 8.0, "GPU": 2.0}, "b": {"CPU": 3.0, "GPU": 4.0}, "c": {"CPU": 64.0}, "d": {}}
    assert count(nodes, {"CPU": 2.0, "GPU": 1.0}) == 2 + 1
    assert count(nodes, {"CPU": 2.0, "GPU": 0.0}) == 4 + 1 + 32
    assert count(nodes, {"CPU": 0.1}) == 80 + 30 + 640  # no worker is lost to binary fractions
    assert count({}, {"CPU": 1.0}) == 0


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_machine_that_is_gone_does_not_answer_though_ray_still_lists_it(port: int) -> None:
    def node(name: str, *, alive: bool = True, at: int = port) -> dict[str, object]:
        place = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": at}
        return {"NodeID": name, "Alive": alive, "Resources": {"CPU": 1.0}, **place}

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        nodes = [
            node("there"),
            node("dead", alive=False),
            node("gone", at=closed.getsockname()[1]),
            node("leaving"),
        ]
        assert answering(nodes, draining={"leaving": 0}) == {"there": {"CPU": 1.0}}
    assert answering([], draining={}) == {}


class Lost(Exception):
    health_check_failure = "the actor died"


def test_a_lost_worker_says_more_than_what_the_others_raised_because_of_it() -> None:
    reset = RuntimeError("Connection reset by peer\n[a long story]")
    assert cause({0: reset, 1: Lost(), 2: reset}) == "worker 1 was lost"
    assert cause({3: Lost(), 1: Lost()}) == "workers 1, 3 were lost"
    assert cause({2: reset}) == "worker 2: RuntimeError: Connection reset by peer"
