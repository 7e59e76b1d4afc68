from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cluster.gang import Member
from pipelines.training import figures, loop
from pipelines.training.agreement import Agreement
from pipelines.training.figures import Figures
from pipelines.training.peaks import peak
from tests.pipelines import tiny

CPU = torch.device("cpu")


def member(rank: int = 0, world: int = 1) -> Member:
    return Member(rank=rank, world=world, event=lambda told: None, threads=1)


def kept(task: Any = None) -> Figures:
    return Figures(task, member=member(), device=CPU, precision="float32")


def alone(values: Any) -> list[list[float]]:
    return [list(values)]


def test_loss_and_its_bins_are_numpys() -> None:
    chance = np.random.default_rng(0)
    t, losses = chance.random(301), chance.random(301)
    t[:3] = 0.0, 0.125, 1.0
    losses[[7, 20]] = np.nan, np.inf
    one = kept()
    for part in np.array_split(np.arange(301), 4):
        share = SimpleNamespace(t=torch.from_numpy(t[part]).float())
        one.see(share, torch.from_numpy(losses[part]).float())
    found = one.values(images=301, since=time.monotonic() - 2, gather=alone)

    good = np.isfinite(losses)
    edges = np.linspace(0, 1, figures.BINS + 1)
    total, _ = np.histogram(t[good], edges, weights=losses[good])
    count, _ = np.histogram(t[good], edges)
    bins = {name: value for name, value in found.items() if name.startswith(figures.BY_TIME)}
    assert list(bins)[::7] == ["loss_by_time/0.000-0.125", "loss_by_time/0.875-1.000"]
    assert list(bins.values()) == pytest.approx((total / count).tolist(), rel=1e-6)
    assert found["loss"] == pytest.approx(losses[good].mean(), rel=1e-6)
    assert found["images_per_second"] == pytest.approx(150, rel=0.02)
    assert found["memory_gib"] > 0.05
    assert not {"tflops", "share_of_peak", "gpu_utilisation"} & set(found)


def test_each_report_is_of_its_own_steps_and_empty_bins_are_left_out() -> None:
    one = kept()
    one.see(SimpleNamespace(t=torch.tensor([0.1, 0.9])), torch.tensor([1.0, 3.0]))
    one.values(images=2, since=0.0, gather=alone)
    one.see(SimpleNamespace(t=torch.tensor([0.6])), torch.tensor([5.0]))
    found = one.values(images=1, since=0.0, gather=alone)
    told = {name: value for name, value in found.items() if "loss" in name}
    assert told == {"loss": 5.0, "loss_by_time/0.500-0.625": 5.0}
    one.see(SimpleNamespace(), torch.tensor([float("nan")]))
    assert "loss" not in one.values(images=1, since=0.0, gather=alone)


def by_hand(batch: int, tokens: int, kept: int, caption: int) -> float:
    """Multiplications and additions of a step of `tiny.NETWORK`, matrix by matrix: forward and twice back."""
    d, hidden, patch = 16, 32, 4 * 2  # mlp_ratio 8/3 of 16, to the next 32

    def product(rows: int, inputs: int, outputs: int) -> int:
        return 2 * rows * inputs * outputs

    def attention(queries: int, keys: int) -> int:
        return 2 * product(queries, d, keys)  # scores, and what they weigh

    total = product(tokens, patch, d) + product(tokens, d, patch)  # patches in and out
    total += product(1, 256, d) + product(1, d, d)  # time
    total += product(1, tiny.TEXT_WIDTH, d)  # pooled caption
    total += product(caption, tiny.TEXT_WIDTH, d)  # its tokens
    total += product(1, d, 2 * d)  # the last modulation
    start, end = tiny.NETWORK.routed
    for block in range(2):
        n = kept if start <= block < end else tokens
        total += 4 * product(n, d, d) + attention(n, n)
        total += 2 * product(n, d, d) + 2 * product(caption + 1, d, d) + attention(n, caption + 1)
        total += product(n, d, 3 * hidden) + product(1, d, 6 * d)
    return 3.0 * batch * total


@pytest.mark.parametrize(("changes", "kept"), [({}, 4), ({"tokens": 0.5}, 2)])
def test_work_is_the_count_by_hand(tmp_path: Path, changes: dict[str, Any], kept: int) -> None:
    task: Any = tiny.train(**changes).task(tiny.line(tmp_path), CPU, 1)
    share = task.share(np.arange(6), np.arange(6))
    route = share.conditioning.route
    assert (4 if route is None else route.shape[1]) == kept
    wanted = by_hand(6, 4, kept, share.conditioning.text.shape[1])
    assert task.work(share) == wanted

    one = Figures(task, member=member(), device=CPU, precision="float32")
    one.see(share, torch.ones(6))
    one.see(share, torch.ones(6))
    found = one.values(images=12, since=time.monotonic() - 4, gather=lambda v: [list(v), list(v)])
    assert found["tflops"] == pytest.approx(2 * wanted / 4 / 1e12, rel=0.02)  # of each of two workers
    assert "share_of_peak" not in found  # a CPU's is not known

    for parameter in task.module.parameters():
        parameter.requires_grad_(False)
    frozen = type(task._work)(task.stage.network, task.module, **task._work._built)
    assert frozen(tuple(share.latents.shape), share.conditioning) == pytest.approx(wanted * 2 / 3)


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4, 66.9),
        ("NVIDIA H100 PCIe", 756.4, 51.2),
        ("NVIDIA H200", 989.4, 66.9),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 19.5),
        ("NVIDIA A10", 125, 31.2),
        ("NVIDIA A10G", 70, 35),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA L40S", 362, 91.6),
        ("Tesla V100-SXM2-16GB", None, 15.7),
        ("Tesla T4", None, 8.1),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None),
        ("NVIDIA Unheard Of 9000", None, None),
        ("cpu", None, None),
    ],
)
def test_peaks_are_of_devices_that_are_known(name: str, half: float | None, single: float | None) -> None:
    for precision, wanted in (("bfloat16", half), ("float32", single)):
        found = peak(name, precision=precision)
        assert (found if found is None else found / 1e12) == wanted


def test_a_report_is_of_all_ranks_and_at_the_same_step(tmp_path: Path, monkeypatch: Any) -> None:
    """A share of one and a share of three: the mean is over the four; and a wish is wished once."""
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)

    def work(rank: int) -> None:
        meeting = f"file://{tmp_path}/meeting"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
        agreement = Agreement((loop.REPORT,), world=2)
        one = Figures(None, member=member(rank, 2), device=CPU, precision="float32")  # pyright: ignore
        reported = []
        for step in range(4):
            losses = torch.tensor([4.0]) if rank == 0 else torch.tensor([1.0, 2.0, 1.0])
            one.see(SimpleNamespace(t=torch.full_like(losses, 0.3)), losses + step)
            wished = [loop.REPORT] if rank == 0 and step % 2 == 0 else []
            if agreement.exchange(wished):
                found = one.values(images=8, since=0.0, gather=agreement.gather)
                reported.append((step, found["loss"], found["loss_by_time/0.250-0.375"]))
        agreement.close()
        assert reported == [(1, 2.5, 2.5), (3, 4.5, 4.5)]
        os._exit(0)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]


def test_a_training_tells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    session = tiny.session(tmp_path, tiny.line(tmp_path / "line"))
    tiny.run(tiny.train(images_seen=16), session)
    told = [event for event in session.events if event["kind"] == "metrics" and "loss" in event["values"]]
    assert [event["step"] for event in told] == [8, 16]
    wanted = {"loss", "grad_norm", "lr", "images_per_second", "tflops", "memory_gib"}
    assert all(wanted <= set(event["values"]) for event in told)
    bins = [v for name, v in told[0]["values"].items() if name.startswith(figures.BY_TIME)]
    assert len(bins) >= 6  # of a stratified batch of eight
    assert told[0]["values"]["loss"] == pytest.approx(np.mean(bins), rel=0.5)
