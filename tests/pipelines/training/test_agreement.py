"""Wishes of any rank, heard by all at the same step."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import torch.distributed

from pipelines.training.agreement import Agreement
from tests import fresh

STEPS, WORLD = 40, 3
WISHES = {(7, 1): ["stop"], (20, 0): ["checkpoint"], (20, 2): ["stop"], (39, 1): ["checkpoint"]}
"""By step and rank."""


def test_one_rank_hears_itself_at_once() -> None:
    alone = Agreement(("checkpoint", "stop"), world=1)
    assert alone.exchange([]) == frozenset()
    assert alone.exchange(["stop"]) == {"stop"}
    assert alone.exchange([]) == frozenset()


def work(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD
    )
    agreement, chance, heard = Agreement(("checkpoint", "stop"), world=WORLD), random.Random(rank), []
    for step in range(STEPS):
        # Other collectives come between, in the same order on all ranks, and ranks are late by turns.
        torch.distributed.all_reduce(torch.ones(1000))
        time.sleep(chance.random() * 0.01)
        heard.append(sorted(agreement.exchange(WISHES.get((step, rank), []))))
    agreement.close()
    (folder / f"{rank}.json").write_text(json.dumps(heard))
    torch.distributed.destroy_process_group()


def test_all_ranks_hear_a_wish_one_step_after_it(tmp_path: Path) -> None:
    processes = [fresh.start(work, rank, tmp_path) for rank in range(WORLD)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * WORLD

    expected: list[list[str]] = [[] for _ in range(STEPS)]
    expected[8], expected[21] = ["stop"], ["checkpoint", "stop"]
    for rank in range(WORLD):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected
