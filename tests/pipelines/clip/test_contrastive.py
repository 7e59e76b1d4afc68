from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.nn.functional as F

from pipelines.clip.contrastive import sigmoid_loss, softmax_loss

SAME = torch.tensor([[n, 10 + n] for n in range(5)])


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, texts = F.normalize(torch.randn(2, 5, 4, generator=generator), dim=-1)
    return images, texts


def test_softmax_is_cross_entropy_both_ways() -> None:
    images, texts = pairs()
    logits = 3.0 * images @ texts.T
    truth = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    torch.testing.assert_close(softmax_loss(images, texts, SAME, scale=torch.tensor(3.0)).mean(), truth)


def test_sigmoid_takes_each_with_each() -> None:
    images, texts = pairs()
    z = 3.0 * images @ texts.T - 1.0
    truth = -F.logsigmoid(z * (2 * torch.eye(5) - 1)).sum(1)
    found = sigmoid_loss(images, texts, SAME, scale=torch.tensor(3.0), bias=torch.tensor(-1.0))
    torch.testing.assert_close(found, truth)


def test_an_equal_caption_is_no_wrong_answer() -> None:
    """Pairs 1 and 3 say the same: without either, the other's loss is what it was."""
    images, texts = pairs()
    same = SAME.clone()
    same[3, 1] = same[1, 1]
    scale = torch.tensor(3.0)
    found = softmax_loss(images, texts, same, scale=scale)
    rest = torch.tensor([0, 1, 2, 4])
    torch.testing.assert_close(found[1], softmax_loss(images[rest], texts[rest], SAME[rest], scale=scale)[1])
    assert found[1] < softmax_loss(images, texts, SAME, scale=scale)[1]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


def gradient(module: Any, images: torch.Tensor, texts: torch.Tensor, same: torch.Tensor) -> None:
    """Of the sum over this share, scaled as `fit` does it."""
    one, other = module(torch.cat([images, texts])).tensor_split(2)
    losses = softmax_loss(F.normalize(one, dim=-1), F.normalize(other, dim=-1), same, scale=torch.tensor(5.0))
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    (losses.sum() * world / 5).backward()


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    images, texts = pairs()
    mine = slice(rank, None, 2)  # three and two of five, as `TrainingStream` deals them
    module = torch.nn.parallel.DistributedDataParallel(network())
    gradient(module, images[mine], texts[mine], SAME[mine])
    torch.save([p.grad for p in module.parameters()], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_with_unequal_shares_have_the_gradient_of_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_rank, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    alone = network()
    gradient(alone, *pairs(), SAME)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for together, parameter in zip(found, alone.parameters(), strict=True):
            torch.testing.assert_close(together, parameter.grad, rtol=1e-5, atol=1e-6)
            assert together.abs().max() > 1e-3


@pytest.mark.parametrize("loss", [softmax_loss, sigmoid_loss])
def test_more_alike_is_a_smaller_loss(loss: Any) -> None:
    images, texts = pairs()
    bias = {"bias": torch.tensor(-1.0)} if loss is sigmoid_loss else {}
    far = loss(images, texts, SAME, scale=torch.tensor(10.0), **bias).mean()
    near = loss(
        images, F.normalize(texts + 3 * images, dim=-1), SAME, scale=torch.tensor(10.0), **bias
    ).mean()
    assert near < far
