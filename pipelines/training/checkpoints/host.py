"""Host memory in which a state waits to be written, kept from one checkpoint to the next.

On a GPU it is page-locked: the copies are queued behind the step that made the state and ahead of the next
one on the same stream, so nobody waits for them but who writes. On the CPU the copy is the cost, and memory
that is already there takes a third of the time that new memory does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.training.checkpoints.pieces import Piece

PAGE = 1 << 16
SPARE = 1 << 20
"""Bytes above what is needed now, for what is added to a state as a training goes."""


class HostMemory:
    """One run of bytes: room for a header, then the pieces one after the other."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._locking = False
        self._locked = 0
        self._event: Any = None
        self._start = self._end = 0

    def take(self, pieces: Sequence[tuple[Piece, Tensor]], *, room: int) -> None:
        """Begins to copy pieces from their live memory; `room`: bytes that a header may have.

        On a GPU it returns before they have arrived.
        """
        import torch

        devices = {memory.device for _, memory in pieces if memory.is_cuda}
        self._start = -(-room // PAGE) * PAGE
        self._end = self._start + sum(piece.size for piece, _ in pieces)
        memory = self._enough(self._end, locked=bool(devices))
        position = self._start
        with torch.no_grad():
            for piece, live in pieces:
                place = memory[position : position + piece.size].view(live.dtype).view(live.shape)
                place.copy_(live, non_blocking=True)
                position += piece.size
        self._event = None
        if devices:
            # Blocking: the thread that waits sleeps, and does not turn on a core that steps need.
            self._event = torch.cuda.Event(blocking=True)
            self._event.record(torch.cuda.current_stream(devices.pop()))

    def arrived(self) -> memoryview:
        """Waits for the copies; the pieces' bytes."""
        if self._event is not None:
            self._event.synchronize()
        return self._view()[self._start : self._end]

    def headed(self, header: bytes) -> memoryview:
        """Header and pieces as one run of bytes."""
        view, begin = self._view(), self._start - len(header)
        if begin < 0:
            raise ValueError(f"a header of {len(header)} bytes, for which {self._start} were left.")
        view[begin : self._start] = header
        return view[begin : self._end]

    def _view(self) -> memoryview:
        assert self._memory is not None
        return self._memory.numpy().data

    def _enough(self, size: int, *, locked: bool) -> Tensor:
        import torch

        if self._memory is None or len(self._memory) < size or self._locking != locked:
            self._release()
            self._memory, self._locking = torch.empty(size + SPARE, dtype=torch.uint8), locked
            if locked:
                # Not `pin_memory=True`, whose allocator rounds up to a power of two. Without the lock (a
                # limit of the machine's) the copies still arrive, and are waited for.
                address = self._memory.data_ptr()
                cudart: Any = torch.cuda.cudart()
                self._locked = 0 if int(cudart.cudaHostRegister(address, len(self._memory), 0)) else address
        return self._memory

    def _release(self) -> None:
        if self._locked:
            import torch

            cudart: Any = torch.cuda.cudart()
            cudart.cudaHostUnregister(self._locked)
            self._locked = 0
        self._memory = None

    def __del__(self) -> None:
        self._release()
