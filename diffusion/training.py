"""Training as a generator: `fit` takes the steps, its caller logs, saves, draws samples and stops."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from diffusion import sharding
from diffusion.accumulation import micro_batches
from diffusion.config import OptimizationConfig
from diffusion.ema import EMA
from diffusion.optimizers import Muon
from diffusion.spikes import Spikes

Share = TypeVar("Share")


class _Ended:
    """What stands where there is no further batch."""


_ENDED = _Ended()


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A part of the module that the rest learns against, and that nobody uses afterwards: a discriminator.

    Its gradient has a norm and a limit of its own, and its weights are not averaged.
    """

    name: str
    """Of the submodule."""
    start: int = 0
    """Images seen from which on it learns; until then its gradients are dropped, and it stays as it was."""
    rate: float = 1.0
    """Its learning rate over that of the rest."""

    def owns(self, parameter: str) -> bool:
        """Whether a parameter of this name in the module is the rival's."""
        return parameter.startswith(f"{self.name}.")


@dataclass(kw_only=True, eq=False)
class TrainingState:
    """Everything that a training needs to go on, beside its data.

    No random state is in it: randomness is a function of `images_seen` (`diffusion.randomness`).
    """

    module: nn.Module
    """Whose parameters are trained; not wrapped in DDP."""
    optimizers: tuple[torch.optim.Optimizer, ...]
    """Each has parameters of its own, and skips a step without asking the device where `found_inf` is 1."""
    ema: EMA
    skipped: Int[Tensor, ""]
    """Steps so far whose gradient was not finite, or a spike, and which changed nothing; on the module's
    device."""
    images_seen: int = 0
    """Over all ranks."""
    rival: Rival | None = None
    spikes: Spikes | None = None
    """Tells which gradients are out of all proportion; any finite one is good if None."""

    @classmethod
    def start(
        cls,
        module: nn.Module,
        optimization: OptimizationConfig,
        *,
        rival: Rival | None = None,
        spike: float | None = None,
    ) -> TrainingState:
        """A training that has seen nothing, of a module that is on its device, and sharded if it is to be.

        Args:
            spike: gradient norm over the typical one above which a step is to change nothing.
        """
        device = next(module.parameters()).device
        frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
        state = cls(
            module=module,
            optimizers=optimization.build(module),
            ema=EMA(
                module,
                widths=(optimization.ema, *optimization.ema_others),
                spared=lambda name: name in frozen or (rival is not None and rival.owns(name)),
            ),
            skipped=torch.zeros((), dtype=torch.int64, device=device),
            rival=rival,
            spikes=None if spike is None else Spikes.start(spike, device=device),
        )
        if rival is not None:
            _set_apart(state.optimizers, state.parties()[1], rate=rival.rate)
        return state

    def parties(self) -> tuple[list[Tensor], list[Tensor]]:
        """Trained parameters: the module's own, and the rival's."""
        trained = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        owned = {name for name, _ in trained if self.rival is not None and self.rival.owns(name)}
        return [p for name, p in trained if name not in owned], [p for name, p in trained if name in owned]

    def state_dict(self, *, frozen: bool = True) -> dict[str, Tensor]:
        """All of it as one flat dictionary of tensors: the live ones, so copy them before the next step.

        With FSDP2 they are sharded; `diffusion.sharding.gathered` makes them what one rank alone would have.

        Args:
            frozen: with the parameters that are not trained, which have no averages, and the buffers of parts
                that have no others. Whoever loads the state may have them already, as most of a network of
                which only adapters are trained.
        """
        left_out = set() if frozen else self._frozen()
        tensors = {f"module.{n}": t for n, t in self.module.state_dict().items() if n not in left_out}
        tensors |= {f"ema.{n}": t for n, t in self.ema.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            for optimizer in self.optimizers:
                slots = optimizer.state.get(parameter, {})
                tensors |= {f"optimizer.{name}.{slot}": tensor for slot, tensor in slots.items()}
        if self.spikes is not None:
            tensors["spikes"] = self.spikes.seen
        return tensors | {"skipped": self.skipped, "images_seen": torch.tensor(self.images_seen)}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies from the dictionary that `state_dict` gave, possibly on another device, sharded or whole.

        Parameters that are not trained stay as they are where it has none of them.
        """
        mine, frozen = self.module.state_dict(), self._frozen()
        given = {n: t for n, t in mine.items() if n in frozen} | _under("module.", tensors)
        self.module.load_state_dict({n: sharding.spread(t, mine.get(n)) for n, t in given.items()})
        averages = _under("ema.", tensors)  # once those of frozen parameters were kept, too
        self.ema.load_state_dict({n: t for n, t in averages.items() if _averaged(n) not in frozen})
        parameters = dict(self.module.named_parameters())
        owners = {p: o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        for optimizer in self.optimizers:
            optimizer.state.clear()
        for key, tensor in _under("optimizer.", tensors).items():
            name, _, slot = key.rpartition(".")
            parameter = parameters[name]
            # In the parameter's own memory order: the fused optimizer takes it for granted.
            place = parameter if tensor.shape == parameter.shape else tensor
            restored = torch.empty_like(place, dtype=tensor.dtype, device=parameter.device)
            sharding.copy(restored, tensor)
            owners[parameter].state[parameter][slot] = restored
        if self.spikes is not None and "spikes" in tensors:
            self.spikes.seen.copy_(tensors["spikes"])
        self.skipped.copy_(tensors["skipped"])
        self.images_seen = int(tensors["images_seen"])

    def _frozen(self) -> set[str]:
        """Names of the parameters that are not trained, and of the buffers of parts that have no others."""
        found = {name for name, p in self.module.named_parameters() if not p.requires_grad}
        for place, part in self.module.named_modules():
            own = [name for name, _ in part.named_buffers(recurse=False)]
            learns = [p.requires_grad for p in part.parameters()] if own else []
            if learns and not any(learns):
                found |= {f"{place}.{name}" if place else name for name in own}
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Progress:
    """One optimizer step. Its tensors are on the device: reading one waits for the step to end."""

    images_seen: int
    """After the step, over all ranks."""
    batch: int
    loss: Float[Tensor, ""]
    """Mean over this rank's share, before the step."""
    grad_norm: Float[Tensor, ""]
    """Of the global batch, before clipping; without the rival's."""
    lr: float
    skipped: Int[Tensor, ""]
    """Steps so far that changed nothing because the gradient was not finite, or a spike."""
    rival_grad_norm: Float[Tensor, ""] | None = None
    """The rival's own, once it learns."""

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
    autocast: torch.dtype | None = None,
    accumulate: int = 1,
    ddp: sharding.Quiet | None = None,
    skip: Callable[[int], bool] = lambda images_seen: False,
) -> Iterator[Progress]:
    """Trains until `target_images` or just past it, one item a step; nothing waits for the device.

    Between two items the state is whole: save it, or drop the generator and go on later with a new one, and
    the numbers are those of an unbroken training. DDP and FSDP2 average gradients over ranks, so each rank's
    sum of losses is scaled by ranks / batch: the gradient is that of the global mean, even if shares differ
    in size. With FSDP2, `state.module` is what `fully_shard` was given, before the state started.

    Args:
        batches: this rank's shares of the global batches, from `state.images_seen` on.
        loss: per-sample losses of a share; calls the module, or the DDP around it.
        batch: size of the global batch.
        autocast: of the losses' arithmetic, `torch.bfloat16` say; weights, gradients and averages stay fp32.
        accumulate: micro-batches that a share is cut into (`micro_batches`), one in memory at a time. Their
            gradients add up to that of the whole.
        ddp: the DDP that `loss` calls, or what `sharding.shard` gave, which then talks to the other ranks
            once a step and not once a micro-batch.
        skip: whether the batch that begins at so many images is left out: it counts as seen, changes nothing,
            and is not among `batches`.

    Raises:
        ValueError: `batches` ended before the target, or a share cannot be cut into so many.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    ranks = torch.distributed.get_world_size() if distributed else 1
    # On all ranks alike, and not on the one whose share is the smallest while the others wait for it.
    if batch < ranks * accumulate:
        raise ValueError(f"a batch of {batch} cannot be cut into {accumulate} for each of {ranks} ranks.")
    parameters, opposed = state.parties()
    device = parameters[0].device.type
    limit = float("inf") if optimization.clip is None else optimization.clip
    shares = iter(batches)

    while state.images_seen < target_images:
        if skip(state.images_seen):
            state.images_seen += batch
            continue
        share = next(shares, _ENDED)
        if isinstance(share, _Ended):
            raise ValueError(f"the batches ended at {state.images_seen:,} of {target_images:,} images.")
        factor = optimization.factor(state.images_seen, batch=batch, target_images=target_images)
        lr, matrix_lr = optimization.rates(factor)
        for optimizer in state.optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = (matrix_lr if isinstance(optimizer, Muon) else lr) * group.get("rate", 1.0)

        losses: list[Tensor] = []
        for part in micro_batches(share, accumulate):
            silent = ddp is not None and len(losses) < accumulate - 1
            with ddp.no_sync() if ddp is not None and silent else contextlib.nullcontext():
                with torch.autocast(device, autocast, enabled=autocast is not None):
                    of_part = loss(part)
                (of_part.sum() * (ranks / batch)).backward()
            losses.append(of_part.detach())
        grad_norm = sharding.whole(clip_grad_norm_(parameters, limit))

        # After the reduction all ranks have one norm, so all skip or none does. The optimizers read the flag
        # on the device, and leave parameters, moments and their own count of steps as they are.
        good, rival_norm = grad_norm.isfinite(), None
        if state.spikes is not None:
            good = good & ~state.spikes.among(grad_norm)
        if state.rival is not None and state.images_seen < state.rival.start:
            for parameter in opposed:
                parameter.grad = None
        elif opposed:
            rival_norm = sharding.whole(clip_grad_norm_(opposed, limit))
            good = good & rival_norm.isfinite()
        for optimizer in state.optimizers:
            optimizer.found_inf = (~good).float()  # pyright: ignore[reportAttributeAccessIssue]
            optimizer.step()
        state.skipped = state.skipped + ~good
        if state.spikes is not None:
            state.spikes.see(grad_norm, good)

        state.images_seen += batch
        state.ema.update(state.module, images_seen=state.images_seen, batch=batch)
        yield Progress(
            images_seen=state.images_seen,
            batch=batch,
            loss=torch.cat(losses).mean(),
            grad_norm=grad_norm,
            rival_grad_norm=rival_norm,
            lr=lr,
            skipped=state.skipped,
        )


def _set_apart(
    optimizers: Iterable[torch.optim.Optimizer], parameters: Iterable[Tensor], *, rate: float
) -> None:
    """These parameters as groups of their own, whose learning rate is `rate` times the others'."""
    chosen = {id(p) for p in parameters}
    for optimizer in optimizers:
        for group in list(optimizer.param_groups):
            theirs = [p for p in group["params"] if id(p) in chosen]
            if theirs:
                group["params"] = [p for p in group["params"] if id(p) not in chosen]
                optimizer.param_groups.append({**group, "params": theirs, "rate": rate})


def _averaged(name: str) -> str:
    """The parameter that an average of this name is of."""
    return name.rpartition("/")[2]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
