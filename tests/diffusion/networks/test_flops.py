from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion.conditioning import Conditioning
from diffusion.config import DiTConfig, NetworkConfig, UNetConfig
from diffusion.networks.flops import flops
from diffusion.networks.routing import kept_tokens


def counted(
    config: NetworkConfig,
    *,
    size: int | tuple[int, int],
    text_tokens: int = 0,
    text_width: int | None = None,
    pooled_width: int | None = None,
    classes: int = 0,
    low_channels: int = 0,
    kept: float = 1.0,
) -> int:
    """What torch counts in the network's forward pass, on tensors without data."""
    given: dict[str, Any] = {}
    height, width = (size, size) if isinstance(size, int) else size
    with torch.device("meta"):
        network = config.build(
            channels=4,
            size=round((height * width) ** 0.5),
            classes=classes,
            text_width=text_width,
            pooled_width=pooled_width,
            low_channels=low_channels,
        )
        if text_width:
            given["pooled"] = torch.zeros(1, pooled_width or text_width)
        if text_width and text_tokens:
            given["text"] = torch.zeros(1, text_tokens, text_width)
            given["mask"] = torch.ones(1, text_tokens, dtype=torch.bool)
        if classes:
            given |= {"label": torch.zeros(1, dtype=torch.long), "classes": classes}
        if low_channels:
            given |= {"low": torch.zeros(1, low_channels, height, width), "level": torch.zeros(1)}
        if config.size_conditioning:
            given["size"] = torch.zeros(1, 6)
        if kept < 1:
            assert isinstance(config, DiTConfig)
            tokens = (height // config.patch) * (width // config.patch)
            given["route"] = kept_tokens(0, np.arange(1), tokens, kept).to("meta")
        x, t = torch.zeros(1, 4, height, width), torch.zeros(1)
        with FlopCounterMode(display=False) as counter:
            network(x, t, Conditioning(**given))
    return counter.get_total_flops()


SMALL = DiTConfig(width=48, depth=5, heads=3, patch=2)


@pytest.mark.parametrize(
    ("config", "given"),
    [
        (SMALL, {"size": 8}),
        (SMALL, {"size": 12, "classes": 3}),
        (SMALL, {"size": (8, 18), "kept": 0.5}),
        (UNetConfig(channels=24, multipliers=(1, 2), attention=(1,)), {"size": (8, 17)}),
        (SMALL, {"size": 8, "text_width": 20, "text_tokens": 7}),
        (SMALL, {"size": 8, "text_width": 20}),
        (SMALL, {"size": 8, "text_width": 20, "pooled_width": 12, "text_tokens": 7}),
        (UNetConfig(channels=24, multipliers=(1, 2)), {"size": 16, "text_width": 8, "pooled_width": 5}),
        (SMALL, {"size": 8, "low_channels": 3}),
        (SMALL, {"size": 8, "kept": 0.4}),
        (SMALL, {"size": 8, "kept": 0.5, "text_width": 20, "text_tokens": 7, "low_channels": 4}),
        (DiTConfig(width=32, depth=5, heads=2, patch=1, cross_every=2), {"size": 4, "text_width": 8}),
        (DiTConfig(width=32, depth=4, heads=2, size_conditioning=True, norm="rms"), {"size": 8}),
        (DiTConfig(width=32, depth=4, heads=2, mlp_ratio=4.0, route=(3, 4)), {"size": 8, "kept": 0.01}),
        (UNetConfig(channels=24, multipliers=(1, 2)), {"size": 16}),
        (UNetConfig(channels=24, multipliers=(1, 2)), {"size": 17, "classes": 4, "low_channels": 4}),
        (UNetConfig(channels=16, multipliers=(1, 2, 3), blocks=2), {"size": 16, "text_width": 8}),
        (
            UNetConfig(channels=16, multipliers=(1, 2, 3), attention=(1, 2), size_conditioning=True),
            {"size": 16, "text_width": 8, "text_tokens": 5},
        ),
        (UNetConfig(channels=80, multipliers=(1, 1), blocks=2, attention=(0,), stem=1), {"size": 8}),
    ],
)
def test_they_are_what_torch_counts(config: NetworkConfig, given: dict[str, Any]) -> None:
    assert flops(config, channels=4, **given) == counted(config, **given)


@pytest.mark.parametrize(("name", "billions"), [("S/2", 12.1), ("B/4", 11.1), ("B/2", 46.0), ("XL/2", 237.2)])
def test_named_sizes_cost_what_the_papers_do(name: str, billions: float) -> None:
    """Peebles & Xie, 2023, Table 4, times two; SwiGLU's three matrices cost what their two do."""
    total = flops(DiTConfig.named(name), channels=4, size=32, classes=1000)
    assert total / 1e9 == pytest.approx(billions, rel=0.01)


def test_it_loads_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import diffusion.networks.flops"
    subprocess.run([sys.executable, "-c", code], check=True)
