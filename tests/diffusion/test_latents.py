from __future__ import annotations

import json

import pytest
import torch

from diffusion.latents import LatentStatistics, LatentSums, Moments


def moments(batch: int, *, seed: int = 0) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    mean = 3 * torch.randn(batch, 2, 4, 4, generator=generator) + torch.tensor([5.0, -1.0]).reshape(2, 1, 1)
    return Moments(mean=mean, std=torch.rand(batch, 2, 4, 4, generator=generator) + 0.5)


def test_a_draw_is_its_noise_scaled():
    noise = torch.randn(3, 2, 4, 4)
    m = moments(3)
    torch.testing.assert_close((m.sample(noise) - m.mean) / m.std, noise)


def test_statistics_are_those_of_the_draws():
    m = moments(50)
    statistics = LatentSums.of(m).statistics()
    draws = torch.stack([m.sample(torch.randn(50, 2, 4, 4)) for _ in range(200)]).double()
    of_draws = draws.transpose(0, 2).flatten(1)
    torch.testing.assert_close(torch.tensor(statistics.mean).double(), of_draws.mean(1), rtol=0, atol=0.02)
    torch.testing.assert_close(torch.tensor(statistics.std).double(), of_draws.std(1), rtol=0.01, atol=0)
    # Of the means alone the spread would be plainly smaller.
    assert statistics.std[0] > m.mean[:, 0].std() * 1.02


def test_whitened_draws_are_standard_and_unwhitening_undoes_it():
    m = moments(50)
    statistics = LatentSums.of(m).statistics()
    z = m.sample(torch.randn(50, 2, 4, 4))
    x = statistics.whiten(z)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=0.1)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(2), rtol=0, atol=0.1)
    torch.testing.assert_close(statistics.unwhiten(x), z)


def test_parts_add_up_to_the_whole():
    whole = moments(9)
    parts = [LatentSums.of(Moments(whole.mean[s], whole.std[s])) for s in (slice(0, 2), slice(2, 9))]
    merged, at_once = (parts[0] + parts[1]).statistics(), LatentSums.of(whole).statistics()
    assert merged.mean == pytest.approx(at_once.mean, rel=1e-14)
    assert merged.std == pytest.approx(at_once.std, rel=1e-13)


def test_the_manifest_gives_back_the_same_numbers():
    statistics = LatentSums.of(moments(3)).statistics()
    assert LatentStatistics.from_json(json.loads(json.dumps(statistics.to_json()))) == statistics


def test_a_dead_channel_is_named():
    mean = torch.randn(3, 2, 4, 4)
    mean[:, 1] = 2.0
    with pytest.raises(ValueError, match="channel 1 is constant"):
        LatentSums.of(
            Moments(mean, torch.stack([torch.ones(3, 4, 4), torch.zeros(3, 4, 4)], dim=1))
        ).statistics()
