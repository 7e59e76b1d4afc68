"""A run as one HTML page: the run's line first, then its pictures, scores, curves and provenance."""

from __future__ import annotations

import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from pipelines.progress import number
from pipelines.report import charts, scores
from pipelines.report.frames import figure, film
from pipelines.report.gather import RunView, StageView

GROUPS = {"loss_by_time/": "Loss by time: 0 is clean, 1 is noise", "badput_": "Time that led nowhere"}
"""Starts of metrics that are one chart together, and its title."""
STATES = {"waiting": "planned", "running": "running", "done": "finished", "failed": "failed"}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def render(run: RunView) -> str:
    """One self-contained page; its content policy forbids the browser to load anything."""
    folder = Path(__file__).parent
    sections = [
        _header(run),
        scores.tiles(run),
        _flow(run),
        _pictures(run),
        scores.section(run),
        _tables(run),
        _learning(run),
        _balance(run),
        _provenance(run),
        _next(run),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<link rel="icon" href="data:,"><title>{escape(run.recipe)} · latentmill</title>'
        f"<style>{(folder / 'page.css').read_text()}</style></head><body><main>"
        + "\n".join(part for part in sections if part)
        + f"<footer>Written {_clock(time.time())} by latentmill. This page loads nothing.</footer>"
        f"</main><script>{(folder / 'page.js').read_text()}</script></body></html>\n"
    )


def _header(run: RunView) -> str:
    done = sum(stage.state == "done" for stage in run.stages)
    parts = [f"{done} of {len(run.stages)} stages finished"]
    images = sum(stage.counts.get("committed") or 0 for stage in run.of_kind("ingest"))
    if images:
        parts.insert(0, f"{images:,} images")
    spent = sum(stage.seconds or 0 for stage in run.stages if not stage.reused)
    if spent:
        parts.append(f"{duration(spent)} of work")
    if run.started:
        parts.append(_clock(run.started))
    failure = f'<p class="bad">{escape(run.failed)}</p>' if run.failed else ""
    return (
        f'<p class="kicker">latentmill · {STATES[run.state]}</p><h1>{escape(run.recipe)}</h1>'
        f'<p class="lead">{" · ".join(parts)}</p>{failure}'
    )


def _flow(run: RunView) -> str:
    if not run.stages:
        return '<p class="soft">Nothing has run yet.</p>'
    rows = "".join(_stage_row(stage) for stage in run.stages)
    return f'<h2>The line</h2><ol class="flow card">{rows}</ol>'


def _stage_row(stage: StageView) -> str:
    extra = ""
    if stage.error:
        extra = f'<span class="extra bad">{escape(stage.error)}</span>'
    elif stage.counts.get("rejected") or stage.counts.get("dropped"):
        reasons = ", ".join(
            f"{n:,} {escape(reason)}" for reason, n in (stage.counts.get("reasons") or {}).items()
        )
        rejected = f"{stage.counts.get('rejected', 0):,} of {stage.counts.get('inputs', 0):,} rejected"
        rejected += f": {reasons}" if reasons else ""
        dropped = f", {stage.counts['dropped']:,} dropped" if stage.counts.get("dropped") else ""
        extra = f'<span class="extra">{rejected}{dropped}</span>'
    elif stage.notes and stage.state == "running":
        extra = f'<span class="extra">{escape(stage.notes[-1])}</span>'
    what = stage.summary or (stage.kind if stage.kind != stage.name else "")
    taken = "reused" if stage.reused else duration(stage.seconds) if stage.seconds else STATES[stage.state]
    return (
        f'<li class="{stage.state}"><span class="mark"></span>'
        f'<span><b>{escape(stage.name)}</b> <span class="what">{escape(what)}</span></span>'
        f'<span class="counts">{_counts(stage)}</span><span class="time">{taken}</span>{extra}</li>'
    )


def _counts(stage: StageView) -> str:
    count, unit = stage.counts.get("committed"), "samples"
    if count is None:
        # what a stage told on its way may count something else than its output has, as augment's does
        unit = stage.unit or unit
    if count is None and stage.state == "running" and stage.total:
        return f"{stage.done:,.0f} of {stage.total:,.0f} {escape(unit)}"
    if count is None and stage.manifest.get("kind") == "snapshot":
        count, unit = (stage.manifest.get("snapshot") or {}).get("images_seen"), "images seen"
    if count is None:
        count = stage.total or None
    if count is None:
        return ""
    rate = ""
    if stage.seconds and not stage.reused and count:
        rate = f' <span class="soft">{charts.number(round(count / stage.seconds, 1))}/s</span>'
    return f"{count:,.0f} {escape(unit)}{rate}"


def _pictures(run: RunView) -> str:
    """Generated pictures first, then how they came about."""
    order = {"generate": 0, "upscale": 0, "edit": 0, "detect": 0, "train": 1, "train_autoencoder": 2}
    parts = []
    for stage in sorted(run.stages, key=lambda s: order.get(s.kind, 3)):
        if stage.kind == "evaluate":
            continue
        if stage.sheets:
            which = "the strangest first, red where" if stage.kind == "detect" else "the first images"
            parts.append(figure(f"{stage.name}: {which}, none of them picked", *stage.sheets))
        for name, frames in stage.pictures.items():
            title = f"{stage.name}: {name.replace('_', ' ')}"
            parts.append(
                film(title, frames) if len(frames) > 1 else figure(title, next(iter(frames.values())))
            )
    if not parts:
        return ""
    return f"<h2>Pictures</h2>{''.join(parts)}"


def _tables(run: RunView) -> str:
    """What the other reports found: a sentence, and the figures behind it."""
    parts = []
    for table in run.tables.values():
        head = "".join(f"<th>{escape(str(column))}</th>" for column in table["columns"])
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in table["rows"]
        )
        parts.append(
            f"<h2>{escape(table['title'])}</h2><p class='soft'>{escape(table['says'])}</p>"
            f"<div class='scroll'><table><tr>{head}</tr>{rows}</table></div>"
        )
    return "".join(parts)


def _learning(run: RunView) -> str:
    parts = []
    for stage in run.stages:
        if stage.kind not in ("train", "train_autoencoder"):
            continue
        groups: dict[str, dict[str, list[tuple[float, float]]]] = {"": {}, **{start: {} for start in GROUPS}}
        rest: dict[str, list[tuple[float, float]]] = {}
        for key, line in stage.curves.items():
            start = next((start for start in GROUPS if key.startswith(start)), "")
            chosen = groups[start] if start or "loss" in key else rest
            chosen[_words(key.removeprefix(start))] = list(line.items())
        losses = groups.pop("")
        if losses:
            chart = charts.curves(losses, x="images seen")
            parts.append(
                f'<div class="card"><h3>{escape(stage.name)}</h3>'
                f'<p class="soft">{escape(_pace(stage))}</p>{chart}</div>'
            )
        small = [
            f"<h4>{escape(GROUPS[start])}</h4>" + charts.curves(lines, x="images seen", height=220)
            for start, lines in groups.items()
            if lines
        ]
        small += [
            charts.curves({name: line}, x="images seen", height=180)
            for name, line in sorted(rest.items())
            if len(line) > 1
        ]
        if small:
            told = f"<summary>{escape(stage.name)}: more curves</summary>{''.join(small)}"
            parts.append(f"<details>{told}</details>")
    return f"<h2>Learning</h2>{''.join(parts)}" if parts else ""


def _balance(run: RunView) -> str:
    """Real and generated samples of each class, where something was augmented."""
    parts = []
    for stage in run.of_kind("augment"):
        classes = stage.manifest.get("augmented") or {}
        rows = {name: {"real": c["real"], "generated": c["generated"]} for name, c in classes.items()}
        if rows:
            weight = stage.manifest.get("weight")
            note = (
                f" A generated sample weighs {weight:g} of a real one in training."
                if weight is not None
                else ""
            )
            parts.append(
                f"<h2>Augmented training set</h2><p class='soft'>Only the training split is topped up; "
                f"validation and test stay real.{note}</p><div class='card'>{charts.stacks(rows)}</div>"
            )
    return "".join(parts)


def _provenance(run: RunView) -> str:
    rows = []
    for stage in run.stages:
        if not stage.manifest:
            continue
        inputs = ", ".join(
            f"{escape(name)} <code>{escape(str(entry.get('digest') or '')[:12])}</code>"
            for name, entry in (stage.manifest.get("inputs") or {}).items()
            if isinstance(entry, Mapping)
        )
        fingerprint = str(stage.manifest.get("fingerprint") or stage.fingerprint)
        version = stage.manifest.get("version", "")
        rows.append(
            f"<tr><td>{escape(stage.name)}</td><td>{escape(stage.kind)} v{version}</td>"
            f"<td><code title='{escape(fingerprint)}'>{escape(fingerprint[:12])}</code></td>"
            f"<td>{inputs or '–'}</td></tr>"
        )
    if not rows:
        return ""
    table = "<tr><th>stage</th><th>code</th><th>fingerprint</th><th>read (digests)</th></tr>" + "".join(rows)
    recipe = ""
    if run.resolved:
        recipe = (
            f"<details><summary>The recipe as it ran</summary><pre>{escape(run.resolved)}</pre></details>"
        )
    return (
        "<h2>Provenance</h2><p class='soft'>Equal fingerprints mean equal outputs: what an earlier run made "
        f"is not made again.</p><div class='scroll'><table>{table}</table></div>{versions(run)}{recipe}"
    )


def versions(run: RunView) -> str:
    """Package versions that the stages recorded beside their results."""
    found: dict[str, Any] = {}
    for stage in run.stages:
        found |= (stage.manifest.get("execution") or {}).get("versions") or {}
    if not found:
        return ""
    text = " · ".join(f"{escape(name)} {escape(str(version))}" for name, version in sorted(found.items()))
    return f"<p class='soft'>{text}</p>"


def _next(run: RunView) -> str:
    trained = [stage for stage in run.of_kind("train") if stage.state == "done"]
    commands = [("Again: what is done is not repeated", f"latentmill run {run.recipe}")]
    if trained:
        model = trained[-1].folder or f"train/{trained[-1].fingerprint}"
        if (trained[-1].manifest.get("snapshot") or {}).get("upscaling"):
            commands.append(("Enlarge your images", f"latentmill apply upscale IN OUT --model {model}"))
        else:
            commands.append(("Draw with this model", f'latentmill generate "a rocket" --model {model}'))
    commands += [
        ("Your own images", "latentmill init ~/photos && latentmill run photos.yaml"),
        ("On a cluster", f"latentmill submit {run.recipe}"),
    ]
    text = "".join(f"<h3>{label}</h3><pre>{escape(command)}</pre>" for label, command in commands)
    return f"<h2>Next</h2>{text}"


def duration(seconds: float) -> str:
    """0.4 s, 41 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _clock(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def _pace(stage: StageView) -> str:
    """How fast it learned at last, and how much of its time led anywhere."""
    last = {key: line[max(line)] for key, line in stage.curves.items() if line}
    units = {"images_per_second": "images/s", "tflops": "TFLOP/s a worker", "memory_gib": "GiB a worker"}
    told = [f"{number(last[key])} {unit}" for key, unit in units.items() if key in last]
    shares = {"share_of_peak": "of the GPU's peak", "goodput": "goodput"}
    told += [f"{100 * last[key]:.0f} % {what}" for key, what in shares.items() if key in last]
    return ", ".join(told)


def _words(key: str) -> str:
    return key.replace("_", " ").replace("/", " ")
