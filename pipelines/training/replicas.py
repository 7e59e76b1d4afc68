"""Workers that hold the same numbers, compared: what memory or a core got wrong tells nobody (Dixit et al.,
2021; Hochschild et al., 2021), and DDP carries it on in all further steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipelines.training.arriving import Arriving

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from diffusion.training import TrainingState


def checksum(tensors: Mapping[str, Tensor]) -> Int[Tensor, ""]:
    """Of all bits, modulo 2^64, on their device: a single one that flips always changes it."""
    import torch

    words = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [
        t.detach()
        .view(words[t.element_size()] if t.dtype != torch.bool else torch.uint8)
        .sum(dtype=torch.int64)
        for t in tensors.values()
    ]
    # Odd factors have inverses: what differs in one tensor differs in the sum. Equal ones would not tell two
    # tensors that have changed places.
    factors = 2 * torch.arange(len(sums), device=sums[0].device) + 1
    return (torch.stack(sums) * factors).sum()


def odd(sums: Sequence[int]) -> list[int]:
    """Ranks that most of the others contradict; none where there is no majority, as of two."""
    ((most, count), *_) = Counter(sums).most_common(1)
    return [rank for rank, value in enumerate(sums) if value != most] if 2 * count > len(sums) else []


class Replicas:
    """Compares the ranks' states now and then; all must ask at the same steps.

    Gradients are shared, so after a step all ranks have something of the damage, and nobody can say whose it
    was. So each rank looks after its own weights, too: between two steps they may not change.
    """

    def __init__(self) -> None:
        self._flips: Tensor | None = None
        """How often this rank's weights changed by themselves; on the device."""
        self._after: Tensor | None = None
        self._coming: list[tuple[int, Arriving]] = []

    def stepped(self, state: TrainingState) -> None:
        """After every step; nobody waits for the device."""
        import torch

        if self._flips is None:
            self._flips = torch.zeros_like(state.skipped)
            state.optimizers[0].register_step_pre_hook(lambda *_: self._look(state))
        self._after = checksum(dict(state.module.named_parameters()))

    def see(self, images_seen: int, state: TrainingState) -> None:
        """Begins to compare all of the state; nobody waits for the device."""
        import torch
        import torch.distributed

        device = state.skipped.device
        tensors = {name: t for name, t in state.state_dict().items() if t.device == device}
        assert self._flips is not None
        mine = torch.stack([checksum(tensors), self._flips])
        all_of_them = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(all_of_them, mine)
        self._coming.append((images_seen, Arriving(torch.stack(all_of_them))))

    def until(self, images_seen: int) -> list[tuple[int, list[int], list[int]]]:
        """What was compared up to there and not told yet: place, each rank's checksum, and the ranks that are
        to blame where they differ; none if that is not known."""
        here = [(place, sent.read()) for place, sent in self._coming if place <= images_seen]
        self._coming = [(place, sent) for place, sent in self._coming if place > images_seen]
        found = []
        for place, rows in here:
            sums = [row[0] for row in rows]
            found.append((place, sums, [rank for rank, row in enumerate(rows) if row[1]] or odd(sums)))
        return found

    def _look(self, state: TrainingState) -> None:
        """Before the optimizer's step."""
        if self._flips is not None and self._after is not None:
            now = checksum(dict(state.module.named_parameters()))
            self._flips = self._flips + (now != self._after)
