from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion.accumulation import micro_batches
from diffusion.conditioning import Conditioning
from diffusion.config import OptimizationConfig
from diffusion.training import TrainingState, fit


@dataclass(frozen=True, eq=False)
class Share:
    x: Tensor
    conditioning: Conditioning
    weight: float = 2.0


class Pair(NamedTuple):
    x: Tensor
    y: np.ndarray


class Own:
    """Cut by its own methods."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> Own:
        return Own(self.rows[rows])


def test_a_nest_is_cut_in_all_its_tensors_at_once():
    x = torch.arange(14.0).reshape(7, 2)
    share = Share(x=x, conditioning=Conditioning(label=torch.arange(7), classes=7))
    pieces = list(micro_batches(share, 3))
    assert [type(piece) for piece in pieces] == [Share] * 3
    assert [len(piece.x) for piece in pieces] == [2, 2, 3]
    assert torch.cat([piece.x for piece in pieces]).equal(x)
    labels = [piece.conditioning.label for piece in pieces]
    assert torch.cat([label for label in labels if label is not None]).tolist() == list(range(7))
    assert {(p.weight, p.conditioning.classes, p.conditioning.text) for p in pieces} == {(2.0, 7, None)}


@pytest.mark.parametrize(
    "share",
    [
        torch.arange(5),
        np.arange(5),
        {"a": torch.arange(5), "temperature": torch.tensor(1.0), "name": "kept"},
        [torch.arange(5), (np.arange(5), None)],
        Pair(torch.arange(5), np.arange(5)),
        Own(list(range(5))),
    ],
    ids=lambda share: type(share).__name__,
)
def test_every_kind_of_share_is_cut_into_its_own_kind(share: Any):
    def first(value: Any) -> list[int]:
        if isinstance(value, Own):
            return value.rows
        if isinstance(value, dict):
            assert (value["temperature"].item(), value["name"]) == (1.0, "kept")
            return first(value["a"])
        if isinstance(value, list | tuple):
            inner = value[1][0] if isinstance(value, list) else value[1]
            assert inner.tolist() == first(value[0])
            return first(value[0])
        return value.tolist()

    pieces = list(micro_batches(share, 2))
    assert [type(piece) for piece in pieces] == [type(share)] * 2
    assert [first(piece) for piece in pieces] == [[0, 1], [2, 3, 4]]
    assert list(micro_batches(share, 1)) == [share]


@pytest.mark.parametrize(("share", "size"), [(torch.zeros(2, 9), "2"), ((3.0, None), "no")])
def test_too_few_samples_are_refused(share: Any, size: str):
    with pytest.raises(ValueError, match=f"{size} samples cannot be cut into 3"):
        list(micro_batches(share, 3))


def train(accumulate: int) -> tuple[TrainingState, list[tuple[Tensor, Tensor]]]:
    optimization = OptimizationConfig(lr=1e-2, clip=0.1, warmup=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 1))
        batches = list(torch.randn(6, 7, 4))
    state = TrainingState.start(module, optimization)
    steps = fit(
        state,
        batches,
        lambda x: (module(x)[:, 0] - x.sin().sum(1)).square(),
        optimization=optimization,
        batch=7,
        target_images=42,
        accumulate=accumulate,
    )
    return state, [(progress.loss, progress.grad_norm) for progress in steps]


@pytest.mark.parametrize("accumulate", [2, 3, 7])
def test_pieces_train_as_the_whole(accumulate: int):
    """7 samples, so that pieces differ in size; loss and norm are those of the whole too."""
    whole, said = train(1)
    pieces, again = train(accumulate)
    torch.testing.assert_close(again, said, rtol=1e-5, atol=0)
    torch.testing.assert_close(pieces.state_dict(), whole.state_dict(), rtol=1e-4, atol=1e-6)


def test_a_batch_too_small_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match="a batch of 7 cannot be cut into 8 for each of 1 ranks"):
        train(8)
