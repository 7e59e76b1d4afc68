from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.training.pinning import mapped, pinned
from tests.pipelines import tiny

CPU = torch.device("cpu")


def test_all_tensors_of_a_share_are_pinned(tmp_path: Path) -> None:
    stage = tiny.train(tokens=0.5)
    share: Any = stage.task(tiny.line(tmp_path), CPU, 1).share(np.arange(8), np.arange(8))
    assert pinned(share, CPU) is share
    seen: list[torch.Tensor] = []

    def double(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor + tensor if tensor.dtype.is_floating_point else tensor.clone()

    again = mapped(share, double)
    told = share.conditioning
    mine = [share.latents, share.noise, share.t, told.text, told.mask, told.pooled, told.label, told.route]
    assert {id(tensor) for tensor in seen} == {id(tensor) for tensor in mine}
    assert torch.equal(again.latents, 2 * share.latents)
    assert torch.equal(again.conditioning.text, 2 * told.text)
    assert again.conditioning.classes == told.classes
