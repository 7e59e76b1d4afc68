"""How fast this machine runs the networks of a plan: each for a second or two, on random numbers.

Weights do not decide the time, so networks are built from their configuration alone; text encoders are loaded
where they are at hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

What = Literal["encoding", "coding", "denoising", "captions", "pictures"]
"""Of an autoencoder, its training, a denoiser, a text encoder, an image encoder: the functions below."""
SECONDS = 1.5
"""That a network runs for, after one pass that warms it up; at least three passes."""


class Measuring:
    """Measures each thing once."""

    def __init__(self) -> None:
        self._known: dict[str, float] = {}

    def unit_seconds(self, what: What, config: Any, *, gpu: bool, **given: Any) -> float:
        """Seconds of one core, or of one GPU, for a sample.

        Pools have a process with one thread for each core, training has one with as many threads as cores.

        Raises:
            ValueError: there is no such GPU here, or weights are missing.
        """
        import torch

        asked = f"{what} {config} {gpu} {sorted(given.items())}"
        if asked not in self._known:
            if gpu and not torch.cuda.is_available():
                raise ValueError("it asks for a GPU, and there is none.")
            threads, training = torch.get_num_threads(), what == "coding" or given.get("train", False)
            torch.set_num_threads(threads if training else 1)
            try:
                found = _MEASURES[what](config, gpu=gpu, **given)
            finally:
                torch.set_num_threads(threads)
            self._known[asked] = found * (threads if training and not gpu else 1)
        return self._known[asked]


def encoding(config: Any, *, side: int, batch: int, gpu: bool) -> float:
    """Seconds that an autoencoder's encoder takes for an image of `side` x `side` px."""
    import torch

    device = torch.device("cuda" if gpu else "cpu")
    autoencoder = config.build().eval().to(device).to(memory_format=torch.channels_last)
    images = torch.zeros(batch, 3, side, side, device=device)

    def once() -> Any:
        with torch.inference_mode():
            return autoencoder.encode(images).mean

    return _seconds(once, gpu=gpu) / batch


def coding(config: Any, *, side: int, batch: int, gpu: bool) -> float:
    """Seconds that a training step of an autoencoder takes for an image."""
    import torch

    device = torch.device("cuda" if gpu else "cpu")
    autoencoder = config.build().to(device).to(memory_format=torch.channels_last)
    images = torch.zeros(batch, 3, side, side, device=device)

    def once() -> Any:
        loss = (autoencoder.decode(autoencoder.encode(images).mean) - images).abs().mean()
        loss.backward()
        return loss

    return _seconds(once, gpu=gpu) / batch


def denoising(
    config: Any,
    *,
    channels: int,
    size: int,
    classes: int,
    text_width: int | None,
    tokens: int,
    batch: int,
    train: bool,
    precision: str = "float32",
    gpu: bool,
) -> float:
    """Seconds that a denoiser takes for one sample: a call, or with `train` a training step."""
    import torch

    from diffusion.conditioning import Conditioning
    from diffusion.denoiser import Denoiser

    device = torch.device("cuda" if gpu else "cpu")
    network = config.build(channels=channels, size=size, classes=classes, text_width=text_width)
    denoiser = Denoiser(network.to(device).train(train).requires_grad_(train))
    x = torch.zeros(batch, channels, size, size, device=device)
    told: dict[str, Any] = {}
    if text_width:
        told = {
            "text": torch.zeros(batch, tokens, text_width, device=device),
            "mask": torch.ones(batch, tokens, dtype=torch.bool, device=device),
            "pooled": torch.zeros(batch, text_width, device=device),
        }
    if classes:
        told |= {"label": torch.zeros(batch, dtype=torch.long, device=device), "classes": classes}
    conditioning = Conditioning(**told)
    times, bfloat16 = torch.full((batch,), 0.5, device=device), precision == "bfloat16"

    def once() -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16), torch.set_grad_enabled(train):
            loss = denoiser(x, times, conditioning).float().square().mean()
        if train:
            loss.backward()
        return loss

    return _seconds(once, gpu=gpu) / batch


def captions(config: Any, *, tokens: int, batch: int, gpu: bool) -> float:
    """Seconds that a text encoder takes for a caption of about `tokens` tokens. `ValueError` if its weights
    are not at hand."""
    encoder = config.build(micro_batch=batch)
    words = [" ".join(["word"] * max(1, tokens - 2))] * (4 * batch)
    return _seconds(lambda: encoder.encode(words), gpu=gpu) / len(words)


def pictures(config: Any, *, side: int, batch: int, gpu: bool) -> float:
    """Seconds that an image encoder takes for an image, bringing it to the encoder's size among them."""
    from PIL import Image

    encoder = config.build(micro_batch=batch)
    images = [Image.new("RGB", (side, side))] * batch
    return _seconds(lambda: encoder.encode(images), gpu=gpu) / batch


def _seconds(once: Callable[[], Any], *, gpu: bool) -> float:
    """Of one call, the median over calls."""
    import statistics

    import torch

    def timed() -> float:
        start = time.perf_counter()
        once()
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    timed()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < SECONDS:
        taken.append(timed())
    return statistics.median(taken)


_MEASURES: dict[What, Callable[..., float]] = {
    "encoding": encoding,
    "coding": coding,
    "denoising": denoising,
    "captions": captions,
    "pictures": pictures,
}
