"""What captioners take for an image: words next to nothing, a model its passes, an endpoint money."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from pipelines.captioners import CaptionerConfig, ClipTags, CoCa, Endpoint, ImageToText, Tags
from pipelines.costs import rates
from pipelines.costs.encoders import folder, tower

_HEADER_BYTES = 1 << 27
"""Of the names and shapes in front of a safetensors file."""


@dataclass(frozen=True, kw_only=True)
class Captioning:
    """For one image."""

    core_seconds: float = 0.0
    flops: float = 0.0
    waiting: float = 0.0
    """Seconds in which a worker waits: for the next token, for an answer."""
    price: float = 0.0
    """In the currency of the endpoint's prices."""
    captions: float = 1.0
    """Distinct ones that come of it."""
    told: str = ""
    """What was supposed, for the plan's last lines."""


def captioning(config: CaptionerConfig, *, side: int, own: float = 0.0) -> Captioning:
    """What one captioner takes for an image whose sides are `side` px; `own` are the operations, on an image
    and a caption, of the stage's own model."""
    looked = side * side / rates.READ
    if isinstance(config, Tags):
        return Captioning(core_seconds=looked, flops=rates.FEATURES)
    if isinstance(config, ClipTags):
        flops, said = tower(config.path)
        return Captioning(core_seconds=looked, flops=flops, told=f"{flops / 1e9:.2g} GFLOP an image ({said})")
    if isinstance(config, ImageToText):
        return _written(config, looked)
    if isinstance(config, Endpoint):
        return _asked(config, looked, side)
    if isinstance(config, CoCa):
        flops, said = (own / 2, "the stage's model") if own and not config.path else tower(config.path)
        # Its words are looked for one after another, each time with all before them.
        words = min(config.max_tokens, rates.SAID)
        return Captioning(
            core_seconds=looked,
            flops=2 * flops,
            waiting=words * rates.STEP / config.micro_batch,
            told=f"{2 * flops / 1e9:.2g} GFLOP an image ({said}, and as much to write)",
        )
    return Captioning(core_seconds=1 / rates.CAPTIONS)


def _written(config: ImageToText, looked: float) -> Captioning:
    count, said = _parameters(config.path)
    words = min(config.max_tokens, rates.SAID)
    # Small ones have an encoder that sees and a decoder that speaks; in large ones all passes through both.
    seen = count if count > rates.CHAT else count / 2
    spoken = seen * words * config.beams
    return Captioning(
        core_seconds=looked,
        flops=2 * (seen * rates.VIEWED + spoken),
        waiting=words * rates.STEP / config.micro_batch,
        told=(
            f"{words} tokens a caption of {rates.VIEWED} that are seen, by {said}; "
            f"{1000 * rates.STEP:g} ms a token and batch beside its arithmetic"
        ),
    )


def _asked(config: Endpoint, looked: float, side: int) -> Captioning:
    shown = min(side, config.image_side or side)
    tokens = math.ceil(shown * shown / rates.TOKEN_PIXELS) + len(config.prompt) // 4 + 20
    words = min(config.max_tokens, rates.SAID)
    price = config.cost(tokens, words)
    if price is not None:  # a single one is below what prices are rounded to
        price = (config.cost(1_000_000 * tokens, 1_000_000 * words) or 0.0) / 1e6
    told = (
        f"{rates.ANSWER:g} s an answer of {config.model}, {config.concurrency} at once; "
        f"{tokens} tokens in and {words} out, each"
    )
    told += "" if price is None else f", which makes {1000 * price:.3g} for 1,000 images at its prices"
    return Captioning(
        core_seconds=looked, waiting=rates.ANSWER / config.concurrency, price=price or 0.0, told=told
    )


def _parameters(path: str) -> tuple[float, str]:
    """Of the safetensors in a folder, and how that is told; supposed where it is not at hand."""
    try:
        files = sorted(folder(path).glob("*.safetensors"))
        count = sum(_numbers(file) for file in files)
        if count:
            return float(count), f"{count / 1e6:,.0f} million parameters"
    except (OSError, ValueError, TypeError):
        pass  # the run will say what is wrong with it
    return rates.CAPTIONER, f"{rates.CAPTIONER / 1e6:,.0f} million parameters, as {path} is not here"


def _numbers(file: Path) -> int:
    """Of the tensors in a safetensors file, by the shapes in front of them."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if size > _HEADER_BYTES:
            raise ValueError("no safetensors file")
        tensors = json.loads(opened.read(size))
    return sum(math.prod(one["shape"]) for name, one in tensors.items() if name != "__metadata__")
