"""A dataset as one HTML page that holds what it shows and loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pipelines.report
from pipelines.inspection import telling
from pipelines.inspection.sheet import Shown, thumbnail
from pipelines.inspection.summary import Summary
from pipelines.inspection.thing import Node, Thing
from pipelines.report import charts
from pipelines.report.frames import uri
from pipelines.report.page import POLICY
from pipelines.sources.listing import printable

STYLE = """
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr)); gap: 0.9rem; }
.sheet figure { margin: 0; } .sheet img { width: 100%; border-radius: 8px; image-rendering: auto; }
.sheet .small { image-rendering: pixelated; }
.sheet figcaption { font-size: 0.78rem; line-height: 1.3; margin-top: 0.3rem; overflow-wrap: anywhere; }
.counts :is(td, th):not(:first-child) { text-align: right; font-variant-numeric: tabular-nums; }
.examples { margin: 0.2rem 0 0; padding-left: 1.1rem; } .examples li { overflow-wrap: anywhere; }
.bars.histogram .row { padding: 0.12rem 0; }
@media (min-width: 40.01rem) { .bars.histogram .row { grid-template-columns: 11rem minmax(0, 1fr) 5rem; } }
"""
CLASSES = 40


def render(thing: Thing, found: Summary | None, samples: Sequence[Shown], lineage: Node) -> str:
    """Everything that comes from the data is escaped: names, captions and labels may say anything."""
    sheet = (Path(pipelines.report.__file__).parent / "page.css").read_text() + STYLE
    parts = [_header(thing, found)]
    if found is not None:
        parts += [
            _sheet(samples),
            _splits(found),
            _rejects(found),
            *(_bars(h.title, h.unit, h.bars()) for h in found.histograms.values() if h.total),
            _bars("Classes", _classes(found)[1], _classes(found)[0]),
            _bars(
                "Dropped",
                "rows that are not kept, by the first rule that failed",
                found.dropped.most_common(),
            ),
            _scores(found),
        ]
    parts.append(_manifest(thing, lineage))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<link rel="icon" href="data:,"><title>{escape(thing.reference)} · latentmill</title>'
        f"<style>{sheet}</style></head><body><main>"
        + "\n".join(part for part in parts if part)
        + "<footer>Written by latentmill show. This page loads nothing.</footer></main></body></html>\n"
    )


def _header(thing: Thing, found: Summary | None) -> str:
    manifest = thing.manifest
    parts = []
    if found is not None:
        parts.append(f"{found.samples:,} samples")
        rejected = sum(found.reasons.values())
        parts += [f"{rejected:,} rejected"] if rejected else []
        size = (manifest.get("columns") or {}).values()
        parts.append(
            telling.size(sum(c["bytes"] for n, c in (manifest.get("columns") or {}).items() if n != "image"))
        )
        parts = parts if size else parts[:-1]
    stage = manifest.get("stage")
    parts += [f"{stage} v{manifest.get('version')}"] if stage else []
    state = thing.kind if thing.finished else "not finished"
    return (
        f'<p class="kicker">latentmill · {escape(state)}</p><h1>{escape(thing.reference)}</h1>'
        f'<p class="lead">{escape(" · ".join(parts))}</p>'
    )


def _sheet(samples: Sequence[Shown]) -> str:
    cells = []
    for sample in samples:
        picture = thumbnail(sample.picture)
        if not picture:
            continue
        label = f"<b>{escape(sample.label)}</b>" if sample.label != sample.key else ""
        said = "<br>".join(part for part in (label, escape(sample.caption)) if part) or escape(sample.key)
        width = int.from_bytes(picture[16:20], "big")
        cells.append(
            f'<figure><img alt="{escape(sample.key)}" title="{escape(sample.key)}" src="{uri(picture)}"'
            f"{' class=small' if width <= 96 else ''}><figcaption>{said}</figcaption></figure>"
        )
    if not cells:
        return ""
    return (
        "<h2>Contact sheet</h2><p class='soft'>Chosen by chance from the keys, none of them by hand.</p>"
        f"<div class='card sheet'>{''.join(cells)}</div>"
    )


def _splits(found: Summary) -> str:
    names = ("samples", "rejected", "dropped", "shards")
    rows = "".join(
        f"<tr><td>{escape(split)}</td>" + "".join(f"<td>{counts[n]:,}</td>" for n in names) + "</tr>"
        for split, counts in sorted(found.splits.items())
    )
    head = "<tr><th>split</th>" + "".join(f"<th>{n}</th>" for n in names) + "</tr>"
    return f"<h2>Splits</h2><div class='scroll'><table class='counts'>{head}{rows}</table></div>"


def _rejects(found: Summary) -> str:
    if not found.reasons:
        return ""
    rows = "".join(
        f"<tr><td>{escape(reason)}</td><td>{count:,}</td><td><ul class='examples'>"
        + "".join(f"<li><code>{escape(printable(one))}</code></li>" for one in found.examples.get(reason, []))
        + "</ul></td></tr>"
        for reason, count in found.reasons.most_common()
    )
    head = "<tr><th>reason</th><th>inputs</th><th>for example</th></tr>"
    return f"<h2>Rejected</h2><div class='scroll'><table>{head}{rows}</table></div>"


def _bars(title: str, unit: str, bars: Sequence[tuple[str, int]]) -> str:
    if not bars:
        return ""
    most = max(count for _, count in bars) or 1
    rows = "".join(
        f'<div class="row"><span class="name">{escape(printable(name))}</span><span class="track stack">'
        f'<i class="part s0" style="width:{100 * count / most:.2f}%"></i></span>'
        f'<span class="value">{count:,}</span></div>'
        for name, count in bars
    )
    return (
        f"<h2>{escape(title)}</h2><p class='soft'>{escape(unit)}</p>"
        f"<div class='card'><div class='bars histogram'>{rows}</div></div>"
    )


def _classes(found: Summary) -> tuple[list[tuple[str, int]], str]:
    listed = found.classes.most_common(CLASSES)
    rest = found.classes.most_common()[CLASSES:]
    if rest:
        listed.append((f"{len(rest):,} more", sum(count for _, count in rest)))
    return listed, f"{len(found.classes):,} classes, the largest first"


def _scores(found: Summary) -> str:
    if not found.scores:
        return ""
    rows = "".join(
        f"<tr><td>{escape(printable(name))}</td><td>{q.count:,}</td>"
        + "".join(f"<td>{charts.number(v)}</td>" for v in (q.low, q.at(0.05), q.at(0.5), q.at(0.95), q.high))
        + "</tr>"
        for name, q in sorted(found.scores.items())
    )
    names = ("number", "count", "min", "5 %", "median", "95 %", "max")
    head = "<tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"
    return f"<h2>Numbers</h2><div class='scroll'><table class='counts'>{head}{rows}</table></div>"


def _manifest(thing: Thing, lineage: Node) -> str:
    meaning: Mapping[str, Any] = thing.manifest.get("meaning") or {}
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td><code>{escape(telling.short(value))}</code></td></tr>"
        for name, value in sorted(meaning.items())
    )
    table = f"<div class='scroll'><table>{rows}</table></div>" if rows else ""
    lines = escape("\n".join(telling.lineage(lineage)))
    return f"<h2>How it came to be</h2>{table}<h3>Lineage</h3><pre>{lines}</pre>"
