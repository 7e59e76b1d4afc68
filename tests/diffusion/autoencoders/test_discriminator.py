from __future__ import annotations

import math

import pytest
import torch

from diffusion.autoencoders.discriminator import contest, deception
from diffusion.config.adversarial import DiscriminatorConfig


@pytest.mark.parametrize(("layers", "sees"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_one_patch(layers: int, sees: int) -> None:
    """Isola et al., 2017: 16, 34 and 70 px, found as the pixels that one logit has a gradient of."""
    torch.manual_seed(0)
    network = DiscriminatorConfig(channels=4, layers=layers, norm="none").build()
    images = torch.randn(1, 3, 160, 160, requires_grad=True)
    logits = network(images)
    (gradient,) = torch.autograd.grad(logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2], images)
    rows = gradient[0].abs().sum((0, 2)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == sees


def test_a_sample_is_judged_without_regard_to_its_company() -> None:
    torch.manual_seed(0)
    network = DiscriminatorConfig(channels=8, layers=2).build()
    images = torch.randn(3, 3, 24, 24)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]))


def test_the_smallest_image_has_a_logit_and_a_smaller_one_is_refused() -> None:
    for layers in (1, 2, 3):
        network = DiscriminatorConfig(channels=4, layers=layers).build()
        side = network.smallest
        assert network(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, 1)
        with pytest.raises(ValueError, match="set its `layers` lower"):
            network(torch.zeros(1, 3, side - 1, side + 9))


def test_losses_are_those_of_the_papers() -> None:
    real = torch.tensor([2.0, 0.5, -1.0, 0.0]).reshape(2, 1, 1, 2)
    made = torch.tensor([-2.0, -0.5, 1.0, 0.0]).reshape(2, 1, 1, 2)
    assert contest("hinge", real, made).tolist() == pytest.approx([0.25, 1.5])
    assert deception("hinge", made).tolist() == pytest.approx([1.25, -0.5])

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    told = contest("non_saturating", real, made)[0].item()
    by_hand = [-math.log(sigmoid(r)) - math.log(1 - sigmoid(m)) for r, m in ((2.0, -2.0), (0.5, -0.5))]
    assert told == pytest.approx(sum(by_hand) / 4)
    deceived = deception("non_saturating", made)[1].item()
    assert deceived == pytest.approx(-(math.log(sigmoid(1.0)) + math.log(0.5)) / 2)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="start and weight must be 0 or more"):
        DiscriminatorConfig(start=-1)
    with pytest.raises(ValueError, match="at least 1 each"):
        DiscriminatorConfig(layers=0)
