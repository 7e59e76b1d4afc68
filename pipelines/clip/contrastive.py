"""Contrastive losses over the pairs of all ranks, equal to those of one rank that holds the whole batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed
import torch.nn.functional as F

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def softmax_loss(
    images: Float[Tensor, "b w"],
    texts: Float[Tensor, "b w"],
    same: Int[Tensor, "b 2"],
    *,
    scale: Float[Tensor, ""],
) -> Float[Tensor, " b"]:
    """Cross-entropy of picking each image's text and each text's image out of the batch, their mean
    (Radford et al., 2021, Figure 3).

    Args:
        images: this rank's vectors, of length 1; pair n is row n of both.
        same: numbers of each pair's image and of its caption: pairs that share one are not told apart.
        scale: what cosines are multiplied with, one over the temperature.
    """
    all_images, all_texts, mine, doubtful = _pairs(images, texts, same)
    losses = []
    for queries, gallery in ((images, all_texts), (texts, all_images)):
        logits = (scale * queries @ gallery.T).masked_fill(doubtful, float("-inf"))
        losses.append(F.cross_entropy(logits.float(), mine, reduction="none"))
    return (losses[0] + losses[1]) / 2


def sigmoid_loss(
    images: Float[Tensor, "b w"],
    texts: Float[Tensor, "b w"],
    same: Int[Tensor, "b 2"],
    *,
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
) -> Float[Tensor, " b"]:
    """Each image with each text on its own: a pair or not (Zhai et al., 2023, Algorithm 1)."""
    _, all_texts, mine, doubtful = _pairs(images, texts, same)
    logits = (scale * images @ all_texts.T + bias).float()
    sign = -torch.ones_like(logits)
    sign.scatter_(1, mine[:, None], 1.0)
    return -F.logsigmoid(sign * logits).masked_fill(doubtful, 0.0).sum(1)


def _pairs(
    images: Tensor, texts: Tensor, same: Tensor
) -> tuple[Tensor, Tensor, Int[Tensor, " b"], Bool[Tensor, "b n"]]:
    """All ranks' vectors, where this rank's pairs stand in them, and which others might be right as well."""
    counts, rank = _counts(len(images), images.device)
    mine = torch.arange(len(images), device=images.device) + sum(counts[:rank])
    every = gathered(same, counts)
    doubtful = (same[:, None] == every[None]).any(-1)
    doubtful[torch.arange(len(mine), device=mine.device), mine] = False
    return gathered(images, counts), gathered(texts, counts), mine, doubtful


def gathered(rows: Tensor, counts: list[int]) -> Tensor:
    """Rows of all ranks in the order of the ranks; gradients go back to the rank that each came from."""
    if len(counts) == 1:
        return rows
    from torch.distributed.nn.functional import all_gather

    # Shares may differ by one: collectives take equal shapes.
    longest = max(counts)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    parts = all_gather(padded) if padded.requires_grad else _plain(padded, len(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _plain(rows: Tensor, world: int) -> list[Tensor]:
    parts = [torch.empty_like(rows) for _ in range(world)]
    torch.distributed.all_gather(parts, rows)
    return parts


def _counts(mine: int, device: torch.device) -> tuple[list[int], int]:
    """Pairs that each rank has, and which rank this is."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine], 0
    world = torch.distributed.get_world_size()
    if world == 1:
        return [mine], 0
    found = _plain(torch.tensor([mine], device=device), world)
    return [int(n) for n in torch.cat(found).tolist()], torch.distributed.get_rank()
