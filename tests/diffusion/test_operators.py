from __future__ import annotations

import pytest
import torch

from diffusion.operators import Downsample, Mask, Matrix, Operator

SHAPE = (2, 4, 6)
OPERATORS = {
    "mask of all channels": Mask(torch.rand(1, 1, 4, 6, generator=torch.Generator().manual_seed(0)) < 0.5),
    "mask of each row": Mask(torch.rand(3, 2, 4, 6, generator=torch.Generator().manual_seed(0)) < 0.5),
    "downsample": Downsample(2),
    "matrix": Matrix(torch.randn(5, 48, dtype=torch.float64), SHAPE),
}


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_the_transpose_is_the_transpose(operator: Operator):
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    y = torch.randn_like(operator.apply(x))
    torch.testing.assert_close((operator.apply(x) * y).sum(), (x * operator.transpose(y)).sum())


def test_what_is_measured():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    known = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    known[..., 1, 2] = True
    assert Mask(known).apply(x).nonzero().tolist() == [[0, 0, 1, 2]]
    assert Downsample(2).apply(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert Matrix(torch.eye(16)[3:5], (1, 4, 4)).apply(x).tolist() == [[3.0, 4.0]]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="no whole blocks of 3"):
        Downsample(3).apply(torch.zeros(1, 1, 6, 4))
    with pytest.raises(ValueError, match="5 wide"):
        Matrix(torch.zeros(2, 5), (1, 2, 3))
