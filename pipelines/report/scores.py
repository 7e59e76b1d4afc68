"""What the scores say, in words and on a scale with their floor: real images against real ones."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from pipelines.report import charts
from pipelines.report.charts import Interval
from pipelines.report.frames import figure
from pipelines.report.gather import RunView

Scores = Mapping[str, Any]


def tiles(run: RunView) -> str:
    """The three or four numbers that answer "is it any good?", each with what it means."""
    if not run.scores:
        return ""
    found = [
        _kid_tile(run.scores),
        *_coverage_tiles(run.scores),
        _text_tile(run.scores),
        _copy_tile(run.scores),
    ]
    return f'<div class="tiles">{"".join(tile for tile in found if tile)}</div>' if any(found) else ""


def section(run: RunView) -> str:
    if not run.scores:
        return ""
    parts = ["<h2>Scores</h2>", _distances(run.scores), _conditioning(run.scores), _memory(run.scores)]
    pictures: Mapping[str, str] = run.scores.get("pictures") or {}
    for name, data in run.score_pictures.items():
        parts.append(figure(pictures[name], data))
    return "".join(part for part in parts if part)


def _tile(value: str, meaning: str) -> str:
    return f'<div class="tile"><b>{value}</b><span>{meaning}</span></div>'


def _kid_tile(scores: Scores) -> str:
    main, floor = _row(scores, "main"), _row(scores, "floor")
    if main is None:
        return ""
    against = f" (real images score {kid_text(floor)})" if floor else ""
    return _tile(kid_text(main), f"{escape(scores['name'])} × 1000, less is better{against}")


def _coverage_tiles(scores: Scores) -> list[str]:
    main = _row(scores, "main") or {}
    found = []
    if main.get("precision") is not None:
        found.append(_tile(_percent(main["precision"]), "precision: generated images among the real ones"))
    if main.get("recall") is not None:
        found.append(_tile(_percent(main["recall"]), "recall: real images that the generated ones cover"))
    return found


def _text_tile(scores: Scores) -> str:
    text = scores.get("conditioning")
    if not text:
        return ""
    share = round(100 * text["difference"] / text["shuffled"], 1) + 0.0  # no "-0.0"
    by = escape(text.get("by", "captions"))
    return _tile(f"{share:+.1f}\u202f%", f"held-out loss saved by the true {by} over shuffled ones")


def _copy_tile(scores: Scores) -> str:
    near = scores.get("neighbours")
    if not near:
        return ""
    return _tile(
        _percent(near["closer"]["value"]),
        "generated images closer to a training image than 99 % of real ones",
    )


def _distances(scores: Scores) -> str:
    rows = [
        Interval(
            row["label"],
            1000 * row["kid"]["value"],
            1000 * row["kid"]["low"],
            1000 * row["kid"]["high"],
            row.get("role", "plain"),
            _value(row["kid"], 1000),
        )
        for row in scores.get("rows", [])
    ]
    if not rows:
        return ""
    unit = f"{scores['name']} × 1000, 95 % interval"
    counts = "; ".join(f"{row['label']}: {row['n'][0]:,} against {row['n'][1]:,}" for row in scores["rows"])
    frechet = [
        f"{escape(row['label'])} {charts.number(row['frechet']['value'])}"
        for row in scores["rows"]
        if row.get("frechet")
    ]
    biased = any(row.get("frechet", {}).get("biased") for row in scores["rows"])
    note = ""
    if frechet:
        why = " Below 5,000 images it is biased upward: compare it only at equal counts." if biased else ""
        name = escape(scores["frechet_name"])
        note = f"<details><summary>{name}</summary><p class='soft'>{'; '.join(frechet)}.{why}</p></details>"
    return (
        "<p class='soft'>The distance between two sets of images in the eyes of a pretrained network. "
        "0 means that they cannot be told apart; real images against other real images are the floor.</p>"
        f"<div class='card'>{charts.intervals(rows, unit=unit)}</div>"
        f"<details><summary>How many images</summary><p class='soft'>{escape(counts)}. "
        f"Features: {escape(scores.get('extractor', ''))}, seed {scores.get('seed', 0)}.</p></details>{note}"
    )


def _conditioning(scores: Scores) -> str:
    text = scores.get("conditioning")
    if not text:
        return ""
    works = text["low"] > 0
    by = escape(text.get("by", "captions"))
    verdict = f"The model heeds its {by}" if works else f"No effect of the {by} is shown"
    return (
        f"<h3>{verdict}</h3><p class='soft'>Loss on {text['n']:,} held-out images with the true {by} "
        f"{charts.number(text['true'])}, with shuffled {by} {charts.number(text['shuffled'])}, same "
        f"noise and times: a difference of {charts.number(text['difference'])} "
        f"(95 % interval {charts.number(text['low'])} to {charts.number(text['high'])}).</p>"
    )


def _memory(scores: Scores) -> str:
    near = scores.get("neighbours")
    if not near:
        return ""
    rows = [
        Interval(label, part["median"], part["q05"], part["q95"], role, charts.number(part["median"]))
        for label, part, role in (
            ("generated images", near["generated"], "main"),
            ("held-out real images", near["held_out"], "floor"),
        )
    ]
    closer = near["closer"]
    return (
        "<h3>Is it copying?</h3><p class='soft'>Distance of each image to its nearest training image: "
        f"median, 5\u202f% to 95\u202f%. {_percent(closer['value'])} of {near['generated']['n']:,} generated "
        "images lie closer than the closest 1\u202f% of held-out real ones do (95\u202f% interval "
        f"{_percent(closer['low'])} to {_percent(closer['high'])}; about 1\u202f% is to be expected).</p>"
        f"<div class='card'>{charts.intervals(rows, unit=near.get('distance', 'distance'))}</div>"
    )


def _row(scores: Scores, role: str) -> Mapping[str, Any] | None:
    return next((row for row in scores.get("rows", []) if row.get("role") == role), None)


def kid_text(row: Mapping[str, Any]) -> str:
    return charts.number(round(1000 * row["kid"]["value"], 1))


def _value(interval: Mapping[str, float], scale: float) -> str:
    digits = 0 if abs(scale * interval["value"]) >= 100 else 1
    value, low, high = (f"{scale * interval[k]:,.{digits}f}" for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u202f%" if share < 0.1 else f"{100 * share:.0f}\u202f%"
