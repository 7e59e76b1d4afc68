"""Images larger than memory through an autoencoder, in tiles of one shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.autoencoders.autoencoder import Autoencoder
from diffusion.latents import Moments
from diffusion.tiling import ramp, spans


class TiledAutoencoder(Autoencoder):
    """An autoencoder around an autoencoder: what is larger than a tile goes through it tile by tile.

    Where the network's `reach` is known, tiles overlap by twice that and are cut in the middle: the result is
    the untiled one, but for the order of the sums within a convolution. Where it sees all of its input (norms
    over space, attention), or more than a tile, a tile is another image to it: answers are blended where
    tiles overlap, as a denoiser's are (`diffusion.tiling`): without a seam, and near the untiled result.

    All tiles have one shape and lie on the grid of latents, and the last ends with the image: sides need be
    no multiple of the tile. What fits into one tile goes through untouched.
    """

    def __init__(self, autoencoder: Autoencoder, *, tile: int = 1024, overlap: int | None = None) -> None:
        """
        Args:
            tile: its side, px; rounded down to a multiple of the factor.
            overlap: px that neighbours share, at least; if None what `reach` takes, or a quarter of a tile.

        Raises:
            ValueError: the overlap is not below the tile.
        """
        super().__init__()
        self.autoencoder = autoencoder
        self.factor, self.latent_channels = autoencoder.factor, autoencoder.latent_channels
        self.reach = autoencoder.reach
        self.size = tile // self.factor
        """Side of a tile, in latents."""
        around, about = self.reach or (0, 0)
        needed = (2 * -(-around // self.factor), 2 * about)
        self.exact = self.reach is not None and max(needed) < self.size
        """Whether a tile holds all that the network sees around a place; else tiles are blended."""
        asked = -(-(overlap if overlap is not None else 0 if self.exact else tile // 4) // self.factor)
        if asked >= self.size:
            raise ValueError(
                f"Tiles of {tile} px cannot overlap by {overlap} px, on a grid of {self.factor} px."
            )
        self.overlaps = tuple(max(asked, least) if self.exact else asked for least in needed)
        """Latents that tiles share when encoding, and when decoding."""

    def encode(self, images: Float[Tensor, "b c h w"]) -> Moments:
        height, width = (side // self.factor for side in images.shape[-2:])
        if max(height, width) <= self.size:
            return self.autoencoder.encode(images)

        def encoded(rows: slice, columns: slice) -> Tensor:
            moments = self.autoencoder.encode(
                images[..., _scaled(rows, self.factor), _scaled(columns, self.factor)]
            )
            return torch.cat([moments.mean, moments.std], dim=1)

        mean, std = self._joined(encoded, height, width, self.overlaps[0], scale=1).chunk(2, dim=1)
        return Moments(mean=mean, std=std)

    def decode(self, latents: Float[Tensor, "b z i j"]) -> Float[Tensor, "b c h w"]:
        height, width = latents.shape[-2:]
        if max(height, width) <= self.size:
            return self.autoencoder.decode(latents)
        return self._joined(
            lambda rows, columns: self.autoencoder.decode(latents[..., rows, columns]),
            height,
            width,
            self.overlaps[1],
            scale=self.factor,
        )

    def _joined(
        self, call: Callable[[slice, slice], Tensor], height: int, width: int, overlap: int, *, scale: int
    ) -> Tensor:
        """What `call` gives for each tile (rows and columns of latents), put together.

        Args:
            scale: cells of the answer for each latent, along a side.
        """
        down, across = list(spans(height, self.size, overlap)), list(spans(width, self.size, overlap))
        whole = weights = kind = None
        for n, rows in enumerate(down):
            for m, columns in enumerate(across):
                part = call(rows, columns)
                if whole is None or weights is None:
                    kind, shape = part.dtype, (height * scale, width * scale)
                    summed = kind if self.exact else torch.float32
                    whole = torch.zeros(*part.shape[:2], *shape, dtype=summed, device=part.device)
                    weights = torch.zeros(shape, dtype=torch.float32, device=part.device)
                into = _scaled(rows, scale), _scaled(columns, scale)
                if not self.exact:
                    fall = [
                        ramp(span, side * scale, overlap * scale, weights)
                        for span, side in zip(into, (height, width), strict=True)
                    ]
                    weight = fall[0][:, None] * fall[1]
                    whole[..., *into] += weight * part
                    weights[into] += weight
                    continue
                own = [_scaled(_own(of, k), scale) for of, k in ((down, n), (across, m))]
                inner = [slice(o.start - i.start, o.stop - i.start) for o, i in zip(own, into, strict=True)]
                whole[..., *own] = part[..., *inner]
        assert whole is not None
        assert weights is not None
        return whole if self.exact else (whole / weights).to(kind)


def _own(tiles: list[slice], n: int) -> slice:
    """What tile `n` answers for where tiles are cut: up to the middle of what it shares with the next."""
    start = tiles[n].start if n == 0 else (tiles[n - 1].stop + tiles[n].start) // 2
    stop = tiles[n].stop if n + 1 == len(tiles) else (tiles[n].stop + tiles[n + 1].start) // 2
    return slice(start, stop)


def _scaled(span: slice, factor: int) -> slice:
    return slice(span.start * factor, span.stop * factor)
