"""One training on 1 to 4 processes over gloo, by DDP, FSDP2 and hybrid sharding: all learn the same."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from cluster.gang import Member
from cluster.resources import Resources
from diffusion import compilation, sharding
from diffusion.alignment import Aligned
from diffusion.conditioning import Conditioning
from diffusion.config import DiTConfig, OptimizationConfig
from diffusion.training import Rival, TrainingState, fit
from pipelines.stream import TrainingStream
from pipelines.training import parallel
from pipelines.training.config import DDPConfig, FSDPConfig, ParallelConfig, check_parallel
from tests import fresh
from tests.pipelines import tiny
from tests.pipelines.training.test_trainer import import_all

STEPS, BATCH = 3, 11  # a batch that no number of workers divides
ADAMW = OptimizationConfig(lr=3e-3, warmup=16, clip=0.5, ema=0.1, ema_others=(0.05,))
MUON = dataclasses.replace(ADAMW, matrices="muon")
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    parallel: ParallelConfig = DDPConfig()
    accumulate: int = 1
    recompute: bool = False
    optimization: OptimizationConfig = ADAMW
    tokens: float = 1.0

    @property
    def sharded(self) -> bool:
        return isinstance(self.parallel, FSDPConfig)


FSDP, KEPT, HYBRID = FSDPConfig(), FSDPConfig(reshard=False), FSDPConfig(replicas=2)
CASES: dict[int, dict[str, Case]] = {
    1: {
        "plain": Case(),
        "pieces": Case(accumulate=3),
        "muon": Case(optimization=MUON),
        "routed": Case(tokens=0.5),
        "fsdp-recompute": Case(parallel=FSDP, recompute=True),
    },
    2: {
        "ddp-pieces-recompute": Case(accumulate=3, recompute=True),
        "fsdp-pieces": Case(parallel=FSDP, accumulate=3),
        "fsdp-muon-recompute": Case(parallel=FSDP, optimization=MUON, recompute=True),
        "fsdp-routed": Case(parallel=FSDP, tokens=0.5),
    },
    4: {"hybrid-pieces": Case(parallel=HYBRID, accumulate=2)},
}
MORE: dict[int, dict[str, Case]] = {
    1: {"fsdp": Case(parallel=FSDP)},
    2: {
        "ddp": Case(),
        "ddp-pieces": Case(accumulate=3),
        "fsdp": Case(parallel=FSDP),
        "fsdp-recompute": Case(parallel=FSDP, recompute=True),
        "fsdp-kept-pieces": Case(parallel=KEPT, accumulate=3),
        "fsdp-muon": Case(parallel=FSDP, optimization=MUON),
        "fsdp-routed-recompute": Case(parallel=FSDP, tokens=0.5, recompute=True),
    },
    3: {
        "ddp": Case(),
        "fsdp": Case(parallel=FSDP),
        "fsdp-muon": Case(parallel=FSDP, optimization=MUON),
        "fsdp-kept": Case(parallel=KEPT),
    },
    4: {
        "ddp": Case(),
        "fsdp": Case(parallel=FSDP),
        "hybrid": Case(parallel=HYBRID),
        "hybrid-kept-pieces": Case(parallel=FSDPConfig(replicas=2, reshard=False), accumulate=2),
        "hybrid-muon-recompute": Case(parallel=HYBRID, optimization=MUON, recompute=True),
        "replicas": Case(parallel=FSDPConfig(replicas=4)),
    },
}


def learn(case: Case, member: Member, line: dict[str, Any]) -> tuple[dict[str, torch.Tensor], set[str]]:
    """What the steps said, the state and the averages, as one process would have them; and what is cut."""
    stage = tiny.train(optimization=case.optimization, tokens=case.tokens, images_seen=STEPS * BATCH)
    torch.manual_seed(0)
    task = stage.task(line, CPU, 1)
    for parameter in task.module.parameters():  # a new network ignores its blocks
        torch.nn.init.normal_(parameter, std=0.1)
    spread = parallel.spread(
        task.module,
        case.parallel,
        member=member,
        device=CPU,
        precision="float32",
        recompute=case.recompute,
        compiled=False,
        shapes=1,
    )
    state = TrainingState.start(task.module, case.optimization)
    stream = TrainingStream(task.length, seed=0, batch=BATCH, rank=member.rank, world=member.world)
    seen: list[torch.Tensor] = []

    def losses(share: Any) -> torch.Tensor:
        found = task.losses(spread.module, share)
        seen.append(found.detach())
        return found

    steps = fit(
        state,
        (task.share(*place) for place in stream),
        losses,
        optimization=case.optimization,
        batch=BATCH,
        target_images=STEPS * BATCH,
        accumulate=case.accumulate,
        ddp=spread.ddp,
    )
    norms = torch.stack([progress.grad_norm for progress in steps])
    # Position n of each batch is rank n % world's: every sample's loss, in the global order.
    every = torch.zeros(STEPS, BATCH)
    for step in range(STEPS):
        mine = torch.cat(seen[step * case.accumulate : (step + 1) * case.accumulate])
        every[step, member.rank :: member.world] = mine
    if member.world > 1:
        torch.distributed.all_reduce(every)
    tensors = state.state_dict()
    cut = {name for name, tensor in tensors.items() if sharding.sharded(tensor)}
    state.ema.copy_to(spread.averaged)
    averages = {} if member.rank else {f"average.{n}": t for n, t in spread.averaged.state_dict().items()}
    assert member.rank == 0 or all(p.is_meta for p in spread.averaged.parameters())
    whole = {f"state.{name}": tensor for name, tensor in sharding.gathered(tensors).items()}
    return {"losses": every, "norms": norms, **whole, **averages}, cut


def work(rank: int, world: int, folder: Path, line: dict[str, Any], cases: dict[str, Case]) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting-{world}", rank=rank, world_size=world
    )
    member = Member(rank=rank, world=world, event=lambda event: None, threads=1)
    for name, case in cases.items():
        found, cut = learn(case, member, line)
        told = {"cut": " ".join(sorted(cut))}
        found = {name: tensor.contiguous() for name, tensor in found.items()}
        save_file(found, folder / f"{world}-{name}-{rank}.safetensors", told)
    torch.distributed.destroy_process_group()


def gangs(folder: str, cases: dict[int, dict[str, Case]]) -> None:
    """All that forks, in a fresh process: autograd may not be forked once it has been used."""
    torch.set_num_threads(1)
    import_all()
    importlib.import_module("torch.distributed.fsdp")
    line = tiny.line(Path(folder) / "line")
    context = multiprocessing.get_context("fork")
    for world, these in cases.items():
        processes = [
            context.Process(target=work, args=(rank, world, Path(folder), line, these))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * world


def run(folder: Path, cases: dict[int, dict[str, Case]]) -> Path:
    fresh.run(gangs, str(folder), cases, timeout=500)
    return folder


@pytest.fixture(scope="module")
def remains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("remains"), CASES)


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("more"), MORE)


def read(remains: Path, world: int, name: str, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_file(remains / f"{world}-{name}-{rank}.safetensors")


def compare(alone: dict[str, torch.Tensor], folder: Path, world: int, name: str) -> None:
    """Each sample's loss at its place in the global order, gradient norms, weights, averages, optimizer."""
    rank0 = read(folder, world, name)
    assert alone["losses"].unique().numel() == STEPS * BATCH  # no two could change places unseen
    assert rank0.keys() == alone.keys()
    for key, tensor in rank0.items():
        torch.testing.assert_close(tensor, alone[key], rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    for rank in range(1, world):
        mine = read(folder, world, name, rank)
        assert all(torch.equal(tensor, rank0[key]) for key, tensor in mine.items())


def twin(case: Case) -> str:
    return "muon" if case.optimization is MUON else "routed" if case.tokens < 1 else "plain"


@pytest.mark.parametrize(
    ("world", "name"), [(w, n) for w, cases in CASES.items() for n in cases if (w, n) != (1, "plain")]
)
def test_all_learn_what_one_alone_learns(remains: Path, world: int, name: str) -> None:
    compare(read(remains, 1, twin(CASES[world][name])), remains, world, name)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "name"), [(w, n) for w, cases in MORE.items() for n in cases])
def test_in_every_other_way_too(remains: Path, more: Path, world: int, name: str) -> None:
    compare(read(remains, 1, twin(MORE[world][name])), more, world, name)


def test_one_worker_that_shards_is_one_that_does_not(remains: Path) -> None:
    plain, sharded = read(remains, 1, "plain"), read(remains, 1, "fsdp-recompute")
    assert all(torch.equal(tensor, sharded[name]) for name, tensor in plain.items())


@pytest.mark.parametrize(("world", "name"), [(2, "fsdp-muon-recompute"), (4, "hybrid-pieces")])
def test_all_that_is_large_is_cut(remains: Path, world: int, name: str) -> None:
    with safe_open(remains / f"{world}-{name}-0.safetensors", "pt") as file:
        cut = set(file.metadata()["cut"].split())
        large = {key.removeprefix("state.") for key in file.keys() if key.startswith("state.")}  # noqa: SIM118
    assert large - cut == {key for key in large if key.endswith(".step")} | {"skipped", "images_seen"}


@pytest.fixture
def group() -> Iterator[Member]:
    """This process, as a gang of one that shards."""
    member = Member(rank=0, world=1, event=lambda event: None, threads=1)
    with parallel.grouped(FSDP, member, CPU):
        yield member
    assert not torch.distributed.is_initialized()


def one(module: nn.Module, member: Member, config: ParallelConfig = FSDP, **changes: Any) -> parallel.Spread:
    said: dict[str, Any] = {"precision": "float32", "recompute": False, "compiled": False, "shapes": 1}
    return parallel.spread(module, config, member=member, device=CPU, **{**said, **changes})


def network(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = DiTConfig(width=16, depth=3, heads=2, **changes)
    made = config.build(channels=2, size=8, classes=3)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made


def test_who_cannot_be_sharded_is_told_what_to_do(group: Member) -> None:
    with pytest.raises(ValueError, match="2 replicas cannot share 1 workers: set `replicas`"):
        sharding.shard(network(), replicas=2)
    with pytest.raises(ValueError, match="replicas is 3, and resources.workers 4: set `replicas` to"):
        check_parallel(FSDPConfig(replicas=3), Resources(workers=4))
    with pytest.raises(ValueError, match="discriminator cannot be sharded: set `parallel: {kind: ddp}`"):
        one(network(), group, rival=Rival(name="discriminator"))
    scaled = network()
    scaled.temperature = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match="temperature is a single number"):
        one(scaled, group)
    with pytest.raises(ValueError, match="leave `recompute` out"):
        one(nn.Linear(2, 2), group, recompute=True)


def test_an_elastic_training_of_fewer_workers_has_as_many_replicas_as_divide_them(group: Member) -> None:
    assert one(network(), group, FSDPConfig(replicas=2)).ddp is not None


def test_a_group_is_made_where_one_is_needed_and_missing() -> None:
    member = Member(rank=0, world=1, event=lambda event: None, threads=1)
    with parallel.grouped(DDPConfig(), member, CPU):
        assert not torch.distributed.is_initialized()
    with parallel.grouped(FSDP, member, CPU):
        with parallel.grouped(FSDP, member, CPU):
            pass
        assert torch.distributed.is_initialized()  # who made it ends it
    assert not torch.distributed.is_initialized()


def test_a_module_that_taps_another_is_cut_in_one(group: Member) -> None:
    """The projector of aligned features, around the network whose blocks are found inside."""
    x, t = torch.randn(2, 2, 8, 8), torch.tensor([0.2, 0.8])
    told = Conditioning(label=torch.tensor([0, 3]), classes=3)
    torch.manual_seed(0)
    whole = Aligned(network(), depth=1, features=5)  # pyright: ignore[reportArgumentType]
    cut = copy.deepcopy(whole)
    spread = one(cut, group, recompute=True)
    assert all(sharding.sharded(p) for p in cut.parameters())
    for module in (whole, spread.module):
        output, tokens = module(x, t, told)
        (output.square().mean() + tokens.square().mean()).backward()
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        assert a.grad is not None
        # Two gradients of the tapped tokens are added up, in the other order.
        torch.testing.assert_close(sharding.whole(b.grad), a.grad, rtol=1e-5, atol=1e-7)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x).tanh()


@pytest.mark.parametrize("recompute", [False, True])
def test_sharded_blocks_share_one_graph(
    group: Member, monkeypatch: pytest.MonkeyPatch, recompute: bool
) -> None:
    """Compiled before they are cut: the hooks that gather stay outside."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiling = functools.partial(compilation.compile_blocks, backend=backend)
    monkeypatch.setattr(compilation, "compile_blocks", compiling)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 6), *(Block() for _ in range(3)))
    cut = copy.deepcopy(plain)
    spread = one(cut, group, recompute=recompute, compiled=True)
    x = torch.randn(4, 6)
    for module in (plain, spread.module):
        for _ in range(2):
            module(x).square().sum().backward()
    torch._dynamo.reset()
    assert len(graphs) == 1
    for a, b in zip(plain.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(sharding.whole(b.grad), a.grad)


def test_each_worker_has_the_gpu_of_its_place_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    member = Member(rank=6, world=8, event=lambda event: None, threads=1, local_rank=2)
    assert parallel.device(member, accelerated=True) == torch.device("cuda", 2)
    assert chosen == [torch.device("cuda", 2)]
    assert parallel.device(member, accelerated=False) == CPU
