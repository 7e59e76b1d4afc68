from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diffusion.latents import LatentStatistics
from pipelines.training.tasks.denoiser import DenoiserTask
from tests.pipelines import tiny


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    return tiny.line(tmp_path_factory.mktemp("line"))


def task(inputs: dict[str, Any], **fields: Any) -> DenoiserTask:
    return DenoiserTask(tiny.train(**fields), inputs, device=torch.device("cpu"), workers=1)


def test_sample_is_a_function_of_its_position_alone(inputs: dict[str, Any]) -> None:
    """However the places of a global batch are dealt out to ranks."""
    made = task(inputs)
    positions = np.arange(16, 24)
    indices = (positions * 5) % 24
    whole = made.share(positions, indices)
    for rank in range(3):
        part = made.share(positions[rank::3], indices[rank::3])
        for name in ("latents", "noise", "t"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rank::3])
        assert part.conditioning.label is not None
        assert whole.conditioning.label is not None
        assert torch.equal(part.conditioning.label, whole.conditioning.label[rank::3])
        assert part.conditioning.pooled is not None
        assert whole.conditioning.pooled is not None
        assert torch.equal(part.conditioning.pooled, whole.conditioning.pooled[rank::3])


def test_conditions_are_dropped_independently_and_as_often_as_told(inputs: dict[str, Any]) -> None:
    positions = np.arange(4000)
    share = task(inputs, drop_text=0.3, drop_label=0.2).share(positions, positions % 24)
    assert share.conditioning.mask is not None
    assert share.conditioning.label is not None
    no_text, no_label = ~share.conditioning.mask.any(1), share.conditioning.label == 3
    # Three standard errors of a share of 4,000.
    assert no_text.float().mean().item() == pytest.approx(0.3, abs=0.022)
    assert no_label.float().mean().item() == pytest.approx(0.2, abs=0.019)
    assert (no_text & no_label).float().mean().item() == pytest.approx(0.06, abs=0.012)


def test_captions_are_drawn_by_weight(inputs: dict[str, Any]) -> None:
    positions = np.arange(4000)
    share = task(inputs, drop_text=0.0).share(positions, np.zeros(4000, np.int64))
    assert share.conditioning.mask is not None
    long = tiny.embedding("a drawing of thing 0 in colour 0").states
    found = share.conditioning.mask.sum(1) == len(long)
    assert found.float().mean().item() == pytest.approx(0.25, abs=0.021)
    row = int(found.nonzero()[0])
    assert share.conditioning.text is not None
    np.testing.assert_array_equal(share.conditioning.text[row, : len(long)].numpy(), long.astype(np.float32))


def test_latents_are_draws_of_the_moments_whitened(inputs: dict[str, Any]) -> None:
    positions = np.arange(2000)
    latents = task(inputs).share(positions, np.full(2000, 7)).latents
    statistics = LatentStatistics(mean=(0.3, 0.5), std=(0.25, 0.25))
    mean = tiny.picture(7)[::4, ::4, :2].transpose(2, 0, 1) / 255
    drawn = statistics.unwhiten(latents)
    np.testing.assert_allclose(drawn.mean(0).numpy(), mean, atol=0.006)
    np.testing.assert_allclose(drawn.std(0).numpy(), 0.05, atol=0.005)


def test_times_are_stratified_over_the_global_batch(inputs: dict[str, Any]) -> None:
    """Logit-normal quantiles of one number in each eighth of (0, 1)."""
    t = task(inputs).share(np.arange(8, 16), np.arange(8)).t
    u = torch.special.ndtr(torch.logit(t.double()))
    gaps = (u.sort().values.diff() * 8).tolist()
    assert gaps == pytest.approx([1.0] * 7, abs=1e-3)


def test_held_out_loss_is_fixed(inputs: dict[str, Any]) -> None:
    first, again = task(inputs), task(inputs, seed=0, images_seen=800)
    again.module.load_state_dict(first.module.state_dict())
    assert first.evaluate(first.module) == again.evaluate(first.module)
    # A network that starts at zero velocity costs E[(z - x)^2], which whitening makes about 2.
    assert 1 < first.evaluate(first.module)["validation_loss"] < 3
