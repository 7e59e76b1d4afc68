"""Averages of weights that a training leaves beside its checkpoints, and of them the one of any width.

A file is named by where the training stood; if its learning rate was falling by then, also by the end that it
fell towards, because longer trainings do not pass through such weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from cluster.gang import Member
    from cluster.storage import Storage
    from diffusion.ema import EMA
    from pipelines.training.checkpoints import Mark

NAME = re.compile(r"averages-(\d{12})(?:-of-(\d{12}))?\.safetensors")
TIMES = 8
"""How often a training stores them."""


def store(storage: Storage, mark: Mark, ema: EMA, *, member: Member) -> None:
    """All widths in fp16, as "width/parameter"; the same place of the same training gives the same bytes.

    All ranks must call it together: averages that FSDP2 cut are gathered; rank 0 writes."""
    from safetensors.torch import save

    from diffusion import sharding

    end = f"-of-{mark.target:012d}" if mark.cooling else ""
    tensors = {
        f"{width}/{name}": sharding.whole(average).half().contiguous().cpu()
        for width, averages in ema.averages.items()
        for name, average in averages.items()
    }
    if member.rank:
        return
    storage.replace(f"averages-{mark.images_seen:012d}{end}.safetensors", save(tensors))


def reconstruct(
    storage: Storage, *, images_seen: int, width: float, target: int, cooling: Callable[[int], bool]
) -> tuple[dict[str, Tensor], float]:
    """The average of that width at `images_seen` of a training to `target`, by parameter name, in fp32; and
    its misfit (`diffusion.ema.reconstruction`).

    Args:
        cooling: whether this training's learning rate was falling when it had seen so many images.

    Raises:
        ValueError: none is stored of that very place.
    """
    from safetensors.torch import load

    from diffusion.ema import Profile, combined, reconstruction

    names: dict[int, str] = {}
    for name in storage.list():
        found = NAME.fullmatch(name)
        if found and found[2] == (f"{target:012d}" if cooling(int(found[1])) else None):
            names[int(found[1])] = name
    if images_seen not in names:
        raise ValueError(
            f"No averages are stored of this training at {images_seen:,} images: `ema_width` needs "
            "`optimization.ema_others` from the beginning."
        )
    widths = sorted({key.partition("/")[0] for key in load(storage.read(names[images_seen]))})
    stored = [Profile(images_seen=n, width=float(given)) for n in names for given in widths]
    factors, misfit = reconstruction(stored, Profile(images_seen=images_seen, width=width))

    def read() -> Iterator[dict[str, Tensor]]:
        for name in names.values():
            tensors = load(storage.read(name))
            for given in widths:
                prefix = f"{given}/"
                yield {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}

    return combined(read(), factors), misfit
