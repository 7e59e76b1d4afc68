"""The gain of each class as a picture: a row a class, the rarest below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines import pictures
from pipelines.pictures import INK

ROW, HEAD, FOOT = 34, 46, 26
"""Heights in px."""
LABEL, PLOT, MARGIN = 210, 470, 14
"""Widths in px."""
COLOURS = ((56, 132, 214, 255), (222, 126, 38, 255))
"""Against real images alone, against the best arm without generated ones: told apart by colour-blind eyes."""
RULE = (122, 127, 136, 90)


def chart(said: Mapping[str, Any]) -> bytes:
    """PNG of the gain in each class's accuracy with its 95 % interval, classes with most real images first.

    Equal arguments give equal bytes.
    """
    from PIL import Image, ImageDraw, ImageFont

    found = sorted(said["per_class"].items(), key=lambda item: (-item[1]["real"], item[0]))
    against = list(dict.fromkeys(["real", said["best_without"]]))
    ends = [of["gain"][name][end] for _, of in found for name in against for end in ("low", "high")]
    low, high = min(0.0, *ends), max(0.0, *ends)
    margin = 0.05 * max(high - low, 0.02)
    low, high = low - margin, high + margin

    font, small = ImageFont.load_default(size=13), ImageFont.load_default(size=11)
    width, height = LABEL + PLOT + MARGIN, HEAD + ROW * len(found) + FOOT
    image = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)

    def x(value: float) -> float:
        return LABEL + (value - low) / (high - low) * PLOT

    draw.text((0, 4), "Gain in accuracy from adding generated images", font=font, fill=INK)
    at = 0
    for n, name in enumerate(against):
        draw.ellipse((at, 28, at + 8, 36), fill=COLOURS[n])
        text = f"over {said['arms'][name]['label']}"
        draw.text((at + 13, 25), text, font=small, fill=INK)
        at += int(small.getlength(text)) + 34

    bottom = HEAD + ROW * len(found)
    for tick in _ticks(low, high):
        draw.line(
            (x(tick), HEAD, x(tick), bottom), fill=INK if tick == 0 else RULE, width=2 if tick == 0 else 1
        )
        text = "0" if tick == 0 else f"{tick:+.2f}"
        draw.text((x(tick) - small.getlength(text) / 2, bottom + 6), text, font=small, fill=INK)

    for row, (name, of) in enumerate(found):
        top = HEAD + ROW * row
        draw.text((0, top + 3), _shortened(font, name, LABEL - 12), font=font, fill=INK)
        counts = f"{of['real']:,} real + {of['generated']:,} generated"
        draw.text((0, top + 18), counts, font=small, fill=INK)
        for n, arm in enumerate(against):
            gain = of["gain"][arm]
            y = top + ROW / 2 + (n - (len(against) - 1) / 2) * 11
            draw.line((x(gain["low"]), y, x(gain["high"]), y), fill=COLOURS[n], width=2)
            draw.ellipse((x(gain["value"]) - 4, y - 4, x(gain["value"]) + 4, y + 4), fill=COLOURS[n])
    return pictures.png(image)


def _ticks(low: float, high: float) -> list[float]:
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / s <= 8)
    first, last = int(low / step) - 1, int(high / step) + 1
    return [n * step for n in range(first, last + 1) if low <= n * step <= high]


def _shortened(font: Any, text: str, width: int) -> str:
    while len(text) > 1 and font.getlength(text) > width:
        text = f"{text.rstrip('…')[:-1]}…"
    return text
