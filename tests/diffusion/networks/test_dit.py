from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from jaxtyping import config

from diffusion.conditioning import Conditioning
from diffusion.config import DiTConfig, UNetConfig
from diffusion.networks.dit import DiT
from diffusion.networks.positions import rotary_table
from diffusion.networks.routing import kept_tokens

CLASSES, TEXT = 5, 12
GOLDEN = [
    [-0.41414785, 0.34947020, 0.04004252],
    [-0.04260235, 0.41010165, -0.20560536],
    [0.18367743, 0.30350777, -0.05409446],
]


def build(**changes: object) -> DiT:
    config = DiTConfig(**{"width": 32, "depth": 2, "heads": 2, "patch": 2, **changes})  # type: ignore[arg-type]
    return config.build(channels=4, size=8, classes=CLASSES, text_width=TEXT)


def awake(network: DiT) -> DiT:
    """Moves every parameter off its start, where zeros hide what the parts do."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def conditioning(count: int = 3, tokens: int = 4) -> Conditioning:
    mask = torch.ones(count, tokens, dtype=torch.bool)
    mask[0, 2:] = False
    return Conditioning(
        text=torch.randn(count, tokens, TEXT),
        mask=mask,
        pooled=torch.randn(count, TEXT),
        label=torch.arange(count) % CLASSES,
        classes=CLASSES,
    )


def test_a_new_network_is_zero_everywhere() -> None:
    x = torch.randn(3, 4, 8, 8)
    assert build()(x, torch.rand(3), conditioning()).abs().max() == 0


def test_padded_tokens_change_nothing() -> None:
    torch.manual_seed(0)
    network, x, t, given = awake(build()), torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    want = network(x, t, given)

    assert given.text is not None
    assert given.mask is not None
    text = torch.cat([given.text, 100 * torch.randn(3, 5, TEXT)], dim=1)
    text[0, 2:] = 1e3
    mask = torch.cat([given.mask, torch.zeros(3, 5, dtype=torch.bool)], dim=1)
    other = replace(given, text=text, mask=mask)
    torch.testing.assert_close(network(x, t, other), want, atol=1e-6, rtol=0)


def test_every_condition_is_seen() -> None:
    torch.manual_seed(0)
    network, x, t, given = awake(build()), torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    want = network(x, t, given)
    assert given.text is not None
    assert given.pooled is not None
    assert given.label is not None
    changes = {
        "text": torch.randn_like(given.text),
        "pooled": given.pooled + 1,
        "label": (given.label + 1) % CLASSES,
    }
    for name, value in changes.items():
        assert (network(x, t, replace(given, **{name: value})) - want).abs().max() > 1e-4, name
    assert (network(x, t + 0.1, given) - want).abs().max() > 1e-4


def test_dropped_conditions_do_not_depend_on_what_was_dropped() -> None:
    torch.manual_seed(0)
    network, x, t = awake(build()), torch.randn(3, 4, 8, 8), torch.rand(3)
    torch.testing.assert_close(network(x, t, conditioning().null()), network(x, t, conditioning().null()))


def test_samples_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    network, x, t, given = awake(build()), torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    torch.testing.assert_close(
        network(x, t, given)[1:2], network(x[1:2], t[1:2], given[1:2]), atol=1e-5, rtol=1e-5
    )


def test_without_any_condition() -> None:
    network = awake(DiTConfig(width=32, depth=1, heads=2).build(channels=4, size=8))
    nothing = Conditioning(text=None, mask=None, pooled=None, label=None, classes=0)
    assert network(torch.randn(2, 4, 8, 8), torch.rand(2), nothing).shape == (2, 4, 8, 8)
    assert not any("cross" in name or "label" in name for name, _ in network.named_parameters())


def test_patches_and_image_are_inverse() -> None:
    network, x = build(), torch.randn(2, 4, 8, 8)
    tokens = network.patches(x)
    assert tokens.shape == (2, 16, 16)
    torch.testing.assert_close(tokens[0, 5].reshape(4, 2, 2), x[0, :, 2:4, 2:4])
    torch.testing.assert_close(network.image(tokens, 4, 4), x)
    wide = torch.randn(2, 4, 4, 10)
    torch.testing.assert_close(network.image(network.patches(wide), 2, 5), wide)


def test_parameter_count() -> None:
    width, depth, hidden, channels, patch = 64, 3, 160, 4, 2
    network = DiTConfig(width=width, depth=depth, heads=4, mlp_ratio=2.5).build(
        channels=channels, size=8, classes=CLASSES, text_width=TEXT
    )
    head = width // 4
    attention = 4 * width**2 + 2 * head
    block = 2 * attention + width + 3 * width * hidden + 6 * width * (width + 1)
    patches = patch**2 * channels
    ends = (patches + 1) * width + (width + 1) * patches + 2 * width * (width + 1)
    time = (256 + 1) * width + (width + 1) * width
    text = TEXT * width + (TEXT + 1) * width + TEXT + width
    assert (
        sum(p.numel() for p in network.parameters())
        == depth * block + ends + time + (CLASSES + 1) * width + text
    )


def test_cross_every_second_block() -> None:
    network = build(depth=4, cross_every=2)
    assert [block.cross is not None for block in network.blocks] == [True, False, True, False]


def test_a_patch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="choose a patch that divides 8"):
        build(patch=3)


def test_golden() -> None:
    """What a snapshot of old draws: outputs of the network as it was when its tables were buffers."""
    torch.manual_seed(0)
    network = awake(build())
    x, t, given = torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    answer = network(x, t, given).double()
    want = torch.tensor(GOLDEN, dtype=torch.float64)
    torch.testing.assert_close(answer[:, 1, 3, ::3], want, atol=1e-5, rtol=1e-5)


def test_state_has_no_table() -> None:
    assert not any("position" in name or "sine" in name for name in build().state_dict())


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (6, 14), (2, 2)])
def test_any_multiple_of_the_patch_goes(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network, x, t, given = awake(build()), torch.randn(3, 4, *size), torch.rand(3), conditioning()
    answer = network(x, t, given)
    assert answer.shape == x.shape
    assert answer.isfinite().all()
    # It knows where a token is, at every size: not all of the same content are answered alike.
    alike = network(torch.ones_like(x), t, given)[0, 0]
    assert size == (2, 2) or (alike[0, 0] - alike[-2, -2]).abs() > 1e-4


def test_a_size_between_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="7 x 8 are not made of patches of 2"):
        build()(torch.randn(1, 4, 7, 8), torch.rand(1), Conditioning())


def test_a_new_network_ignores_the_size_and_then_learns_it() -> None:
    torch.manual_seed(0)
    told = replace(conditioning(), size=torch.tensor([[600.0, 400, 0, 10, 256, 256]]).repeat(3, 1))
    plain, network = build(), build(size_conditioning=True)
    network.load_state_dict(awake(plain).state_dict(), strict=False)
    x, t = torch.randn(3, 4, 8, 8), torch.rand(3)
    want = plain(x, t, told)
    assert torch.equal(network(x, t, told), want)

    awake(network)
    answer, absent = network(x, t, told), network(x, t, replace(told, size=None))
    assert told.size is not None
    for number in range(6):
        other = told.size.clone()
        other[:, number] += 50
        assert (network(x, t, replace(told, size=other)) - answer).abs().max() > 1e-5, number
    assert torch.equal(network(x, t, replace(told, size=torch.zeros(3, 6))), absent)


@pytest.mark.parametrize("order", ["sorted", "permuted"])
def test_a_route_of_all_tokens_is_none_in_any_order(order: str) -> None:
    """So blocks see tokens as a set: permuted together with their positions, they permute the outputs."""
    torch.manual_seed(0)
    network = awake(build(depth=4, route=(1, 3)))
    x, t, given = torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    ids = kept_tokens(0, np.arange(3), 16, 1.0)
    if order == "permuted":
        ids = torch.stack([torch.randperm(16) for _ in range(3)])
    want = network(x, t, given)
    torch.testing.assert_close(network(x, t, replace(given, route=ids)), want, atol=1e-6, rtol=0)


def test_routed_blocks_see_the_route_alone() -> None:
    torch.manual_seed(0)
    network = awake(build(depth=3, route=(1, 2)))
    x, t = torch.randn(3, 4, 8, 8), torch.rand(3)
    given = replace(conditioning(), route=kept_tokens(0, np.arange(3), 16, 0.5))
    seen: list[torch.Size] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    _, before = network(x, t, given, tap=0)
    _, inside = network(x, t, given, tap=1)
    assert [shape[1] for shape in seen[:3]] == [16, 8, 16]
    assert given.route is not None

    # By hand: those of the route through the block with their own positions, the others as they were.
    condition = torch.nn.functional.silu(network.condition(t, given))
    context, mask = network.context(3, given)
    want = before.clone()
    for row, ids in enumerate(given.route):
        tables = rotary_table(4, 4, 16, x.device, x.dtype)[:, ids]
        one = network.blocks[1](before[row, ids][None], condition[[row]], context[[row]], mask[[row]], tables)
        torch.testing.assert_close(inside[row], one[0])
        want[row, ids] = one[0]
    tables = rotary_table(4, 4, 16, x.device, x.dtype)
    _, after = network(x, t, given, tap=2)
    torch.testing.assert_close(after, network.blocks[2](want, condition, context, mask, tables))


def test_every_parameter_is_trained_through_a_route() -> None:
    torch.manual_seed(0)
    network = awake(build(depth=3, route=(1, 2), size_conditioning=True))
    route = kept_tokens(0, np.arange(3), 16, 0.25)
    given = replace(conditioning(), route=route, size=100 * torch.rand(3, 6))
    network(torch.randn(3, 4, 8, 8), torch.rand(3), given).square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert silent == []


@pytest.mark.parametrize("route", [(0, 3), (1, 1), (-1, 2)])
def test_a_route_past_the_blocks_is_refused(route: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="of 2 blocks"):
        build(route=route)


def test_a_tap_gives_the_tokens_after_its_block() -> None:
    torch.manual_seed(0)
    network, x, t, given = awake(build()), torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    seen: list[torch.Tensor] = []
    for block in network.blocks:
        block.register_forward_hook(lambda *call: seen.append(call[2]))
    want = network(x, t, given)
    for index in range(2):
        answer, tokens = network(x, t, given, tap=index)
        assert torch.equal(answer, want)
        assert torch.equal(tokens, seen[index])
    with pytest.raises(ValueError, match="no block 2 of 2"):
        network(x, t, given, tap=2)


def test_in_half_precision() -> None:
    """Weights cast, or autocast: the tables go along, and the answer stays near."""
    torch.manual_seed(0)
    network, x, t = awake(build(norm="rms")), torch.randn(3, 4, 8, 8), torch.rand(3)
    want = network(x, t, Conditioning())
    with torch.autocast("cpu", torch.bfloat16):
        cast = network(x, t, Conditioning())
    half = network.bfloat16()(x.bfloat16(), t.bfloat16(), Conditioning())
    assert half.dtype == torch.bfloat16
    for answer in (cast, half):
        assert (answer.float() - want).norm() < 0.05 * want.norm()


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the shape checks of these tests, through which a compiler cannot look."""
    torch._dynamo.reset()
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
    torch._dynamo.reset()


@pytest.mark.usefixtures("unchecked")
def test_it_compiles_whole_at_every_size() -> None:
    torch.manual_seed(0)
    network = awake(build(depth=1, norm="rms"))
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    routed = replace(conditioning(), route=kept_tokens(0, np.arange(3), 16, 0.5))
    for size, given in (((8, 8), routed), ((4, 12), Conditioning())):
        x, t = torch.randn(3, 4, *size), torch.rand(3)
        torch.testing.assert_close(compiled(x, t, given), network(x, t, given))


@pytest.mark.usefixtures("unchecked")
def test_a_block_compiles() -> None:
    torch.manual_seed(0)
    block = awake(build(depth=1)).blocks[0]
    given = torch.randn(2, 5, 32), torch.randn(2, 32), None, None, torch.randn(2, 5, 8)
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*given), block(*given))


@pytest.mark.parametrize(
    "config", [DiTConfig(width=32, depth=2, heads=2), UNetConfig(channels=8, attention=(1,))]
)
def test_a_pooled_vector_of_another_width_changes_that_layer_alone(config: DiTConfig | UNetConfig):
    torch.manual_seed(0)
    same = config.build(channels=4, size=8, text_width=6)
    torch.manual_seed(0)
    said = config.build(channels=4, size=8, text_width=6, pooled_width=6)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), said.parameters(), strict=True))
    other = config.build(channels=4, size=8, text_width=6, pooled_width=10)
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    differs = [name for name, tensor in same.state_dict().items() if tensor.shape != shapes[name]]
    assert differs == ["pooled.weight"]
