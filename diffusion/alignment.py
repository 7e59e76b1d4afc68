"""Representation alignment: hidden tokens are drawn towards what a frozen encoder sees of the clean image."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.conditioning import Conditioning
from diffusion.networks.dit import DiT


class Aligned(nn.Module):
    """A transformer with a projector on its tokens after block `depth` (Yu et al., 2025, "REPA").

    The projector is a convolution and not a perceptron (Singh et al., 2025, "iREPA"). It is thrown away after
    training: `network` alone is the model.

    Args:
        depth: blocks before the tokens that are aligned, about a third of them.
        features: channels of the encoder's features.
    """

    def __init__(self, network: DiT, *, depth: int, features: int) -> None:
        super().__init__()
        self.network, self.depth = network, depth
        self.projector = nn.Conv2d(network.embed.out_features, features, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "b c h w"], c_noise: Float[Tensor, " b"], conditioning: Conditioning
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b f i j"]]:
        """The network's output, and what its tokens say of the image."""
        output, tokens = self.network(x, c_noise, conditioning, tap=self.depth)
        rows, columns = (side // self.network.patch for side in x.shape[-2:])
        return output, self.projector(tokens.transpose(1, 2).unflatten(2, (rows, columns)))


def alignment(
    projected: Float[Tensor, "b f i j"], target: Float[Tensor, "b f i j"], *, gamma: float = 0.7
) -> Float[Tensor, " b"]:
    """-cos between tokens and features at the same place, mean over places (Yu et al., 2025).

    Features are normalised over places first, which leaves how they differ within the image and takes away
    what it is of (Singh et al., 2025): target - gamma mean, over its standard deviation.
    """
    mean, std = target.mean((2, 3), keepdim=True), target.std((2, 3), keepdim=True)
    spatial = (target - gamma * mean) / (std + 1e-6)
    return -F.cosine_similarity(projected, spatial, dim=1).flatten(1).mean(1)
