from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffusion import randomness
from diffusion.conditioning import Conditioning
from diffusion.config import OptimizationConfig
from diffusion.denoiser import Denoiser
from diffusion.losses import flow_matching
from diffusion.times import LogitNormal
from diffusion.training import Progress, Rival, TrainingState, fit
from tests import fresh

BATCH = 5
OPTIMIZATION = OptimizationConfig(lr=1e-2, weight_decay=0.01, warmup=20, cooldown=30)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 2, 3, padding=1))
        self.time = nn.Linear(1, 2)

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: Conditioning) -> Tensor:
        return self.layers(x + self.time(c_noise[:, None])[:, :, None, None])


def positions(images_seen: int, *, rank: int = 0, world: int = 1) -> Iterator[np.ndarray]:
    """Stream positions of this rank's share of each global batch."""
    for start in itertools.count(images_seen, BATCH):
        yield np.arange(start, start + BATCH)[rank::world]


class Loss:
    """Flow matching on flat latents that are themselves a function of the position."""

    def __init__(self, network: nn.Module) -> None:
        self.denoiser = Denoiser(network)

    def __call__(self, at: np.ndarray) -> Tensor:
        latents = randomness.normal(0, at % 64, (2, 1, 1), stream="latents").expand(-1, 2, 4, 4)
        noise = randomness.normal(0, at, (2, 4, 4))
        t = LogitNormal()(randomness.stratified(0, at, BATCH))
        return flow_matching(self.denoiser, latents, noise, t, Conditioning())


def start() -> TrainingState:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TrainingState.start(Network(), OPTIMIZATION)


def train(state: TrainingState, target_images: int, **changes: object) -> Iterator[Progress]:
    return fit(
        state,
        positions(state.images_seen),
        Loss(state.module),
        optimization=replace(OPTIMIZATION, **changes),  # pyright: ignore[reportArgumentType]
        batch=BATCH,
        target_images=target_images,
    )


def saved(state: TrainingState) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not a[name].equal(b[name])] == []


def test_it_learns():
    state = start()
    losses = [progress.loss.item() for progress in train(state, 600)]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    assert state.images_seen == 600


@pytest.mark.parametrize("stop", [BATCH, 50, 95])
def test_a_resumed_training_is_an_unbroken_one_to_the_bit(stop: int):
    unbroken = start()
    for _ in train(unbroken, 120):
        pass

    first = start()
    for progress in train(first, 120):
        if progress.images_seen == stop:
            break
    second = TrainingState.start(Network(), OPTIMIZATION)  # other weights, until it is loaded
    second.load_state_dict(saved(first))
    for _ in train(second, 120):
        pass
    assert_same(saved(second), saved(unbroken))


def test_a_longer_training_goes_on_from_a_shorter_ones_checkpoint_before_its_cooldown():
    longer = start()
    for _ in train(longer, 160):
        pass

    shorter, checkpoint = start(), None
    for progress in train(shorter, 100):
        if OPTIMIZATION.before_cooldown(progress.images_seen, batch=BATCH, target_images=100):
            checkpoint = saved(shorter)
    assert checkpoint is not None
    assert (
        checkpoint["images_seen"] == 75
    )  # the step from 70 to 75 begins 30 images before the end: still at full rate
    continued = TrainingState.start(Network(), OPTIMIZATION)
    continued.load_state_dict(checkpoint)
    for _ in train(continued, 160):
        pass
    assert_same(saved(continued), saved(longer))
    # Not so from its end, which has cooled down.
    assert not saved(shorter)["module.time.weight"].equal(saved(longer)["module.time.weight"])


class Contest(nn.Module):
    """A weight that wants to be 1, and a rival with a gradient a hundred times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.zeros(3))
        self.rival = nn.Linear(3, 1, bias=False)
        nn.init.zeros_(self.rival.weight)

    def losses(self, at: np.ndarray) -> Tensor:
        return (((self.own - 1) ** 2).sum() + 100 * ((self.rival.weight - 1) ** 2).sum()).expand(len(at))


@pytest.mark.parametrize("start", [0, 20])
def test_a_rival_begins_late_at_its_own_rate_under_its_own_limit(start: int):
    optimization = replace(OPTIMIZATION, weight_decay=0.5, clip=0.1, warmup=0, cooldown=0)
    rival = Rival(name="rival", start=start, rate=0.25)
    module, alone = Contest(), Contest()
    alone.rival.requires_grad_(False)
    state = TrainingState.start(module, optimization, rival=rival)
    reference = TrainingState.start(alone, optimization)
    given = {"optimization": optimization, "batch": BATCH, "target_images": 40}
    reference_steps = fit(reference, positions(0), alone.losses, **given)
    for progress, other in zip(
        fit(state, positions(0), module.losses, **given), reference_steps, strict=True
    ):
        # neither the norm nor the step of the rest is touched by how large the rival's gradient is
        assert progress.grad_norm.item() == pytest.approx(other.grad_norm.item())
        torch.testing.assert_close(module.own, alone.own)
        if progress.images_seen <= start:
            assert progress.rival_grad_norm is None
            assert module.rival.weight.eq(0).all()
            assert not state.optimizers[0].state.get(module.rival.weight)
        elif progress.images_seen == start + BATCH:
            # AdamW's first step is as long as the learning rate
            assert progress.rival_grad_norm is not None
            assert progress.rival_grad_norm > 100  # before clipping, and none of the other's
            assert module.rival.weight.tolist()[0] == pytest.approx([0.25 * progress.lr] * 3, rel=1e-4)
    assert state.ema.state_dict().keys() == {"own"}
    into = Contest()
    into.rival.weight.data.fill_(7.0)
    state.ema.copy_to(into)
    assert into.rival.weight.eq(7).all()
    assert into.own.detach().equal(state.ema.averages[OPTIMIZATION.ema]["own"])


def test_a_rivals_gradient_that_is_not_finite_costs_the_step():
    module = Contest()
    state = TrainingState.start(module, OPTIMIZATION, rival=Rival(name="rival"))
    module.rival.weight.data.fill_(float("nan"))
    (progress,) = fit(
        state, positions(0), module.losses, optimization=OPTIMIZATION, batch=BATCH, target_images=BATCH
    )
    assert progress.skipped.item() == 1
    assert progress.grad_norm.isfinite()
    assert module.own.eq(0).all()


def test_loading_copies():
    a, b = start(), start()
    for _ in train(a, 10):
        pass
    b.load_state_dict(a.state_dict())
    before = saved(b)
    for _ in train(a, 30):
        pass
    assert_same(saved(b), before)


def test_what_is_not_trained_may_be_left_out_and_stays_as_it_is():
    """Adapters on a network that is there again before they are loaded."""

    def adapting() -> TrainingState:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = Network()
        network.layers.requires_grad_(False)
        return TrainingState.start(network, replace(OPTIMIZATION, ema_others=(0.2,)))

    unbroken, resumed = adapting(), adapting()
    for _ in train(unbroken, 10):
        pass
    kept = {name: t.clone() for name, t in unbroken.state_dict(frozen=False).items()}
    assert not [name for name in kept if "layers" in name]
    assert {"module.time.weight", "ema.time.weight", "ema.0.2/time.weight"} < kept.keys()

    resumed.load_state_dict(kept)
    for state in (unbroken, resumed):
        for _ in train(state, 30):
            pass
    assert_same(saved(resumed), saved(unbroken))
    with pytest.raises((ValueError, RuntimeError), match=r"time\.weight"):
        resumed.load_state_dict({name: t for name, t in kept.items() if name != "module.time.weight"})


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_step_without_a_finite_gradient_changes_nothing_but_the_count(poison: float):
    state = start()
    for _ in train(state, 25):
        pass
    before = saved(state)

    def poisoned(at: np.ndarray) -> Tensor:
        return Loss(state.module)(at) * poison

    steps = fit(state, positions(25), poisoned, optimization=OPTIMIZATION, batch=BATCH, target_images=35)
    skipped = [progress.skipped for progress in steps]
    assert [int(count) for count in skipped] == [1, 2]
    after = saved(state)
    assert after.pop("images_seen") == 35
    assert after.pop("skipped") == 2
    # The average still moves, towards weights that stand.
    assert_same(
        {name: t for name, t in after.items() if not name.startswith("ema.")},
        {name: t for name, t in before.items() if name in after and not name.startswith("ema.")},
    )
    assert all(tensor.isfinite().all() for tensor in after.values())
    for progress in train(state, 45):
        assert progress.loss.isfinite()


@pytest.mark.parametrize("spike", [None, 100.0])
def test_no_step_reads_a_number_back_from_the_device(spike: float | None, monkeypatch: pytest.MonkeyPatch):
    def waits(*_: object) -> None:
        raise AssertionError("this waits for the device")

    state = TrainingState.start(Network(), OPTIMIZATION, spike=spike)
    batches = list(itertools.islice(positions(0), 4))
    before = saved(state)
    x = torch.randn(BATCH, 2, 4, 4)

    def loss(_: np.ndarray) -> Tensor:
        return state.module(x, torch.ones(BATCH), Conditioning()).mean((1, 2, 3))

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy"):
            patch.setattr(Tensor, name, waits)
        steps = fit(state, batches, loss, optimization=OPTIMIZATION, batch=BATCH, target_images=4 * BATCH)
        assert sum(1 for _ in steps) == 4
    assert not saved(state)["module.time.bias"].equal(before["module.time.bias"])


def test_autocast_is_the_losses_arithmetic_and_nothing_elses():
    def loss(at: np.ndarray) -> Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return Loss(state.module)(at)

    state, seen = start(), []
    shares = {"batches": positions(0), "batch": BATCH, "target_images": 2 * BATCH}
    for progress in fit(state, loss=loss, optimization=OPTIMIZATION, autocast=torch.bfloat16, **shares):
        assert progress.grad_norm.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
    assert seen == [(True, torch.bfloat16)] * 2
    tensors = {n: t for n, t in saved(state).items() if t.is_floating_point()}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    plain = start()
    for _ in fit(
        plain, loss=Loss(plain.module), optimization=OPTIMIZATION, **{**shares, "batches": positions(0)}
    ):
        pass
    torch.testing.assert_close(
        saved(state)["module.time.bias"], saved(plain)["module.time.bias"], rtol=0, atol=1e-2
    )
    assert not saved(state)["module.layers.0.weight"].equal(saved(plain)["module.layers.0.weight"])


def test_gradients_are_clipped_and_reported_before_that():
    state = start()
    progress = next(train(state, 100, clip=1e-3))
    norm = torch.stack([p.grad.norm() for p in state.module.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)
    state = start()
    unclipped = next(train(state, 100, clip=None))
    norm = torch.stack([p.grad.norm() for p in state.module.parameters() if p.grad is not None]).norm()
    torch.testing.assert_close(unclipped.grad_norm, norm)
    assert progress.grad_norm.equal(unclipped.grad_norm)


def test_every_is_true_when_a_multiple_is_passed():
    seen = [(p.images_seen, p.every(12)) for p in train(start(), 40)]
    assert [images for images, passed in seen if passed] == [15, 25, 40]
    assert not any(p.every(None) for p in train(start(), 40))


def test_it_ends_at_the_target_and_takes_no_batch_too_many():
    batches = iter(list(itertools.islice(positions(0), 5)))
    state = start()
    steps = fit(state, batches, Loss(state.module), optimization=OPTIMIZATION, batch=BATCH, target_images=12)
    assert [p.images_seen for p in steps] == [5, 10, 15]
    assert len(list(batches)) == 2
    assert list(train(state, 15)) == []

    with pytest.raises(ValueError, match="ended at 20 of 100 images"):
        list(
            fit(
                state,
                [np.arange(15, 20)],
                Loss(state.module),
                optimization=OPTIMIZATION,
                batch=BATCH,
                target_images=100,
            )
        )


def test_two_ranks_with_unequal_shares_train_as_one(tmp_path: Path):
    """DDP over gloo, 3 and 2 of each 5 images: the same gradients, so the same weights, as one process."""
    alone = start()
    norms = [progress.grad_norm for progress in train(alone, 40)]
    other = fresh.start(_rank, 1, tmp_path)
    _rank(0, tmp_path)
    other.join()
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(together["norms"], torch.stack(norms), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(together["state"], saved(alone), rtol=1e-4, atol=1e-5)


def _rank(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(minutes=3)
    )
    state = start()
    steps = fit(
        state,
        positions(0, rank=rank, world=2),
        Loss(DistributedDataParallel(state.module)),
        optimization=OPTIMIZATION,
        batch=BATCH,
        target_images=40,
    )
    norms = torch.stack([progress.grad_norm for progress in steps])
    torch.save({"norms": norms, "state": saved(state)}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_no_step_waits_for_a_gpu():
    network = Network().cuda()
    state = TrainingState.start(network, OPTIMIZATION)
    x = torch.randn(BATCH, 2, 4, 4, device="cuda")
    t = torch.rand(BATCH, device="cuda")

    def loss(at: np.ndarray) -> Tensor:
        return flow_matching(Denoiser(network), x, x.flip(0), t, Conditioning())

    steps = fit(state, positions(0), loss, optimization=OPTIMIZATION, batch=BATCH, target_images=200)
    next(steps)  # the optimizer makes its state
    torch.cuda.set_sync_debug_mode("error")
    try:
        norms = [progress.grad_norm for progress in steps]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(norms).isfinite().all()
