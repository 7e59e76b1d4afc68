"""What the training loop asks of whatever it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from diffusion.training import Rival
    from pipelines.shuffling import ShuffleConfig
    from pipelines.stream import Line


class Share(Protocol):
    """One rank's part of a global batch."""

    def to(self, device: torch.device) -> Any: ...


class Task(Protocol):
    """A module, its data, its loss, and how to look at it. All randomness is a function of positions."""

    @property
    def module(self) -> nn.Module:
        """Everything that is trained, called by `losses` through `forward` (DDP hears nothing else)."""
        ...

    @property
    def length(self) -> int:
        """Training samples; an epoch is a permutation of them."""
        ...

    @property
    def groups(self) -> tuple[np.ndarray, ...]:
        """Samples of each size, if there are several: a batch is of one of them (`TrainingStream`)."""
        ...

    def share(self, positions: np.ndarray, indices: np.ndarray) -> Share:
        """Samples `indices`, at global `positions` of the training stream; CPU tensors, made in a thread."""
        ...

    def losses(self, module: nn.Module, share: Any) -> Tensor:
        """Per-sample losses [b]; `module` is `self.module` or the DDP around it."""
        ...

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Held-out figures of a module with averaged weights; empty without a validation split."""
        ...

    def picture(self, module: nn.Module) -> bytes | None:
        """PNG that shows how far it is."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the snapshot's record is to say of what the task found in its data; JSON types."""
        ...

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        """What goes into the snapshot."""
        ...


@runtime_checkable
class Ordered(Task, Protocol):
    """A task that says more of the order of its samples than their number and groups."""

    @property
    def lines(self) -> tuple[Line, ...]:
        """Datasets that take turns, or the one; together `length` samples."""
        ...

    @property
    def shuffle(self) -> ShuffleConfig: ...

    @property
    def remote(self) -> bool:
        """Whether samples are to be fetched before their shares are made."""
        ...

    def fetch(self, indices: np.ndarray) -> None:
        """Brings what the samples take to this machine; for several threads at once."""
        ...


@runtime_checkable
class Adapted(Task, Protocol):
    """A task that may train adapters beside weights that stay."""

    def beside(self, module: nn.Module) -> dict[str, dict[str, Tensor]]:
        """By file, what goes into the snapshot beside `weights`."""
        ...


@runtime_checkable
class Contested(Task, Protocol):
    """A task that may train its module against a part of itself, or only some of it."""

    @property
    def rival(self) -> Rival | None: ...

    @property
    def untouched(self) -> frozenset[str]:
        """Names of the snapshot's weights that stay what they were; they are stored without rounding."""
        ...

    def figures(self) -> dict[str, Tensor]:
        """Of this rank's last step, beside its loss; on the device."""
        ...


@runtime_checkable
class Judged(Task, Protocol):
    """A task whose outcome can be compared with held-out samples."""

    def judge(self, module: nn.Module) -> dict[str, float]:
        """Figures of a module with averaged weights."""
        ...

    def about(self) -> dict[str, Any]:
        """What these figures are of, and the best that they can be: JSON types."""
        ...
