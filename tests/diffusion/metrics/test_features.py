from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion.metrics.features import EfficientNetLite0, resize
from pipelines import weights

LARGEST = {113: 5.60324, 897: 4.3635, 930: 3.76133, 755: 3.48953, 455: 3.13905}
"""Of the published network's 1280 features of `ramps()`: computed with its modules as they are published,
batch normalisations apart and "same" padding by copies, in fp32."""


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return EfficientNetLite0(weights.load("efficientnet-lite0"))


def ramps() -> Tensor:
    y, x = torch.meshgrid(torch.arange(224), torch.arange(224), indexing="ij")
    return torch.stack([x, y, (x + y) % 224]).float()[None] / 223


def test_features_are_those_of_the_published_network(network: EfficientNetLite0) -> None:
    found = network.features(ramps())[0]
    values, places = found.topk(5)
    assert places.tolist() == list(LARGEST)
    assert values.tolist() == pytest.approx(list(LARGEST.values()), abs=1e-4)
    assert found.norm().item() == pytest.approx(14.69056, abs=1e-4)
    values, places = network.logits(ramps())[0].topk(3)
    assert places.tolist() == [818, 644, 650]
    assert values.tolist() == pytest.approx([5.6477, 4.5199, 4.1985], abs=1e-3)


def test_folding_keeps_the_batch_normalisation() -> None:
    """Against the unfolded formula, on the first convolution, with statistics that are not 0 and 1."""
    state = {k: v.clone() for k, v in weights.load("efficientnet-lite0").items()}
    x = torch.rand(2, 3, 8, 8)
    found = EfficientNetLite0(state).stem(x)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))
    y = torch.nn.functional.conv2d(padded, state["_conv_stem.weight"], stride=2)
    norm = [state[f"_bn0.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
    truth = torch.nn.functional.batch_norm(y, *norm, eps=1e-3)
    torch.testing.assert_close(found, truth, atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_image_and_not_the_weights(network: EfficientNetLite0) -> None:
    images = ramps().requires_grad_()
    network.features(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.parameters())


def test_other_weights_are_refused() -> None:
    state = dict(weights.load("efficientnet-lite0"))
    del state["_fc.bias"]
    with pytest.raises(ValueError, match="efficientnet-lite-pytorch"):
        EfficientNetLite0(state)


def test_resize_leaves_constants_and_full_size_alone() -> None:
    assert (resize(torch.full((1, 3, 48, 48), 0.5)) - 0.5).abs().max() < 1e-6
    images = torch.rand(1, 3, 224, 224)
    assert resize(images) is images
    # Antialiased: a one-pixel checkerboard shrinks to grey, not to one of its colours.
    checker = (torch.arange(448)[:, None] + torch.arange(448)) % 2
    inside = resize(checker.float().expand(1, 3, -1, -1))[..., 8:-8, 8:-8]
    assert (inside - 0.5).abs().max() < 0.05
