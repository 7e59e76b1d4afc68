from __future__ import annotations

import subprocess
import sys


def test_every_kind_is_one_graph_and_compiles_in_blocks() -> None:
    """In a process of its own: dynamo does not see through the checks of shapes that tests are run with."""
    code = """
import torch
from diffusion.compilation import compile_blocks
from diffusion.config import *

torch.set_num_threads(1)
levels = (
    DeepCompressionLevel(channels=8, blocks=1),
    DeepCompressionLevel(channels=8, blocks=1, attention=True, scales=(3,)),
)
kinds = [
    (SpatialAutoencoderConfig(channels=(8, 16), groups=4, blocks=1), 10),
    (TinyAutoencoderConfig(encoder_channels=4, decoder_channels=4, encoder_blocks=(1, 1),
                           decoder_blocks=(2, 1)), 6),
    (DeepCompressionAutoencoderConfig(latent_channels=4, head_width=4, encoder=levels, decoder=levels), 6),
]
for config, blocks in kinds:
    torch.manual_seed(0)
    autoencoder = config.build().eval().requires_grad_(False)
    images = torch.rand(1, 3, 8, 8)
    def whole(images):
        return autoencoder.decode(autoencoder.encode(images).mean)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = whole(images)
        compiled = torch.compile(whole, backend="eager", fullgraph=True)(images)
    torch.testing.assert_close(compiled, expected)
    assert compile_blocks(autoencoder, backend="eager") == blocks, (config, blocks)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
