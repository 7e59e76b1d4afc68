from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from diffusion.compilation import compile_blocks
from diffusion.config import OptimizationConfig
from diffusion.ema import EMA
from diffusion.training import TrainingState, fit


@pytest.fixture(autouse=True)
def no_graphs_of_others():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """Dynamo's own backend "eager", counted."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(inputs, 12), nn.Linear(12, outputs)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.outer(F.silu(self.inner(x) * condition[:, None]))


class Network(nn.Module):
    """One list of equal blocks, as in a transformer, or lists of lists of many shapes, as in a UNet."""

    def __init__(self, *widths: int, blocks: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pairs = zip(widths, [*widths[1:], widths[-1]], strict=True)
            # Behind it every block's input has a gradient, or the first would need a graph of its own.
            self.first = nn.Linear(widths[0], widths[0])
            self.levels = nn.ModuleList(
                nn.ModuleList(Block(a if n == 0 else b, b) for n in range(blocks)) for a, b in pairs
            )

    @property
    def blocks(self) -> list[Block]:
        return [block for block in self.modules() if isinstance(block, Block)]

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x, condition)
        return x


def equal() -> Network:
    return Network(8, blocks=6)


def unequal() -> Network:
    return Network(4, 5, 6, 7, blocks=2)


def answer(network: Network) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of its square."""
    x = torch.randn(3, network.first.in_features, generator=torch.Generator().manual_seed(1))
    y = network(x, torch.tensor([0.1, 0.5, 0.9]))
    network.zero_grad()
    y.square().mean().backward()
    return y, [p.grad for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("make", [equal, unequal])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_numbers_and_names_stay(make: Callable[[], Network], backend: str):
    network = make()
    before = answer(network)
    compile_blocks(network, backend=backend)
    torch.testing.assert_close(answer(network), before)
    assert [name for name, _ in network.named_parameters()] == [name for name, _ in make().named_parameters()]
    assert list(network.state_dict()) == list(make().state_dict())
    network.load_state_dict(make().state_dict())


def test_equal_blocks_share_one_graph():
    graphs, network = Graphs(), equal()
    assert compile_blocks(network, backend=graphs) == 6
    answer(network)
    answer(network)
    assert graphs.count == 1


def test_no_shape_is_given_up():
    """Dynamo stops at eight graphs of one code unless told otherwise, and then runs it as it was written."""
    graphs, network = Graphs(), unequal()
    assert compile_blocks(network, backend=graphs) == 8
    for _ in range(2):
        answer(network)
        with torch.no_grad():
            network(torch.zeros(3, 4), torch.zeros(3))
    assert len({block.inner.weight.shape + block.outer.weight.shape for block in network.blocks}) == 6
    assert graphs.count == 2 * 6  # with gradients and without


@pytest.mark.slow
def test_a_transformer_compiles_to_one_graph_for_each_size():
    """In a process of its own: the checks of shapes that run in tests would break graphs."""
    code = """
import torch
from diffusion.compilation import compile_blocks
from diffusion.conditioning import Conditioning
from diffusion.config import DiTConfig

graphs = []
def count(graph, inputs):
    graphs.append(graph)
    return graph.forward

sized = DiTConfig(width=32, depth=1, heads=2).build(channels=2, size=4)
compile_blocks(sized, backend=count, shapes=10)
for width in range(2, 22, 2):
    sized(torch.randn(2, 2, 4, width), torch.ones(2), Conditioning())
assert len(graphs) == 10
graphs.clear()

network = DiTConfig(width=16, depth=5, heads=2).build(channels=2, size=4, classes=3)
for parameter in network.parameters():
    torch.nn.init.normal_(parameter, std=0.1)
x, t = torch.randn(2, 2, 4, 4), torch.ones(2)
expected = network(x, t, Conditioning())
assert compile_blocks(network, backend=count) == 5
torch.testing.assert_close(network(x, t, Conditioning()), expected)
assert len(graphs) == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match="no repeated blocks"):
        compile_blocks(nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)])))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList(Inner() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.inner:
            x = block(x)
        return x


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


def test_of_nested_blocks_the_outermost_is_compiled():
    graphs, network = Graphs(), nn.Module()
    network.stages = nn.ModuleList([nn.ModuleList([Outer(), Outer()])])
    assert compile_blocks(network, backend=graphs) == 2
    for block in network.stages[0]:  # pyright: ignore
        block(torch.zeros(2))
    assert graphs.count == 1


def test_a_copy_for_the_average_is_a_plain_one():
    graphs, network = Graphs(), equal()
    ema = EMA(network)
    compile_blocks(network, backend=graphs)
    ema.update(network, images_seen=4, batch=4)
    averaged = copy.deepcopy(network)
    ema.copy_to(averaged)
    answer(averaged)
    assert graphs.count == 0
    assert [n for n, _ in averaged.named_parameters()] == [n for n, _ in network.named_parameters()]


def test_it_trains_the_same_under_ddp(tmp_path: Path):
    """One rank: what DDP changes for dynamo it changes for one as well."""

    def train(compiled: bool, wrapped: bool) -> dict[str, Tensor]:
        network, graphs = equal(), Graphs()
        if compiled:
            compile_blocks(network, backend=graphs)
        ddp = DistributedDataParallel(network) if wrapped else None
        called = ddp if ddp is not None else network
        optimization = OptimizationConfig(lr=1e-2, warmup=0)
        state = TrainingState.start(network, optimization)
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))

        def loss(batch: Tensor) -> Tensor:
            return (called(batch, torch.ones(len(batch))) - batch).square().mean(1)

        steps = fit(
            state, [x] * 3, loss, optimization=optimization, batch=4, target_images=12, accumulate=2, ddp=ddp
        )
        assert len(list(steps)) == 3
        assert graphs.count == int(compiled)
        return state.state_dict()

    plain = train(compiled=False, wrapped=False)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.testing.assert_close(train(compiled=True, wrapped=True), plain)
    finally:
        torch.distributed.destroy_process_group()
