"""What machines reach in practice, and who says so. Every estimate names the rates that it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["train bfloat16", "train float32", "draw", "convolve"]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Operations a second that one core or GPU reaches at one kind of work."""

    flops: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Device:
    """One CPU core, or one GPU."""

    name: str
    rates: dict[Kind, Rate]


CORE = Device(
    name="CPU core",
    rates={
        "train bfloat16": Rate(flops=17e9, source="as in float32, not measured apart"),
        "train float32": Rate(
            flops=17e9, source="measured: quickstart and emoji3d on 2 Xeon cores at 2.5 GHz, 2026-11"
        ),
        "draw": Rate(flops=17e9, source="measured: pictures of quickstart and emoji3d on the same cores"),
        "convolve": Rate(flops=35e9, source="measured: encode of quickstart on the same cores"),
    },
)

GPUS = {
    "a100": Device(
        name="A100",
        rates={
            "train bfloat16": Rate(flops=77e12, source="fast-DiT, 108 img/s of DiT-XL/2 on one A100"),
            "train float32": Rate(flops=12e12, source="DiT repository, 16 img/s of DiT-XL/2 on one A100"),
            "draw": Rate(flops=12e12, source="as training in float32, which is how images are drawn"),
            "convolve": Rate(
                flops=44e12, source="Mosaic SD2, encoding with text tower; an assumption on counts"
            ),
        },
    ),
    "h100": Device(
        name="H100",
        rates={
            "train bfloat16": Rate(
                flops=200e12,
                source="LightningDiT on 8 H800, about 284 img/s a GPU; the fastest open code we know",
            ),
            "train float32": Rate(
                flops=41e12, source="the A100's 12, by the ratio of float32 peaks, 67 / 19.5"
            ),
            "draw": Rate(flops=41e12, source="as training in float32, which is how images are drawn"),
            "convolve": Rate(
                flops=100e12, source="the A100's 44, by the ratio of memory bandwidths, 3.35 / 1.5 TB/s"
            ),
        },
    ),
}
"""None was measured by us: this project has not run on a GPU yet."""

LOOK = 95.0
"""Images a second that one core decodes, looks at, resizes and writes losslessly at 48 px; measured: ingest
of quickstart on the same Xeon, less Ray's start."""
RAW = 425.0
"""The same of raw numbers, which are not decoded nor compared for near-duplicates; measured: ingest of
fashion_mnist at 32 px."""
WRITE = 11.7e6
"""Pixels a second that one core encodes as lossless WebP: 179 images of 256 px (Pillow 13, EPYC)."""
CAPTIONS = 5000.0
"""Captions a second of a template on one core; measured: captions of quickstart, less Ray's start."""
SCORED = {
    "size": 8000.0,
    "sharpness": 100.0,
    "nsfw": 30.0,
    "function": 100.0,
    "similarity": 8.0,
    "aesthetic": 8.0,
}
"""Images a second that one core scores; measured at 0.3 megapixels on a busy Xeon, a function and open_clip's
ViT-B/32 supposed."""
FILTERED = 5000.0
"""Rows a second that thresholds are set to; measured: `filter` on emoji3d."""
COMPARED = {"perceptual": 2000.0, "semantic": 100.0}
"""Images a second that one core looks at for copies, once decoded and less what a network takes; measured:
hashes, and thumbnails with lightness, of emoji at 256 px."""
READ = 38e6
"""Pixels a second that one core decodes of lossless WebP: 580 images of 256 px, measured."""
SAID = 30
"""Tokens of a caption that a model writes: an assumption."""
VIEWED = 250
"""Tokens that an image is to a captioner: a ViT's 16 x 16 patches, about."""
STEP = 0.025
"""Seconds of a token, for each batch, beside the arithmetic: what transformers' Python takes; supposed."""
CAPTIONER = 250e6
"""Parameters of a captioner that is not at hand, such as BLIP's or ViT-GPT2's."""
CHAT = 1e9
"""Parameters from which on a captioner is taken for a chat model."""
CLIP = 8.7e9
"""Operations of CLIP's ViT-B/32 on an image."""
ANSWER = 2.0
"""Seconds of an endpoint's answer while it answers others: supposed; a server that is full takes longer."""
TOKEN_PIXELS = 784
"""Pixels that a chat model takes for a token: 28 x 28, as Qwen-VL."""
START = 4.0
"""Seconds until a stage's workers have imported what they need; measured: quickstart."""
PIXEL = 1.2
"""Bytes of a pixel of a photograph in lossless WebP: an assumption; drawings take less."""
FEATURES = 0.78e9
"""Operations of EfficientNet-Lite0 on an image (its authors: 0.39 G multiply-adds)."""
TOKENS = 16
"""Tokens of a caption: an assumption."""
EMBEDDERS = {
    "minilm": (0.35e9, 384),
    "open_clip": (13.3e9, 768),
    "transformers": (0.35e9, 384),
}
"""Operations of a caption, and width of its states: MiniLM-L6 on 16 tokens; CLIP-L's text tower on 77."""
