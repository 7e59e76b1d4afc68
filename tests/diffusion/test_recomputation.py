from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion.compilation import blocks, compile_blocks
from diffusion.conditioning import Conditioning
from diffusion.config import DiTConfig, UNetConfig
from diffusion.recomputation import recompute_blocks


def dit() -> nn.Module:
    return DiTConfig(width=32, depth=4, heads=2).build(channels=2, size=8, classes=3, text_width=8)


def unet() -> nn.Module:
    config = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, stem=1, attention=(1,))
    return config.build(channels=2, size=8, classes=3, text_width=8)


NETWORKS = {"dit": dit, "unet": unet}


def made(build: Callable[[], nn.Module]) -> nn.Module:
    """With weights that are not zero, or nothing would depend on the blocks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
    return network


def given(batch: int = 3) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    conditioning = Conditioning(
        text=torch.randn(batch, 4, 8, generator=generator),
        mask=torch.rand(batch, 4, generator=generator) < 0.7,
        pooled=torch.randn(batch, 8, generator=generator),
        label=torch.arange(batch) % 4,
        classes=3,
    )
    x = torch.randn(batch, 2, 8, 8, generator=generator)
    return x, torch.rand(batch, generator=generator), conditioning


def answer(
    network: nn.Module, *, dtype: torch.dtype | None = None, route: Tensor | None = None
) -> list[Tensor]:
    """The output, and every gradient of its square."""
    x, t, conditioning = given()
    network.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        y = network(x, t, replace(conditioning, route=route))
    y.float().square().mean().backward()
    return [y.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]


class Kept:
    """Bytes that a forward pass keeps for the backward one, each tensor once; weights do not count."""

    def __init__(self, network: nn.Module) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
        self.seen: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.seen[storage.data_ptr()] = storage.nbytes()
        return tensor


def kept(network: nn.Module) -> int:
    found = Kept(network)
    with torch.autograd.graph.saved_tensors_hooks(found.pack, lambda tensor: tensor):
        network(*given())
    return sum(found.seen.values())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_gradients_are_the_same_bits(name: str, dtype: torch.dtype | None):
    network = made(NETWORKS[name])
    before = answer(network, dtype=dtype)
    assert recompute_blocks(network) == len(list(blocks(network)))
    after = answer(network, dtype=dtype)
    assert len(after) == len(before) > 10
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_of_routed_tokens_too():
    network, route = made(dit), torch.stack([torch.randperm(16)[:8].sort()[0] for _ in range(3)])
    before = answer(network, route=route)
    recompute_blocks(network)
    assert all(torch.equal(a, b) for a, b in zip(answer(network, route=route), before, strict=True))


def test_blocks_run_twice_and_keep_little():
    network, calls = made(dit), []
    blocks_ = list(blocks(network))
    for block in blocks_:
        block.mlp.register_forward_hook(lambda *_: calls.append(1))  # pyright: ignore[reportAttributeAccessIssue]
    answer(network)
    assert len(calls) == len(blocks_)
    much = kept(network)
    recompute_blocks(network)
    recompute_blocks(network)  # once is enough
    calls.clear()
    answer(network)
    assert len(calls) == 2 * len(blocks_)
    assert kept(network) < much / 4
    calls.clear()
    with torch.no_grad():
        network(*given())
    assert len(calls) == len(blocks_)


class Block(nn.Module):
    def __init__(self, drop: float) -> None:
        super().__init__()
        self.inner, self.drop = nn.Linear(6, 6), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.inner(x).tanh())


def toy(drop: float) -> tuple[nn.Module, Callable[[], list[Tensor]]]:
    """Free of the checks of shapes that tests run inside `diffusion`, which break graphs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 6), *(Block(drop) for _ in range(3)))
        x = torch.randn(5, 6)

    def gradients() -> list[Tensor]:
        torch.manual_seed(3)
        network.zero_grad()
        network(x).square().sum().backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    return network, gradients


def test_chance_inside_a_block_is_the_same_twice():
    network, gradients = toy(drop=0.5)
    before = gradients()
    recompute_blocks(network)
    assert all(torch.equal(a, b) for a, b in zip(gradients(), before, strict=True))


def test_names_and_type_stay_and_a_copy_is_of_its_own():
    network = made(dit)
    names, kind = list(network.state_dict()), {type(m) for m in network.modules()}
    recompute_blocks(network)
    assert list(network.state_dict()) == names
    assert {type(m) for m in network.modules()} == kind
    other = copy.deepcopy(network)
    before = answer(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not answer(other)[0].any()  # its own weights, not those that it was copied from
    assert all(torch.equal(a, b) for a, b in zip(answer(network), before, strict=True))


def test_compiled_it_is_one_graph_that_knows_of_it():
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    network, gradients = toy(drop=0.0)
    before = gradients()
    recompute_blocks(network)
    compile_blocks(network, backend=backend)
    torch.testing.assert_close(gradients(), before)
    torch._dynamo.reset()
    assert len(graphs) == 1
    assert any("checkpoint" in str(node.target) for node in graphs[0].graph.nodes)


def test_nothing_to_forget_is_an_error():
    with pytest.raises(ValueError, match="leave `recompute` out"):
        recompute_blocks(nn.Linear(2, 2))
