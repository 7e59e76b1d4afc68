"""An autoencoder's encoder on the device at hand: asked for batches, it answers later, and every answer is
finite or says that it is not."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch

    from diffusion.autoencoders.autoencoder import Autoencoder

Precision = Literal["float32", "bfloat16", "float16"]
_SHAPES = 256
"""Sizes of images that may each have a compiled graph."""
_INFINITE = 0x7C00
"""Exponent bits of half precision that only infinities and not-a-numbers have all of."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """What became of a batch."""

    moments: np.ndarray
    """fp16 [b, 2c, h, w]."""
    finite: np.ndarray
    """bool [b]; what is stored is finite, after a second try in float32 where it takes one."""
    retried: np.ndarray
    """bool [b]; whether it came from that second try."""


class Encoder:
    """Moments of uint8 images, in the arithmetic asked for.

    An image whose moments are not finite, or lie beyond what half precision stores (65,504), is taken from a
    second call in float32 (SDXL's autoencoder overflows so in float16); the others of its batch are not, as
    an image must not depend on its company.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        *,
        device: torch.device,
        precision: Precision = "float32",
        compiled: bool = False,
        tile: int = 1024,
    ) -> None:
        import torch

        from diffusion.autoencoders.tiling import TiledAutoencoder

        self.device = device
        # Channels-last, as the decoded pixels lie: a tenth faster on a CPU, and what tensor cores take.
        whole: Any = autoencoder.eval().requires_grad_(False)
        whole = whole.to(device=device, memory_format=torch.channels_last)
        self.dtype = getattr(torch, precision)
        self.lowered = self.dtype != torch.float32 or compiled
        """Whether a second try in plain float32 is another one."""
        network = copy.deepcopy(whole).to(self.dtype) if self.lowered else whole
        if compiled:
            limits: Any = torch._dynamo.config  # pyright: ignore[reportAttributeAccessIssue]
            limits.recompile_limit = max(limits.recompile_limit, _SHAPES)
            network.encode = torch.compile(network.encode, dynamic=False)
        self._network = TiledAutoencoder(network, tile=tile)
        self._whole = TiledAutoencoder(whole, tile=tile)
        self._streams = None
        if device.type == "cuda":
            self._streams = (torch.cuda.Stream(device), torch.cuda.Stream(device))

    def start(self, images: torch.Tensor, *, flip: bool = False) -> Pending:
        """Of uint8 [b, h, w, 3] on the CPU; pinned if the device is a GPU: it answers before it is done."""
        import torch

        with torch.inference_mode():
            if self._streams is None:
                moments = self._moments(self._network, images, flip=flip, dtype=self.dtype)
                return Pending(self, images, flip, moments, None)
            up, down = self._streams
            main = torch.cuda.current_stream(self.device)
            with torch.cuda.stream(up):
                there = images.to(self.device, non_blocking=True)
            main.wait_stream(up)
            there.record_stream(main)
            moments = self._moments(self._network, there, flip=flip, dtype=self.dtype)
            down.wait_stream(main)
            with torch.cuda.stream(down):
                host = torch.empty(moments.shape, dtype=moments.dtype, pin_memory=True)
                host.copy_(moments, non_blocking=True)
                moments.record_stream(down)
                done = torch.cuda.Event(blocking=True)
                done.record(down)
            return Pending(self, images, flip, host, done)

    def again(self, images: torch.Tensor, *, flip: bool) -> np.ndarray:
        """The same in float32, at once."""
        import torch

        with torch.inference_mode():
            images = images.to(self.device)
            return self._moments(self._whole, images, flip=flip, dtype=torch.float32).cpu().numpy()

    def _moments(
        self, network: Autoencoder, images: torch.Tensor, *, flip: bool, dtype: torch.dtype
    ) -> torch.Tensor:
        import torch

        if flip:
            images = images.flip(2)
        found = network.encode(images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).to(dtype))
        return torch.cat([found.mean, found.std], dim=1).half()


class Pending:
    """A batch that is being encoded."""

    def __init__(
        self, encoder: Encoder, images: torch.Tensor, flip: bool, moments: torch.Tensor, done: Any
    ) -> None:
        self._encoder, self._images, self._flip = encoder, images, flip
        self._moments, self._done = moments, done

    def result(self) -> Encoded:
        """Waits for the device, where it has not finished."""
        import numpy as np

        if self._done is not None:
            self._done.synchronize()
        moments = self._moments.numpy()
        finite, retried = is_finite(moments), np.zeros(len(moments), bool)
        if not finite.all() and self._encoder.lowered:
            again, failed = self._encoder.again(self._images, flip=self._flip), ~finite
            moments = np.where(failed[:, None, None, None], again, moments)
            retried = failed & is_finite(again)
            finite = finite | retried
        return Encoded(moments, finite, retried)


def is_finite(moments: np.ndarray) -> np.ndarray:
    """Of each row of fp16 [b, ...]: bool [b]. By the bits, which takes a tenth of the time."""
    import numpy as np

    bits = moments.reshape(len(moments), -1).view(np.uint16) & np.uint16(_INFINITE)
    return bits.max(axis=1) != _INFINITE
