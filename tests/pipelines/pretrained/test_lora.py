"""Adapters beside a pretrained denoiser whose own weights are held in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cluster.storage import Storage
from diffusion.config import OptimizationConfig
from diffusion.training import TrainingState
from pipelines.models import SnapshotFolder
from pipelines.pretrained.adoption import adopted
from pipelines.pretrained.begun import Begun
from pipelines.pretrained.config import LoRAConfig
from pipelines.pretrained.denoiser_folder import matrices, module_of
from tests.pipelines.pretrained.tiny_denoisers import SHAPES, conditions, model, network, save

ROWS = 2


def adopt(shape: str, folder: Path, **options: Any) -> SnapshotFolder:
    place = adopted(
        str(save(shape, folder / "pipeline", **options)),
        Storage.at(folder / "store"),
        part="denoiser",
        fetch=lambda done, of: None,
    )
    assert place is not None
    return SnapshotFolder.open(place)


def begun(shape: str, snapshot: SnapshotFolder, *, half: bool) -> Begun:
    made = network(shape, model(shape))
    said = {name: getattr(made, name) for name in type(made).__dataclass_fields__}
    return Begun(**said, snapshot=snapshot, lora=LoRAConfig(rank=2), half=half)


def trained(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def step(shape: str, module: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of adapters that are not zero, under autocast."""
    chance = torch.Generator().manual_seed(5)
    for parameter in trained(module).values():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=chance)
    x, t = torch.randn(ROWS, 4, 8, 8, generator=chance), torch.full((ROWS,), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x, t, conditions(shape, ROWS))
    output.float().square().sum().backward()
    return output, {name: p.grad for name, p in trained(module).items() if p.grad is not None}


@pytest.mark.parametrize("shape", [s for s in SHAPES if s not in ("sd2", "clean", "flux-dev")])
def test_weights_in_half_precision_give_the_bits_that_autocast_gives(shape: str, tmp_path: Path):
    snapshot = adopt(shape, tmp_path, max_shard_size="30KB")
    whole, half = (begun(shape, snapshot, half=held) for held in (False, True))
    modules = [config.around(config.module()) for config in (whole, half)]
    output, gradients = step(shape, modules[0])
    found, others = step(shape, modules[1])
    assert torch.equal(found, output)
    assert gradients.keys() == others.keys()
    assert len(gradients) > 2
    assert all(torch.equal(others[name], gradient) for name, gradient in gradients.items())

    assert {p.dtype for p in trained(modules[1]).values()} == {torch.float32}
    inner: Any = modules[1].model
    named = dict(inner.named_parameters())
    assert {named[name].dtype for name in matrices(inner) if "lora_" not in name} == {torch.bfloat16}
    # What is exported has lost nothing of the weights that it began with.
    expected, got = whole.weights(modules[0]), half.weights(modules[1])
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_pictures_of_weights_in_half_precision_need_no_autocast_around_them(tmp_path: Path):
    config = begun("sd3", adopt("sd3", tmp_path), half=True)
    made = config.around(config.module())
    x, t, given = torch.randn(ROWS, 4, 8, 8), torch.full((ROWS,), 0.5), conditions("sd3", ROWS)
    with torch.no_grad():
        alone = made(x, t, given)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(made(x, t, given), alone)


def test_a_training_keeps_nothing_of_what_it_does_not_train(tmp_path: Path):
    snapshot = adopt("sd3", tmp_path)
    half, whole = (begun("sd3", snapshot, half=held) for held in (True, False))
    module = half.around(half.module())
    state = TrainingState.start(module, OptimizationConfig())
    step("sd3", module)
    for optimizer in state.optimizers:
        optimizer.step()
    adapters = sum(p.numel() * 4 for p in trained(module).values())
    kept = sum(t.numel() * t.element_size() for t in state.state_dict(frozen=False).values())
    assert sum(t.numel() for t in module.buffers()) > 0
    # Weights, two moments, an average of each width, and counts of steps.
    widths = len(state.ema.widths)
    assert kept == pytest.approx((3 + widths) * adapters, rel=0.02)
    sizes = [
        sum(p.numel() * p.element_size() for p in config.module().parameters()) for config in (half, whole)
    ]
    full = sum(p.numel() * 4 for p in model("sd3").parameters())
    assert sizes[0] - adapters < 0.56 * full < 1.0 * full == sizes[1] - adapters


def test_a_folder_is_read_without_a_copy_in_full_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot = adopt("sd3", tmp_path)
    seen, float_ = [], Tensor.float

    def watching(self: Tensor) -> Tensor:
        seen.append(self.numel())
        return float_(self)

    monkeypatch.setattr(Tensor, "float", watching)
    made = module_of(snapshot, half=True)
    largest = max(p.numel() for name, p in made.named_parameters() if name in matrices(made))
    assert max(seen, default=0) < largest
