from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion.networks.routing import kept_tokens, put_back, take


def test_ids_depend_on_the_position_alone() -> None:
    all_at_once = kept_tokens(3, np.arange(8), 16, 0.5)
    assert torch.equal(kept_tokens(3, np.array([5, 2]), 16, 0.5), all_at_once[[5, 2]])
    assert not torch.equal(kept_tokens(4, np.arange(8), 16, 0.5), all_at_once)


@pytest.mark.parametrize(("share", "count"), [(0.5, 8), (0.3, 5), (0.01, 1), (1.0, 16)])
def test_ids_are_increasing_and_as_many_as_asked(share: float, count: int) -> None:
    ids = kept_tokens(0, np.arange(20), 16, share)
    assert (ids.shape, ids.dtype) == ((20, count), torch.int64)
    assert (ids.diff(dim=1) > 0).all()
    assert ids.min() >= 0
    assert ids.max() < 16


def test_every_token_is_kept_equally_often() -> None:
    ids = kept_tokens(0, np.arange(4000), 8, 0.25)
    counts = torch.bincount(ids.flatten(), minlength=8)
    # binomial: 4000 trials of 1/4, standard deviation 27
    assert (counts - 1000).abs().max() < 4 * 27


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_a_share_of_none_or_more_than_all_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        kept_tokens(0, np.arange(2), 4, share)


def test_what_is_taken_is_put_back() -> None:
    x, ids = torch.randn(2, 6, 3), torch.tensor([[0, 4], [1, 2]])
    kept = take(x, ids)
    assert torch.equal(kept, torch.stack([x[0, [0, 4]], x[1, [1, 2]]]))
    assert torch.equal(put_back(x, kept, ids), x)
    changed = put_back(x, kept + 1, ids) - x
    torch.testing.assert_close(changed[..., 0], torch.tensor([[1.0, 0, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0]]))
