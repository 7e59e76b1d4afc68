"""What a run found, as lines for a terminal: each score with its meaning, and its floor beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.report.gather import RunView

Scores = Mapping[str, Any]


def of_run(run: RunView) -> list[str]:
    """Scores, then every verdict: a run ends with the answer to what it was made for."""
    from pipelines.verdict.telling import lines as verdict_lines

    told = lines(run.scores)
    for said in verdicts(run).values():
        told += [""] * bool(told) + verdict_lines(said)
    for name, found in run.tables.items():
        if name not in verdicts(run):
            told += [""] * bool(told) + table(found)
    return told


def table(found: Mapping[str, Any]) -> list[str]:
    """A report's table with its columns side by side, and what it says."""
    rows = [found["columns"], *found["rows"]]
    widths = [max(len(str(row[n])) for row in rows) for n in range(len(found["columns"]))]
    told = [found["title"]]
    for row in rows:
        cells = (str(cell).ljust(width) for cell, width in zip(row, widths, strict=True))
        told.append(f"  {'  '.join(cells)}".rstrip())
    return [*told, found["says"]]


def verdicts(run: RunView) -> dict[str, Mapping[str, Any]]:
    """Stage name -> what it judged."""
    reports = {stage.name: stage.manifest.get("report") or {} for stage in run.of_kind("judge")}
    return {name: report["verdict"] for name, report in reports.items() if "verdict" in report}


def lines(scores: Scores) -> list[str]:
    """Nothing where nothing was evaluated."""
    told = _distances(scores)
    told += _coverage(scores)
    told += _conditioning(scores)
    told += _copies(scores)
    return told


def _distances(scores: Scores) -> list[str]:
    rows = scores.get("rows") or []
    if not rows:
        return []
    width = max(len(row["label"]) for row in rows)
    told = [f"{scores['name']} x 1000: how far two sets of images lie apart; real against real is the floor"]
    for row in rows:
        kid = {k: 1000 * row["kid"][k] for k in ("value", "low", "high")}
        floor = "   <- the floor" if row.get("role") == "floor" else ""
        told.append(
            f"  {row['label']:{width}}  {kid['value']:7.1f}  ({kid['low']:.1f} to {kid['high']:.1f}){floor}"
        )
    return told


def _coverage(scores: Scores) -> list[str]:
    main = next((row for row in scores.get("rows") or [] if row.get("role") == "main"), {})
    told = []
    if main.get("precision") is not None:
        told.append(f"precision {main['precision']:.0%}: generated images that lie among the real ones")
    if main.get("recall") is not None:
        told.append(f"recall {main['recall']:.0%}: real images that the generated ones cover")
    return told


def _conditioning(scores: Scores) -> list[str]:
    text = scores.get("conditioning")
    if not text:
        return []
    by = text.get("by", "captions")
    meaning = f"the model reads its {by}" if text["low"] > 0 else f"no effect of the {by} is shown"
    return [
        f"held-out loss {text['true']:.4f} with the true {by}, {text['shuffled']:.4f} with shuffled ones "
        f"(difference {text['difference']:.4f}, {text['low']:.4f} to {text['high']:.4f}): {meaning}"
    ]


def _copies(scores: Scores) -> list[str]:
    near = scores.get("neighbours")
    if not near:
        return []
    return [
        f"distance to the nearest training image {near['generated']['median']:.3g}, of held-out real images "
        f"{near['held_out']['median']:.3g}: {near['closer']['value']:.1%} of the generated ones lie closer "
        "than 99 % of the real ones do (about 1 % is to be expected of a model that copies nothing)"
    ]
