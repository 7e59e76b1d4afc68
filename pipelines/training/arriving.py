"""Numbers on their way from the device, which nobody waits for until they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Arriving:
    """A small tensor as it is now, copied to the host behind what the device has yet to do."""

    def __init__(self, tensor: Tensor) -> None:
        import torch

        self._copied: Any = None
        self._host = tensor
        if tensor.is_cuda:
            # Page-locked: from other memory the copy would wait.
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[Any]:
        """Waits until they are here."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host.tolist()
