"""Pictures inside the page: one as a figure, one that training redrew as a film with a slider."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape

FRAMES = 24
"""Pictures of a film: every later one is kept until then, after that evenly chosen ones."""


def figure(title: str, *data: bytes) -> str:
    """One picture, or rows of one, with a caption."""
    images = "".join(f'<img alt="{escape(title)}" src="{uri(picture)}">' for picture in data)
    return (
        f'<figure class="card{_wide(data[0])}"><div class="scroll">{images}</div>'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )


def film(title: str, frames: Mapping[float, bytes]) -> str:
    """Pictures by step. Without scripts the last one shows."""
    steps = chosen(sorted(frames))
    images = "".join(
        f'<img alt="{escape(title)} after {step:,.0f} images" data-label="{step:,.0f} images seen" '
        f'src="{uri(frames[step])}"{"" if step == steps[-1] else " hidden"}>'
        for step in steps
    )
    last = len(steps) - 1
    return (
        f'<figure class="film card{_wide(frames[steps[-1]])}"><div class="scroll">{images}</div>'
        f'<div class="slider" hidden><input type="range" min="0" max="{last}" value="{last}" '
        f'aria-label="images seen"><output></output></div><figcaption>{escape(title)}</figcaption></figure>'
    )


def chosen(steps: list[float]) -> list[float]:
    """At most `FRAMES` steps, the first and the last among them."""
    if len(steps) <= FRAMES:
        return steps
    return [steps[round(n * (len(steps) - 1) / (FRAMES - 1))] for n in range(FRAMES)]


def uri(data: bytes) -> str:
    kind = "webp" if data[8:12] == b"WEBP" else "jpeg" if data[:2] == b"\xff\xd8" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _wide(data: bytes) -> str:
    """A grid of many columns is scrolled on a phone instead of shrunk: its PNG header tells its width."""
    if data[:4] != b"\x89PNG":
        return ""
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return " wide" if width > 700 and width > height else ""
