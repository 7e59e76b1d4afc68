from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion.autoencoders.perceptual import PerceptualLoss
from pipelines import weights


@pytest.fixture(scope="module")
def loss() -> PerceptualLoss:
    return PerceptualLoss(weights.load("hed"), blocks=2)


def ramps(size: int = 56) -> Tensor:
    y, x = torch.meshgrid(4 * torch.arange(size), 4 * torch.arange(size), indexing="ij")
    return torch.stack([x, y, (x + y) % 224]).float()[None] / 223 * 2 - 1


def test_features_are_those_of_the_published_network(loss: PerceptualLoss) -> None:
    """Mean and deviation of HED's own first two feature maps for this input, as its modules give them."""
    first, second = loss.features(ramps())
    assert first.shape == (1, 64, 56, 56)
    assert second.shape == (1, 128, 28, 28)
    assert first.mean().item() == pytest.approx(44.44209, rel=1e-4)
    assert first.std().item() == pytest.approx(163.149, rel=1e-4)
    assert first[0, 2, 10, 20].item() == pytest.approx(557.7643, rel=1e-4)
    assert second.mean().item() == pytest.approx(10.298636, rel=1e-4)


def test_zero_for_the_image_itself_and_rising_with_distortion(loss: PerceptualLoss) -> None:
    image = ramps()
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    distances = [loss(image + scale * noise, image).item() for scale in (0.0, 0.05, 0.2, 0.8)]
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances == sorted(distances)
    assert distances[3] > 10 * distances[1]


def test_each_sample_has_its_own_distance(loss: PerceptualLoss) -> None:
    a, b = ramps(), ramps().flip(3)
    both = loss(torch.cat([a, b]), torch.cat([b, b]))
    assert both[0] > 0.01
    torch.testing.assert_close(both[:1], loss(a, b))
    assert both[1].item() == pytest.approx(0, abs=1e-6)


def test_descending_it_brings_an_image_nearer(loss: PerceptualLoss) -> None:
    reference = ramps(16)
    image = (reference * 0.5).requires_grad_()
    before = loss(image, reference).sum()
    before.backward()
    assert image.grad is not None
    assert all(p.grad is None for p in loss.parameters())
    step = 0.01 * image.grad / image.grad.abs().max()
    assert loss(image.detach() - step, reference).sum() < before


def test_a_black_image_has_a_finite_gradient(loss: PerceptualLoss) -> None:
    image = torch.full((1, 3, 16, 16), -1.0, requires_grad=True)
    loss(image, image.detach()).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_what_is_wrong_is_said(loss: PerceptualLoss) -> None:
    with pytest.raises(ValueError, match="1 to 5"):
        PerceptualLoss({}, blocks=6)
    with pytest.raises(ValueError, match=r"lack block1\.conv2d"):
        PerceptualLoss({}, blocks=1)
