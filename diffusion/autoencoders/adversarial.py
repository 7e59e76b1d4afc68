"""An autoencoder and its discriminator as one module with one loss, so that one loop trains both.

What reconstructions lose is differentiated at the reconstructions themselves: once by what they should be
equal to, once by the discriminator. The two are weighed against each other there, and one backward then takes
the sum to the autoencoder and the discriminator's own loss to the discriminator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.autoencoders.autoencoder import Autoencoder
from diffusion.autoencoders.discriminator import Contest, contest, deception
from diffusion.latents import Moments

LARGEST = 1e4
"""Of the adaptive weight (Esser et al., 2021, code)."""
_DELTA = 1e-6


class Judged(NamedTuple):
    """Logits of a discriminator."""

    leaf: Float[Tensor, "b c h w"]
    """The reconstructions, cut off from the autoencoder, whose gradient can be asked for."""
    made: Float[Tensor, "b 1 i j"]
    real: Float[Tensor, "b 1 i j"]


class Reconstruction(nn.Module):
    """An autoencoder, and its discriminator if it has one, as one call, which is what DDP can see."""

    def __init__(self, autoencoder: Autoencoder, discriminator: nn.Module | None = None) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.discriminator = discriminator

    def forward(
        self, images: Float[Tensor, "b c h w"], noise: Float[Tensor, "b z i j"], *, judged: bool = False
    ) -> tuple[Float[Tensor, "b c h w"], Moments, Judged | None]:
        """Images in [-1, 1] and standard normal noise -> reconstructions of drawn latents, their moments, and
        if they are to be `judged`, logits."""
        moments = self.autoencoder.encode(images)
        made = self.autoencoder.decode(moments.sample(noise))
        if self.discriminator is None:
            return made, moments, None
        if not judged:
            return (made + self._nothing() if _several() else made), moments, None
        leaf = made.detach().requires_grad_()
        return made, moments, Judged(leaf, self.discriminator(leaf), self.discriminator(images))

    def _nothing(self) -> Tensor:
        """0, but with a gradient for the discriminator: DDP waits for one of each parameter."""
        assert self.discriminator is not None
        return torch.stack([p.sum() for p in self.discriminator.parameters()]).sum() * 0.0


class Weighed(NamedTuple):
    """What to descend, and figures of it for people."""

    losses: Float[Tensor, " b"]
    """Their values are the reconstruction's alone, as before there was a discriminator; their gradient is of
    both for the autoencoder, and the discriminator's own for the discriminator."""
    figures: dict[str, Tensor]


def adversarial_losses(
    made: Float[Tensor, "b c h w"],
    judged: Judged,
    reconstruction: Callable[[Float[Tensor, "b c h w"]], Float[Tensor, " b"]],
    *,
    last: Tensor,
    kind: Contest,
    weight: float,
    adaptive: bool,
) -> Weighed:
    """Of reconstructions that a discriminator has judged.

    The adaptive weight is |G_L of the reconstruction losses| / |G_L of the adversarial loss| (Esser et al.,
    2021, equation 7), at most `LARGEST`: of the gradients of the whole global batch, so that it is the same
    on all ranks and for any number of them. Where a share is cut into pieces, each has its own.

    Args:
        reconstruction: what each of the images given to it loses.
        last: weights of the decoder's last layer.
    """
    leaf = judged.leaf
    lost = reconstruction(leaf)
    deceived = deception(kind, judged.made)
    (to_images,) = torch.autograd.grad(lost.sum(), leaf)
    # The graph stays: the discriminator's own loss goes back through it.
    (to_deceive,) = torch.autograd.grad(deceived.sum(), leaf, retain_graph=True)
    scale = made.new_tensor(weight, dtype=torch.float32)
    if adaptive:
        scale = scale * adaptive_weight(made, last, to_images, to_deceive)
    steered = _Steered.apply(made, to_images.float() + scale * to_deceive.float(), lost.detach())
    opposed = contest(kind, judged.real, judged.made)
    figures = {
        "discriminator": opposed.detach().mean(),
        "adversarial": deceived.detach().mean(),
        "adversarial_weight": scale,
    }
    return Weighed(steered + (opposed - opposed.detach()), figures)


def adaptive_weight(
    made: Float[Tensor, "b c h w"],
    last: Tensor,
    to_images: Float[Tensor, "b c h w"],
    to_deceive: Float[Tensor, "b c h w"],
) -> Float[Tensor, ""]:
    """Ratio of two gradients' norms at `last`, given them at the reconstructions that it made."""
    found = [
        torch.autograd.grad(made, last, one, retain_graph=True)[0].float().flatten()
        for one in (to_images, to_deceive)
    ]
    # With the number of samples behind them, because delta is beside the gradient of a mean.
    both = torch.cat([*found, found[0].new_full((1,), len(made))])
    if _several():
        torch.distributed.all_reduce(both)
    wanted, opposed = both[:-1].chunk(2)
    return (wanted.norm() / (opposed.norm() + _DELTA * both[-1])).clamp(max=LARGEST)


def last_layer(autoencoder: Autoencoder) -> Tensor:
    """Weights of the decoder's last convolution. `ValueError` where it has none."""
    decoder = getattr(autoencoder, "decoder", autoencoder)
    convolutions = [m for m in decoder.modules() if isinstance(m, nn.Conv2d)]
    if not convolutions:
        raise ValueError("An autoencoder without a decoder to train has nothing to deceive anyone with.")
    return convolutions[-1].weight


class _Steered(torch.autograd.Function):
    """Values that were found elsewhere, of reconstructions whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, made: Tensor, gradient: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = made.dtype
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *wanted: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (wanted[0].reshape(-1, 1, 1, 1) * gradient).to(ctx.dtype), None, None


def _several() -> bool:
    """Whether there are other ranks to agree with."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    return torch.distributed.get_world_size() > 1
