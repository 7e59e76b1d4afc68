"""Token routing: in training, the middle blocks see some tokens only (Krause et al., 2025, "TREAD").

The other tokens skip those blocks and are put back where they left, so that nothing is lost and nothing is
learned for a mask. It costs no parameter; a trained network is used without.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion.randomness import generator


def kept_tokens(seed: int, positions: Int[np.ndarray, " b"], tokens: int, share: float) -> Int[Tensor, "b k"]:
    """Ids in [0, tokens) for `Conditioning.route`: round(share * tokens) of each sample, at least one, in
    increasing order, drawn by its position in the training stream.

    Raises:
        ValueError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of tokens that are kept must be in (0, 1], not {share}.")
    count = max(1, round(share * tokens))
    drawn = [generator(seed, p, "route").permutation(tokens)[:count] for p in positions.tolist()]
    return torch.from_numpy(np.sort(np.reshape(drawn, (-1, count)), axis=1).astype(np.int64))


def take(x: Float[Tensor, "b n w"], ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k w"]:
    """The tokens that stay."""
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))


def put_back(
    x: Float[Tensor, "b n w"], kept: Float[Tensor, "b k w"], ids: Int[Tensor, "b k"]
) -> Float[Tensor, "b n w"]:
    """All tokens: those that stayed as they are now, the others as they left."""
    return x.scatter(1, ids[..., None].expand(-1, -1, x.shape[-1]), kept.to(x.dtype))
