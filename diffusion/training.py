"""Training as a generator: `fit` takes the steps, its caller logs, saves, draws samples and stops."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from diffusion.config import OptimizationConfig
from diffusion.ema import EMA

Share = TypeVar("Share")


@dataclass(kw_only=True, eq=False)
class TrainingState:
    """Everything that a training needs to go on, beside its data.

    No random state is in it: randomness is a function of `images_seen` (`diffusion.randomness`).
    """

    module: nn.Module
    """Whose parameters are trained; not wrapped in DDP."""
    optimizer: torch.optim.AdamW
    """Fused: it can skip a step without asking the device (`fit`)."""
    ema: EMA
    skipped: Int[Tensor, ""]
    """Steps so far whose gradient was not finite and which changed nothing; on the module's device."""
    images_seen: int = 0
    """Over all ranks."""

    @classmethod
    def start(cls, module: nn.Module, optimization: OptimizationConfig) -> TrainingState:
        """A training that has seen nothing, of a module that is on its device already."""
        device = next(module.parameters()).device
        return cls(
            module=module,
            optimizer=optimization.build(module),
            ema=EMA(module, width=optimization.ema),
            skipped=torch.zeros((), dtype=torch.int64, device=device),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """All of it as one flat dictionary of tensors: the live ones, so copy them before the next step."""
        tensors = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            slots = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{slot}": tensor for slot, tensor in slots.items()}
        return tensors | {"skipped": self.skipped, "images_seen": torch.tensor(self.images_seen)}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies from the dictionary that `state_dict` gave, possibly on another device."""
        self.module.load_state_dict(_under("module.", tensors))
        self.ema.load_state_dict(_under("ema.", tensors))
        parameters = dict(self.module.named_parameters())
        self.optimizer.state.clear()
        for key, tensor in _under("optimizer.", tensors).items():
            name, _, slot = key.rpartition(".")
            parameter = parameters[name]
            # In the parameter's own memory order: the fused optimizer takes it for granted.
            place = parameter if tensor.shape == parameter.shape else tensor
            restored = torch.empty_like(place, dtype=tensor.dtype, device=parameter.device)
            self.optimizer.state[parameter][slot] = restored.copy_(tensor)
        self.skipped.copy_(tensors["skipped"])
        self.images_seen = int(tensors["images_seen"])


@dataclass(frozen=True, kw_only=True, eq=False)
class Progress:
    """One optimizer step. Its tensors are on the device: reading one waits for the step to end."""

    images_seen: int
    """After the step, over all ranks."""
    batch: int
    loss: Float[Tensor, ""]
    """Mean over this rank's share, before the step."""
    grad_norm: Float[Tensor, ""]
    """Of the global batch, before clipping."""
    lr: float
    skipped: Int[Tensor, ""]
    """Steps so far that changed nothing because the gradient was not finite."""

    def every(self, images: int | None) -> bool:
        """Whether this step reached or passed a multiple of `images`; never if None."""
        if images is None:
            return False
        return self.images_seen // images > (self.images_seen - self.batch) // images


def fit(
    state: TrainingState,
    batches: Iterable[Share],
    loss: Callable[[Share], Float[Tensor, " n"]],
    *,
    optimization: OptimizationConfig,
    batch: int,
    target_images: int,
) -> Iterator[Progress]:
    """Trains until `target_images` or just past it, one item a step; nothing waits for the device.

    Between two items the state is whole: save it, or drop the generator and go on later with a new one, and
    the numbers are those of an unbroken training. DDP averages gradients over ranks, so each rank's sum of
    losses is scaled by ranks / batch: the gradient is that of the global mean, even if shares differ in size.

    Args:
        batches: this rank's shares of the global batches, from `state.images_seen` on.
        loss: per-sample losses of a share; calls the module, or the DDP around it.
        batch: size of the global batch.

    Raises:
        ValueError: `batches` ended before the target.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    ranks = torch.distributed.get_world_size() if distributed else 1
    parameters = [p for p in state.module.parameters() if p.requires_grad]
    limit = float("inf") if optimization.clip is None else optimization.clip
    steps = -(-max(0, target_images - state.images_seen) // batch)

    for share in itertools.islice(batches, steps):
        lr = optimization.learning_rate(state.images_seen, batch=batch, target_images=target_images)
        for group in state.optimizer.param_groups:
            group["lr"] = lr

        state.optimizer.zero_grad()
        losses = loss(share)
        (losses.sum() * (ranks / batch)).backward()
        grad_norm = clip_grad_norm_(parameters, limit)

        # After the reduction all ranks have one norm, so all skip or none does. The fused optimizer reads the
        # flag on the device, and leaves parameters, moments and its own count of steps as they are.
        finite = grad_norm.isfinite()
        state.optimizer.found_inf = (~finite).float()  # pyright: ignore[reportAttributeAccessIssue]
        state.optimizer.step()
        state.skipped = state.skipped + ~finite

        state.images_seen += batch
        state.ema.update(state.module, images_seen=state.images_seen, batch=batch)
        yield Progress(
            images_seen=state.images_seen,
            batch=batch,
            loss=losses.detach().mean(),
            grad_norm=grad_norm,
            lr=lr,
            skipped=state.skipped,
        )
    if state.images_seen < target_images:
        raise ValueError(f"the batches ended at {state.images_seen:,} of {target_images:,} images.")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
