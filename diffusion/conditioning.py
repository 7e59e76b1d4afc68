"""What a network is told about the image to make, beside the time: caption, class, small image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, kw_only=True, eq=False)
class Nothing:
    """What a text encoder makes of an empty caption."""

    text: Float[Tensor, "n d"]
    pooled: Float[Tensor, " e"]

    def to(self, device: torch.device | str) -> Nothing:
        return Nothing(text=self.text.to(device), pooled=self.pooled.to(device))


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditioning:
    """The conditions of a batch. A kind that the model does not know is None, and all None is unconditional.

    A condition can also be absent from one sample (dropped in training, unknown in use): no token of its mask
    is set and its pooled vector is zero, or its label is `classes`. With `nothing`, an absent caption is the
    encoder's own empty one instead.
    """

    text: Float[Tensor, "b n d"] | None = None
    """Token states of the caption, padded."""
    mask: Bool[Tensor, "b n"] | None = None
    """True where `text` holds a token; goes with `text`."""
    pooled: Float[Tensor, "b e"] | None = None
    """The caption as one vector."""
    label: Int[Tensor, " b"] | None = None
    """Class ids in [0, classes]; `classes` itself means none."""
    classes: int = 0
    """Number of classes that the model knows."""
    low: Float[Tensor, "b c h w"] | None = None
    """For upscalers: latents of the small image, enlarged to the size of what is drawn; see `Upscaling`."""
    level: Float[Tensor, " b"] | None = None
    """How much noise was mixed into `low`, 0 to 1; goes with it."""
    size: Float[Tensor, "b 6"] | None = None
    """In px: height and width of the source, top and left of the crop in it, height and width to draw (Podell
    et al., 2023, "SDXL", section 2.2). Six zeros where it is unknown."""
    route: Int[Tensor, "b k"] | None = None
    """Ids of the tokens that take a transformer's middle blocks, in training (`kept_tokens`); None: all."""

    nothing: Nothing | None = None
    """What stands in for a dropped caption; None: no token and a pooled vector of zeros."""

    def __post_init__(self) -> None:
        if (self.text is None) != (self.mask is None):
            raise ValueError("text and mask go together: give both or neither.")
        if (self.low is None) != (self.level is None):
            raise ValueError("low and level go together: give both or neither.")

    @property
    def empty(self) -> bool:
        """Whether there is nothing that can be dropped and guided: no caption and no class."""
        return self.text is None and self.pooled is None and self.label is None

    def __len__(self) -> int:
        """The batch size; ValueError where there is no condition of any kind."""
        for tensor in self._tensors().values():
            return len(tensor)
        raise ValueError("an unconditional batch does not know its size: take it from the latents.")

    def __getitem__(self, index: slice | Tensor) -> Conditioning:
        return replace(self, **{name: tensor[index] for name, tensor in self._tensors().items()})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Conditioning:
        moved = {n: t.to(device, non_blocking=non_blocking) for n, t in self._tensors().items()}
        nothing = self.nothing.to(device) if self.nothing is not None else None
        return replace(self, **moved, nothing=nothing)

    def drop(
        self, *, text: Bool[Tensor, " b"] | None = None, label: Bool[Tensor, " b"] | None = None
    ) -> Conditioning:
        """The caption dropped where `text` is True, the class where `label` is (Ho and Salimans, 2022)."""
        changes: dict[str, Tensor] = {}
        if text is not None and self.nothing is not None:
            changes |= self._emptied(text, self.nothing)
        elif text is not None and self.mask is not None:
            changes["mask"] = self.mask & ~text[:, None]
        if text is not None and self.pooled is not None and "pooled" not in changes:
            changes["pooled"] = self.pooled.masked_fill(text[:, None], 0)
        if label is not None and self.label is not None:
            changes["label"] = self.label.masked_fill(label, self.classes)
        return replace(self, **changes)

    def null(self) -> Conditioning:
        """Captions and classes dropped from all samples; a small image and the size stay."""
        if self.empty:
            return self
        everywhere = torch.ones(
            len(self), dtype=torch.bool, device=next(iter(self._tensors().values())).device
        )
        return self.drop(text=everywhere, label=everywhere)

    def cat(self, other: Conditioning) -> Conditioning:
        """This batch, then the other, which must have the same kinds; captions are padded to the longer."""
        first, second = self._tensors(), other._tensors()
        if first.keys() != second.keys() or self.classes != other.classes:
            raise ValueError(
                f"cannot join conditions {sorted(first)} of {self.classes} classes "
                f"and {sorted(second)} of {other.classes} classes."
            )
        if self.text is not None and other.text is not None:
            length = max(self.text.shape[1], other.text.shape[1])
            first, second = _lengthened(first, length), _lengthened(second, length)
        return replace(self, **{name: torch.cat([first[name], second[name]]) for name in first})

    def _emptied(self, where: Bool[Tensor, " b"], nothing: Nothing) -> dict[str, Tensor]:
        """Caption and pooled vector, the encoder's own empty ones where `where` is True."""
        changes: dict[str, Tensor] = {}
        if self.text is not None and self.mask is not None:
            found = {"text": self.text, "mask": self.mask}
            found = _lengthened(found, max(self.text.shape[1], len(nothing.text)))
            length = found["text"].shape[1]
            text = pad(nothing.text, (0, 0, 0, length - len(nothing.text))).to(self.text)
            mask = torch.arange(length, device=where.device) < len(nothing.text)
            changes["text"] = torch.where(where[:, None, None], text, found["text"])
            changes["mask"] = torch.where(where[:, None], mask, found["mask"])
        if self.pooled is not None:
            changes["pooled"] = torch.where(where[:, None], nothing.pooled.to(self.pooled), self.pooled)
        return changes

    def _tensors(self) -> dict[str, Tensor]:
        named = {"text": self.text, "mask": self.mask, "pooled": self.pooled, "label": self.label}
        named |= {"low": self.low, "level": self.level, "size": self.size, "route": self.route}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def _lengthened(tensors: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    missing = length - tensors["text"].shape[1]
    longer = {"text": pad(tensors["text"], (0, 0, 0, missing)), "mask": pad(tensors["mask"], (0, missing))}
    return tensors | longer
