from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from diffusion.config import DiTConfig, KLAutoencoderConfig, OptimizationConfig, UNetConfig
from diffusion.optimizers import Muon, hidden_matrices, orthogonalised
from diffusion.training import Progress, TrainingState, fit

OPTIMIZATION = OptimizationConfig(
    lr=3e-3, matrices="muon", matrix_lr=1e-2, weight_decay=0.1, warmup=0, cooldown=40, ema_others=(0.05,)
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.modulation = nn.Linear(4, 8)
        self.back = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.modulation(x.mean((2, 3)))[:, :, None, None]
        return x + self.back((self.conv(x) * (1 + scale)).tanh())


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 1)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.last = nn.Conv2d(4, 2, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def start() -> TrainingState:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TrainingState.start(Network(), OPTIMIZATION)


def train(state: TrainingState, target: int, *, factor: float = 1.0) -> Iterator[Progress]:
    def loss(n: int) -> Tensor:
        x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(n))
        return (state.module(x) - x.flip(1).sin()).square().mean((1, 2, 3)) * factor

    seen = range(state.images_seen, target, 4)
    return fit(state, seen, loss, optimization=OPTIMIZATION, batch=4, target_images=target)


def saved(state: TrainingState) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.state_dict().items()}


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 32, 8), (2, 8, 32), (1, 1, 5)])
def test_singular_values_are_brought_near_one(shape: tuple[int, int, int]):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    found = torch.linalg.svdvals(orthogonalised(matrices))
    assert found.min() > 0.3  # the smallest of a square Gaussian matrix may be too small for five steps
    assert found.max() < 1.25
    # The directions are those of the matrix: only its singular values have changed.
    aligned = u.mT @ orthogonalised(matrices) @ v.mT
    torch.testing.assert_close(aligned, torch.diag_embed(aligned.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-4)
    assert orthogonalised(torch.zeros(shape)).count_nonzero() == 0


def test_square_updates_are_those_of_torch():
    """Its `match_rms_adamw` is the same scale. In bf16, so that it agrees to two digits."""
    generator = torch.Generator().manual_seed(1)
    first = [torch.randn(24, 24, generator=generator) for _ in range(3)]
    ours, theirs = ([nn.Parameter(w.clone()) for w in first] for _ in range(2))
    mine = Muon(ours, lr=0.1, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(24, 24, generator=generator)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b, w in zip(ours, theirs, first, strict=True):
        assert (a - b).norm() < 0.02 * (b - w).norm()


@pytest.mark.parametrize("shape", [(24, 24), (72, 24), (24, 64), (64, 24), (16, 4, 3, 3)])
def test_an_update_is_as_large_as_one_of_adamw(shape: tuple[int, ...]):
    weight = nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=1.0).step()
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_rows_that_are_several_squares_are_independent():
    """Query, key and value in one matrix move as three matrices do."""
    parts = (
        torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    )
    joint, separate = nn.Parameter(torch.zeros(24, 8)), [nn.Parameter(torch.zeros(8, 8)) for _ in range(3)]
    joint.grad = parts.reshape(24, 8)
    for weight, part in zip(separate, parts, strict=True):
        weight.grad = part
    Muon([joint], lr=0.1).step()
    Muon(separate, lr=0.1).step()
    torch.testing.assert_close(joint.reshape(3, 8, 8), torch.stack(separate))


def test_every_trained_parameter_has_one_optimizer():
    network = DiTConfig(width=16, depth=2, heads=2).build(channels=2, size=4, classes=3, text_width=5)
    network.blocks[0].requires_grad_(False)
    optimizers = replace(OPTIMIZATION, decayed="matrices").build(network)
    given = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert len(given) == len({id(p) for p in given})
    assert {id(p) for p in given} == {id(p) for p in network.parameters() if p.requires_grad}
    named = {id(p): name for name, p in network.named_parameters()}
    (decayed, spared), (muon,) = (optimizer.param_groups for optimizer in optimizers)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in spared["params"]} == {1}
    assert (decayed["weight_decay"], spared["weight_decay"], muon["weight_decay"]) == (0.1, 0.0, 0.1)
    moved = {named[id(p)] for p in muon["params"]}
    assert {name.partition(".")[2] for name in moved if name.startswith("blocks.1.")} >= {
        "1.attention.qkv.weight",
        "1.attention.out.weight",
        "1.mlp.inner.weight",
        "1.mlp.outer.weight",
    }
    assert all(name.startswith("blocks.1.") and "modulation" not in name for name in moved)


def test_convolutions_inside_a_unet_are_matrices_too():
    network = UNetConfig().build(channels=2, size=4)
    names = {id(p): name for name, p in network.named_parameters()}
    found = {names[id(p)] for p in hidden_matrices(network)}
    assert all(p.ndim == 4 for p in hidden_matrices(network))
    assert not any(word in name for name in found for word in ("first", "last", "time", "modulation"))
    assert any("conv1" in name for name in found)


def test_those_of_a_kl_autoencoder_are_its_residual_blocks():
    network = KLAutoencoderConfig(channels=8).build()
    names = {id(p): name for name, p in network.named_parameters()}
    found = {names[id(p)] for p in hidden_matrices(network)}
    assert found == {name for name in names.values() if name.endswith(("conv1.weight", "conv2.weight"))}
    assert len(found) == 12


def test_a_network_without_blocks_has_nothing_for_muon():
    with pytest.raises(ValueError, match="no repeated blocks"):
        OPTIMIZATION.build(nn.Linear(2, 2))


def test_rates_follow_one_schedule():
    state = start()
    for progress in train(state, 48):
        adamw, muon = (optimizer.param_groups[0]["lr"] for optimizer in state.optimizers)
        assert progress.lr == adamw
        assert muon == pytest.approx(adamw * 1e-2 / 3e-3)
    assert adamw == pytest.approx(3e-3 * 4 / 40)  # pyright: ignore[reportPossiblyUnboundVariable]
    assert replace(OPTIMIZATION, matrix_lr=None).rates(0.5) == (1.5e-3, 1.5e-3)


def test_it_learns():
    losses = [progress.loss for progress in train(start(), 400)]
    assert torch.stack(losses[-10:]).mean() < 0.2 * torch.stack(losses[:10]).mean()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_step_without_a_finite_gradient_changes_no_bit(poison: float):
    state = start()
    for _ in train(state, 12):
        pass
    before = saved(state)
    assert [int(progress.skipped) for progress in train(state, 20, factor=poison)] == [1, 2]
    after = saved(state)
    still = [name for name in before if name.startswith(("module.", "optimizer."))]
    assert len([name for name in still if name.endswith(".momentum")]) == 4
    for name in still:
        assert after[name].view(torch.int32).equal(before[name].view(torch.int32)), name
    assert all(progress.loss.isfinite() for progress in train(state, 32))


def test_a_resumed_training_is_an_unbroken_one_to_the_bit():
    unbroken, first = start(), start()
    for _ in train(unbroken, 60):
        pass
    for progress in train(first, 60):
        if progress.images_seen == 24:
            break
    second = TrainingState.start(Network(), OPTIMIZATION)
    second.load_state_dict(saved(first))
    for _ in train(second, 60):
        pass
    a, b = saved(second), saved(unbroken)
    assert a.keys() == b.keys()
    assert [name for name in a if not a[name].equal(b[name])] == []


def test_no_step_reads_a_number_back_from_the_device(monkeypatch: pytest.MonkeyPatch):
    def waits(*_: object) -> None:
        raise AssertionError("this waits for the device")

    state = start()
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, waits)
    assert sum(1 for _ in train(state, 16)) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_no_step_waits_for_a_gpu():
    module = Network().cuda()
    state = TrainingState.start(module, OPTIMIZATION)
    x = torch.randn(4, 2, 5, 5, device="cuda")
    steps = fit(
        state,
        [x] * 20,
        lambda share: (module(share) - share).square().mean((1, 2, 3)),
        optimization=OPTIMIZATION,
        batch=4,
        target_images=80,
        accumulate=2,
        autocast=torch.bfloat16,
    )
    next(steps)  # the optimizers make their state
    torch.cuda.set_sync_debug_mode("error")
    try:
        norms = [progress.grad_norm for progress in steps]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(norms).isfinite().all()
