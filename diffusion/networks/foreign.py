"""Networks made elsewhere, called as ours are: modules of diffusers' shapes, given from outside.

Each takes (noisy latents, what the preconditioning tells of the time, conditions) and gives what the network
predicts. No library is asked for here; a module is known by how it is called.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from diffusion.conditioning import Conditioning


class Foreign(nn.Module, ABC):
    """A module behind our signature.

    Args:
        model: the module.
        channels: of the latents; what it gives beyond them (a learned variance) is left out, and gets no
            gradient.
        chain: timesteps of the chain that it was trained on, whose n-th (from 0) is our time (n + 1) / chain;
            None on the straight path, where it is told the time itself.
        tokens: of a caption, always so many; None where captions differ and a mask says which are there.
    """

    def __init__(
        self, model: nn.Module, *, channels: int, chain: int | None = None, tokens: int | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.channels, self.chain, self.tokens = channels, chain, tokens
        self.arithmetic: torch.dtype | None = None
        """Autocast's, for a module whose matrices are held in it; that of the surroundings if None."""

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        held = self.arithmetic is not None
        with torch.autocast(x.device.type, self.arithmetic) if held else contextlib.nullcontext():
            return self.predict(x, self.timestep(t), conditioning)[:, : self.channels]

    @abstractmethod
    def predict(
        self, x: Float[Tensor, "b c h w"], timestep: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b k h w"]: ...

    def timestep(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """In the network's own unit; those of its chain are whole numbers to the last bit."""
        if self.chain is None:
            return t
        n = (t * self.chain - 1).clamp(min=0)
        return torch.where((n - n.round()).abs() < 1e-3, n.round(), n)

    def caption(
        self, conditioning: Conditioning
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n"] | None]:
        """Token states, zero where there is no token, and the mask where one is needed."""
        if conditioning.text is None or conditioning.mask is None:
            raise ValueError("this network reads captions: give it `text`.")
        states = conditioning.text * conditioning.mask[..., None]
        if self.tokens is None:
            return states, conditioning.mask.to(states.dtype)
        return pad(states, (0, 0, 0, self.tokens - states.shape[1])), None

    def pooled(self, conditioning: Conditioning) -> Float[Tensor, "b e"]:
        if conditioning.pooled is None:
            raise ValueError("this network reads captions' pooled vectors: give it `text`.")
        return conditioning.pooled


class ConditionedUNet(Foreign):
    """UNet2DConditionModel: Stable Diffusion 1 and 2, and SDXL with its pooled vector and sizes."""

    def __init__(
        self,
        model: nn.Module,
        *,
        channels: int,
        chain: int | None = None,
        tokens: int | None = None,
        factor: int = 8,
        sized: bool = False,
    ) -> None:
        """`sized`: whether it is told pooled vector and sizes; `factor`: px a latent, for sizes that nobody
        told."""
        super().__init__(model, channels=channels, chain=chain, tokens=tokens)
        self.factor, self.sized = factor, sized

    def predict(
        self, x: Float[Tensor, "b c h w"], timestep: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b k h w"]:
        states, mask = self.caption(conditioning)
        added = None
        if self.sized:
            sizes = conditioning.size
            if sizes is None:
                height, width = (side * self.factor for side in x.shape[-2:])
                sizes = x.new_tensor([height, width, 0, 0, height, width]).expand(len(x), 6)
            added = {"text_embeds": self.pooled(conditioning), "time_ids": sizes.to(x.dtype)}
        return self.model(
            x,
            timestep,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]


class PlainUNet(Foreign):
    """UNet2DModel: unconditional, or of classes.

    Args:
        classes: that it knows, 0 for none; one of its own for "no class" is the last, if `absent`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        channels: int,
        chain: int | None = None,
        classes: int = 0,
        absent: bool = False,
    ) -> None:
        super().__init__(model, channels=channels, chain=chain)
        self.classes, self.absent = classes, absent

    def predict(
        self, x: Float[Tensor, "b c h w"], timestep: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b k h w"]:
        label = labelled(conditioning, self.classes, len(x), x.device) if self.classes else None
        if label is not None and not self.absent and bool((label == self.classes).any()):
            raise ValueError("this network knows no image without a class: guide by scale 1, drop no label.")
        return self.model(x, timestep, class_labels=label, return_dict=False)[0]


class ClassTransformer(Foreign):
    """DiTTransformer2DModel: classes, the one behind the last for none."""

    def __init__(
        self, model: nn.Module, *, channels: int, chain: int | None = None, classes: int = 1000
    ) -> None:
        super().__init__(model, channels=channels, chain=chain)
        self.classes = classes

    def predict(
        self, x: Float[Tensor, "b c h w"], timestep: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b k h w"]:
        label = labelled(conditioning, self.classes, len(x), x.device)
        return self.model(x, timestep=timestep, class_labels=label, return_dict=False)[0]


class StableDiffusion3(Foreign):
    """SD3Transformer2DModel: the velocity on the straight path, told 1,000 t."""

    def predict(
        self, x: Float[Tensor, "b c h w"], timestep: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b k h w"]:
        return self.model(
            hidden_states=x,
            encoder_hidden_states=self.caption(conditioning)[0],
            pooled_projections=self.pooled(conditioning),
            timestep=1000 * timestep,
            return_dict=False,
        )[0]


class Flux(Foreign):
    """FluxTransformer2DModel: the velocity on the straight path, of latents folded two by two.

    Args:
        guidance: what a network distilled from a guided one is told; None for one that is told none.
    """

    def __init__(
        self, model: nn.Module, *, channels: int, tokens: int | None = None, guidance: float | None = None
    ) -> None:
        super().__init__(model, channels=channels, tokens=tokens)
        self.guidance = guidance

    def predict(
        self, x: Float[Tensor, "b c h w"], timestep: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b k h w"]:
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        states = self.caption(conditioning)[0]
        places = torch.zeros(height, width, 3, device=x.device, dtype=x.dtype)
        places[..., 1] = torch.arange(height, device=x.device)[:, None]
        places[..., 2] = torch.arange(width, device=x.device)
        told = None if self.guidance is None else x.new_full((len(x),), self.guidance)
        output = self.model(
            hidden_states=pixel_unshuffle(x, 2).flatten(2).mT,
            encoder_hidden_states=states,
            pooled_projections=self.pooled(conditioning),
            timestep=timestep,
            img_ids=places.flatten(0, 1),
            txt_ids=places.new_zeros(states.shape[1], 3),
            guidance=told,
            return_dict=False,
        )[0]
        return pixel_shuffle(output.mT.unflatten(2, (height, width)), 2)


def labelled(conditioning: Conditioning, classes: int, rows: int, device: torch.device) -> Int[Tensor, " b"]:
    """Class ids of which `classes`, the network's own number of them, means none."""
    if conditioning.label is None:
        return torch.full((rows,), classes, dtype=torch.long, device=device)
    return torch.where(conditioning.label == conditioning.classes, classes, conditioning.label)


def steady(model: nn.Module) -> nn.Module:
    """The module without the randomness that it has of its own in training: what is dropped is decided
    outside, by the place of a sample in the training."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if hasattr(part, "dropout_prob"):  # diffusers' classes that are absent at random
            part.dropout_prob = 0.0  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return model
