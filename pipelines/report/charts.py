"""Charts of the report: curves as SVG, intervals and stacked bars as HTML that bends to a phone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 640.0
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Interval:
    """A row of an interval chart: a value with its bounds."""

    label: str
    value: float
    low: float
    high: float
    role: str = "plain"
    """`floor` and `main` are drawn in their own colours."""
    text: str = ""


def curves(series: Mapping[str, Points], *, x: str, height: float = 260.0) -> str:
    """Lines over one x axis. Dense ones are drawn pale with a running median on top; few points get dots."""
    points = [p for line in series.values() for p in line if math.isfinite(p[1])]
    if not points:
        return ""
    low_x, high_x = _bounds([p[0] for p in points])
    low_y, high_y = _bounds(_without_outliers([p[1] for p in points]))
    left, right, top, bottom = 66.0, 14.0, 12.0, 40.0

    def at(px: float, py: float) -> tuple[float, float]:
        py = min(max(py, low_y), high_y)
        return (
            left + (px - low_x) / (high_x - low_x) * (WIDTH - left - right),
            top + (high_y - py) / (high_y - low_y) * (height - top - bottom),
        )

    parts, legend = [], []
    for tick in ticks(low_y, high_y, 4):
        y = at(low_x, tick)[1]
        parts.append(f'<line class="rule" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in ticks(low_x, high_x, 4):
        px = at(tick, low_y)[0]
        anchor = "end" if px > WIDTH - 40 else "middle"
        parts.append(f'<text x="{px:.1f}" y="{height - 14}" text-anchor="{anchor}">{short(tick)}</text>')
    for n, (name, points) in enumerate(series.items()):
        line = sorted(p for p in points if math.isfinite(p[1]))
        if len(line) > 60:
            parts.append(f'<polyline class="s{n % 4} pale" points="{_path(thin(line, 400), at)}"/>')
            line = running_median(line, 80)
        parts.append(f'<polyline class="s{n % 4}" points="{_path(line, at)}"/>')
        if len(line) <= 24:
            dots = (at(*p) for p in line)
            parts += [f'<circle class="s{n % 4}" cx="{px:.1f}" cy="{py:.1f}" r="3"/>' for px, py in dots]
        legend.append((name, number(line[-1][1]) if line else ""))
    svg = (
        f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img"'
        f' aria-label="{escape(", ".join(series))} over {escape(x)}">{"".join(parts)}</svg>'
    )
    return f'{_legend(legend)}{svg}<p class="axis">{escape(x)}</p>'


def intervals(rows: Sequence[Interval], *, unit: str) -> str:
    """A dot with its interval a row, on a common axis that begins at 0 or below."""
    if not rows:
        return ""
    low = min(0.0, *(r.low for r in rows), *(r.value for r in rows))
    high = max(low + 1e-9, *(r.high for r in rows), *(r.value for r in rows))
    low, high = low - 0.02 * (high - low), high + 0.02 * (high - low)

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    lines = []
    for row in rows:
        span = 100 * (row.high - row.low) / (high - low)
        lines.append(
            f'<div class="row {row.role}"><span class="name">{escape(row.label)}</span><span class="track">'
            f'<i class="zero" style="left:{at(0)}"></i>'
            f'<i class="span" style="left:{at(row.low)};width:{span:.2f}%"></i>'
            f'<i class="dot" style="left:{at(row.value)}"></i></span>'
            f'<span class="value">{escape(row.text or number(row.value))}</span></div>'
        )
    return f'<div class="bars">{"".join(lines)}</div><p class="axis">{escape(unit)}</p>'


def stacks(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A bar a row, of parts that add up: {"tools": {"real": 12, "generated": 8}}."""
    names = list(dict.fromkeys(part for row in rows.values() for part in row))
    most = max((sum(row.values()) for row in rows.values()), default=0)
    if not most:
        return ""
    lines = []
    for label, row in rows.items():
        parts = "".join(
            f'<i class="part s{n % 4}" style="width:{100 * row.get(name, 0) / most:.2f}%"></i>'
            for n, name in enumerate(names)
        )
        text = " + ".join(number(row.get(name, 0)) for name in names)
        lines.append(
            f'<div class="row"><span class="name">{escape(label)}</span>'
            f'<span class="track stack">{parts}</span><span class="value">{text}</span></div>'
        )
    return _legend([(name, "") for name in names]) + f'<div class="bars">{"".join(lines)}</div>'


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f'<span><i class="key s{n % 4}"></i>{escape(name)} <b>{value}</b></span>'
        for n, (name, value) in enumerate(entries)
    )
    return f'<p class="legend">{items}</p>'


def short(value: float) -> str:
    """A tick of an axis that counts images: 40,000 -> 40k."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else number(value)


def number(value: float) -> str:
    """Three digits that matter: 0.0132, 1.24, 12.4, 1,599."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    if float(value).is_integer() and abs(value) < 1e9:
        return f"{int(value):,}"
    digits = 2 - math.floor(math.log10(abs(value)))
    if digits <= 0:
        return f"{value:,.0f}"
    text = f"{value:,.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") or "0"


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between two bounds."""
    raw = (high - low) / max(count, 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(line: Points, most: int) -> list[tuple[float, float]]:
    """At most `most` of a line's points, the last among them."""
    stride = -(-len(line) // most)
    return list(reversed(list(reversed(line))[::stride]))


def running_median(line: Points, buckets: int) -> list[tuple[float, float]]:
    """The median of each of `buckets` neighbouring groups of points."""
    size = -(-len(line) // buckets)
    groups = [line[n : n + size] for n in range(0, len(line), size)]
    return [(sum(p[0] for p in g) / len(g), sorted(p[1] for p in g)[len(g) // 2]) for g in groups]


def _without_outliers(values: Sequence[float]) -> list[float]:
    """The first steps of a training are far above the rest and would flatten it."""
    ordered = sorted(values)
    if len(ordered) < 50:
        return ordered
    high = ordered[int(len(ordered) * 0.97)]
    return [v for v in ordered if v <= high]


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low < 1e-12:
        margin = abs(high) * 0.1 or 1.0
        return low - margin, high + margin
    return low, high


def _path(line: Points, at: Callable[[float, float], tuple[float, float]]) -> str:
    return " ".join("{:.1f},{:.1f}".format(*at(*p)) for p in line)
