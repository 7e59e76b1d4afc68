from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion.autoencoders.autoencoder import Autoencoder
from diffusion.latents import Moments
from pipelines.encoding.network import Encoder, Precision, is_finite


class Overflowing(Autoencoder):
    """Squares what it sees, 50 times over: beyond float16 for bright images, as SDXL's autoencoder is inside;
    and no number at all for white ones."""

    factor, latent_channels, reach = 4, 3, (0, 0)

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(500.0))
        self.calls: list[torch.dtype] = []

    def encode(self, images: Tensor) -> Moments:
        self.calls.append(images.dtype)
        x = nn.functional.avg_pool2d(images, 4)
        large = (x.clamp(min=0) * self.scale) ** 2  # to 250,000
        mean = x + large / self.scale**2
        mean = torch.where(x > 0.99, torch.full_like(mean, float("nan")), mean)
        return Moments(mean=mean, std=torch.full_like(mean, 0.1))

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def images(*levels: int) -> Tensor:
    return torch.stack([torch.full((8, 12, 3), level, dtype=torch.uint8) for level in levels])


def encoder(network: Autoencoder, precision: Precision) -> Encoder:
    return Encoder(network, device=torch.device("cpu"), precision=precision)


def truth(level: int) -> float:
    x = level / 127.5 - 1
    return x + max(x, 0) ** 2


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
def test_what_overflows_is_encoded_again_in_float32(precision: Precision) -> None:
    found = encoder(Overflowing(), precision).start(images(20, 240, 100, 255)).result()
    assert found.moments.dtype == np.float16
    assert found.moments.shape == (4, 6, 2, 3)
    assert found.finite.tolist() == [True, True, True, False]
    # 500 * .88 squared is 194,000: beyond float16 alone.
    assert found.retried.tolist() == [False, precision == "float16", False, False]
    for row, level in enumerate((20, 240, 100)):
        tolerance = 1e-3 if found.retried[row] or precision == "float32" else 1e-2
        assert found.moments[row, :3] == pytest.approx(truth(level), abs=tolerance, rel=tolerance)


def test_one_that_overflows_changes_nothing_of_its_company() -> None:
    """Of the second call only what had to be made again is taken: an image is the same in any batch."""
    network = Overflowing()
    with_bright = encoder(network, "float16").start(images(20, 240, 100)).result()
    without = encoder(network, "float16").start(images(20, 30, 100)).result()
    assert np.array_equal(with_bright.moments[[0, 2]], without.moments[[0, 2]])
    assert not without.retried.any()


def test_without_overflow_there_is_no_second_call() -> None:
    network = Overflowing()
    encoder(network, "float32").start(images(20, 255)).result()
    assert network.calls == [torch.float32]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_half_precision_cannot_store_is_said(precision: Precision) -> None:
    """Moments beyond 65,504 are no numbers in fp16, however they were computed."""

    class Large(Overflowing):
        def encode(self, images: Tensor) -> Moments:
            found = super().encode(images)
            return Moments(mean=found.mean * 1e5, std=found.std)

    found = encoder(Large(), precision).start(images(240, 127)).result()
    assert found.finite.tolist() == [False, True]


def test_flips_are_of_the_pixels() -> None:
    given = torch.randint(0, 200, (2, 8, 12, 3), dtype=torch.uint8)
    found = encoder(Overflowing(), "float32")
    plain, flipped = found.start(given).result(), found.start(given, flip=True).result()
    assert np.array_equal(plain.moments[..., ::-1], flipped.moments)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_near_float32(precision: Precision) -> None:
    from diffusion.config import KLAutoencoderConfig

    torch.manual_seed(0)
    network = KLAutoencoderConfig(latent_channels=2, channels=8, multipliers=(1, 2), stem=2).build()
    given = torch.randint(0, 255, (2, 16, 24, 3), dtype=torch.uint8)
    exact = encoder(network, "float32").start(given).result().moments
    found = encoder(network, precision).start(given).result()
    assert not found.retried.any()
    assert next(network.parameters()).dtype == torch.float32
    error = np.abs(found.moments.astype(np.float32) - exact.astype(np.float32)).max()
    assert 0 < error < {"float16": 5e-3, "bfloat16": 3e-2}[precision]


def test_finite_is_what_numpy_says() -> None:
    values = np.array(
        [[0, 65504], [np.inf, 0], [-np.inf, 1], [np.nan, 1], [-65504, 6e-8], [-0.0, 1]], np.float16
    )
    assert np.array_equal(is_finite(values), np.isfinite(values).all(axis=1))
