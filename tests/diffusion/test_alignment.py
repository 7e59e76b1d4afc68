from __future__ import annotations

import pytest
import torch

from diffusion.alignment import Aligned, alignment
from diffusion.conditioning import Conditioning
from diffusion.config import DiTConfig
from diffusion.denoiser import Denoiser
from diffusion.losses import flow_matching

NOTHING = Conditioning()


def aligned(depth: int = 1) -> Aligned:
    torch.manual_seed(0)
    network = DiTConfig(width=16, depth=3, heads=2, patch=2).build(channels=2, size=8)
    for parameter in network.parameters():  # a new network's blocks change nothing
        torch.nn.init.normal_(parameter, std=0.1)
    return Aligned(network, depth=depth, features=5)


def test_what_points_where_the_features_do_has_the_least_loss():
    target = torch.randn(3, 5, 4, 4)
    mean, std = target.mean((2, 3), keepdim=True), target.std((2, 3), keepdim=True)
    spatial = (target - 0.7 * mean) / std
    scale = torch.rand(3, 1, 4, 4) + 0.1
    torch.testing.assert_close(alignment(scale * spatial, target), -torch.ones(3))
    torch.testing.assert_close(alignment(-scale * spatial, target), torch.ones(3))
    # Each sample's own loss, the mean of its places'.
    half = spatial.clone()
    half[1, :, :2] *= -1
    torch.testing.assert_close(alignment(half, target), torch.tensor([-1.0, 0.0, -1.0]))


def test_what_an_image_is_of_counts_less_than_how_its_places_differ():
    """Features that share a large part, as an encoder's do within an image, are told apart by the rest."""
    places = torch.randn(1, 5, 4, 4)
    offset = 50 * torch.randn(1, 5, 1, 1)
    centred = alignment(places, places + offset - places.mean((2, 3), keepdim=True), gamma=1.0)
    assert centred.item() < -0.9
    assert alignment(places, 3 * places + offset, gamma=1.0).item() == pytest.approx(
        alignment(places, places, gamma=1.0).item(), abs=1e-5
    )


def test_the_output_is_the_networks_own_and_places_are_where_they_were():
    module = aligned()
    x, t = torch.randn(2, 2, 8, 4), torch.tensor([0.2, 0.7])
    output, projected = module(x, t, NOTHING)
    torch.testing.assert_close(output, module.network(x, t, NOTHING))
    assert projected.shape == (2, 5, 4, 2)
    _, tokens = module.network(x, t, NOTHING, tap=1)
    grid = tokens.reshape(2, 4, 2, 16).permute(0, 3, 1, 2)
    torch.testing.assert_close(projected, module.projector(grid))


def test_it_teaches_the_blocks_up_to_the_depth_and_no_other():
    module = aligned(depth=1)
    _, projected = module(torch.randn(2, 2, 8, 8), torch.rand(2), NOTHING)
    alignment(projected, torch.randn(2, 5, 4, 4)).sum().backward()
    moved = [any(p.grad is not None and p.grad.any() for p in b.parameters()) for b in module.network.blocks]
    assert moved == [True, True, False]


def test_both_losses_train_in_one_pass():
    module, seen = aligned(), []

    def network(x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        output, projected = module(x, t, conditioning)
        seen.append(projected)
        return output

    x, z, target = torch.randn(4, 2, 8, 8), torch.randn(4, 2, 8, 8), torch.randn(4, 5, 4, 4)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    history = []
    for _ in range(60):
        seen.clear()
        optimizer.zero_grad()
        plain = flow_matching(Denoiser(network), x, z, torch.full((4,), 0.5), NOTHING).mean()
        extra = alignment(seen[0], target).mean()
        (plain + 0.5 * extra).backward()
        optimizer.step()
        history.append((plain.item(), extra.item()))
    assert history[-1][0] < history[0][0]
    assert history[-1][1] < history[0][1] - 0.2
