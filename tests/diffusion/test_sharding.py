"""Two ranks against one: DDP in micro-batches, and FSDP2 with AdamW and with Muon, over gloo on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from diffusion.conditioning import Conditioning
from diffusion.config import DiTConfig, OptimizationConfig
from diffusion.sharding import gathered, shard, sharded, whole
from diffusion.training import TrainingState, fit
from tests import fresh

BATCH, STEPS = 10, 6
OPTIMIZATION = OptimizationConfig(
    lr=1e-2, weight_decay=0.01, decayed="matrices", clip=0.5, warmup=20, ema=0.05, ema_others=(0.1,)
)
MUON = replace(OPTIMIZATION, matrices="muon")
CASES = {"whole": OPTIMIZATION, "pieces": OPTIMIZATION, "adamw": OPTIMIZATION, "muon": MUON}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # 9 rows are no multiple of two ranks.
        self.inner, self.outer = nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(x).tanh())


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.last = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.last(x).sum(1)


def batch(step: int) -> Tensor:
    """The global batch; that of step 3 has no finite gradient."""
    x = torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(step))
    return x * torch.nan if step == 3 else x


def train(case: str, *, rank: int = 0, world: int = 1) -> tuple[TrainingState, dict[str, Tensor]]:
    """The state after `STEPS` steps, and what the steps said. Rank 0 of 2 has 6 of each 10."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module: nn.Module = Network()
    ddp, talks = None, []
    if world > 1 and case in ("whole", "pieces"):
        ddp = DistributedDataParallel(module)

        def hook(_, bucket):  # DDP takes annotations for strings here
            talks.append(bucket.index())
            return allreduce_hook(None, bucket)

        ddp.register_comm_hook(None, hook)
    elif world > 1:
        from torch.distributed.fsdp import fully_shard

        for block in module.blocks:  # pyright: ignore[reportGeneralTypeIssues]
            fully_shard(block)
        fully_shard(module)
    state = TrainingState.start(module, CASES[case])
    if world > 1 and ddp is None:  # what is whole can be loaded into what is sharded
        state.load_state_dict({name: t.clone() for name, t in gathered(state.state_dict()).items()})
    called = ddp if ddp is not None else module
    shares = [batch(n)[6 * rank : 6 + 4 * rank] if world > 1 else batch(n) for n in range(STEPS)]
    steps = fit(
        state,
        shares,
        lambda share: (called(share) - share.sum(1).sin()).square(),
        optimization=CASES[case],
        batch=BATCH,
        target_images=BATCH * STEPS,
        accumulate=1 if case == "whole" else 2,
        ddp=ddp,
    )
    said = [(progress.grad_norm, progress.skipped) for progress in steps]
    norms, skipped = (torch.stack(values) for values in zip(*said, strict=True))
    return state, {"norms": norms, "skipped": skipped, "talks": torch.tensor(len(talks))}


def run(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(minutes=1)
    )
    results: dict[str, Any] = {}
    for case in CASES:
        state, said = train(case, rank=rank, world=2)
        tensors = state.state_dict()
        copy = Network()
        state.ema.copy_to(copy)
        results[case] = {
            "sharded": sorted(name for name, tensor in tensors.items() if sharded(tensor)),
            "state": gathered(tensors),
            "average": copy.state_dict(),
            **said,
        }
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    threads = torch.get_num_threads()
    other = fresh.start(run, 1, folder)
    run(0, folder)
    other.join()
    torch.set_num_threads(threads)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one(two: list[dict[str, Any]], case: str):
    alone, said = train(case)
    average = Network()
    alone.ema.copy_to(average)
    for rank in two:
        assert rank[case]["skipped"].tolist() == said["skipped"].tolist() == [0, 0, 0, 1, 1, 1]
        torch.testing.assert_close(rank[case]["norms"], said["norms"], rtol=1e-5, atol=0, equal_nan=True)
        torch.testing.assert_close(rank[case]["state"], alone.state_dict(), rtol=1e-4, atol=2e-6)
        torch.testing.assert_close(rank[case]["average"], dict(average.state_dict()), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("case", ["adamw", "muon"])
def test_all_that_is_large_is_sharded(two: list[dict[str, Any]], case: str):
    names = {name for name, _ in Network().named_parameters()}
    for rank in two:
        cut = set(rank[case]["sharded"])
        assert {f"module.{name}" for name in names} <= cut
        assert {f"ema.{name}" for name in names} | {f"ema.0.1/{name}" for name in names} <= cut
        slots = {name for name in rank[case]["state"] if name.startswith("optimizer.")}
        assert {name for name in slots if not name.endswith(".step")} <= cut
        assert len(slots) == (3 * len(names) if case == "adamw" else 3 * len(names) - 2 * 4)


def test_pieces_talk_once_a_step_to_the_same_end(two: list[dict[str, Any]]):
    assert [rank[case]["talks"].item() for rank in two for case in ("whole", "pieces")] == [STEPS] * 4
    whole, pieces = (two[0][case]["state"] for case in ("whole", "pieces"))
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=2e-6)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    store = torch.distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_what_is_gathered_in_bfloat16_is_what_autocast_makes(alone: None) -> None:
    """Gains of 1 are as good in bf16, so that the outputs are the same bits; weights and gradients stay."""
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    t, told = torch.tensor([0.1, 0.501, 0.93]), Conditioning(label=torch.arange(3), classes=3)

    def answer(module: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x, t, told)
        y.float().square().mean().backward()
        return y.detach(), {n: whole(p.grad) for n, p in module.named_parameters()}

    def equal() -> nn.Module:
        torch.manual_seed(0)
        made = DiTConfig(width=16, depth=3, heads=2, norm="rms").build(channels=2, size=8, classes=3)
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.1)
        for module in made.modules():
            if isinstance(module, nn.RMSNorm) and module.weight is not None:
                nn.init.ones_(module.weight)
        return made

    (y, gradients), cut = answer(equal()), equal()
    dtypes: list[torch.dtype] = []
    block: Any = cut.blocks[1]  # pyright: ignore[reportIndexIssue]
    block.mlp.register_forward_hook(lambda mlp, *_: dtypes.append(mlp.inner.weight.dtype))
    shard(cut, gathered=torch.bfloat16)
    mine, theirs = answer(cut)
    assert torch.equal(mine, y)
    assert dtypes == [torch.bfloat16]
    assert {p.dtype for p in cut.parameters()} == {g.dtype for g in theirs.values()} == {torch.float32}
    for name, gradient in gradients.items():
        torch.testing.assert_close(theirs[name], gradient, rtol=2e-2, atol=1e-3 * gradient.abs().max().item())
