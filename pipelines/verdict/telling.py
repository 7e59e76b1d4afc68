"""A verdict in words, as a table and as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.verdict.arms import ARMS

Said = Mapping[str, Any]
"""What `pipelines.verdict.ruling` found, with the arms' images."""

_MEANING = {
    "benefit": "the generated images help",
    "no benefit": "no help of the generated images is shown",
    "harm": "the generated images do harm",
}


def sentence(said: Said) -> str:
    """The verdict with the two gains that decide it."""
    best, plain = said["best_without"], said["gains"]["real"]
    text = f"Verdict: {said['verdict']}. With them macro accuracy is {signed(plain)} over real images alone"
    if best != "real":
        text += f" and {signed(said['gains'][best])} over the best without them ({_without(said)})"
    n = said["n"]
    return f"{text}; {n['seeds']} seeds, {n['test']:,} test images, 95 % intervals."


def lines(said: Said) -> list[str]:
    """For a terminal: the verdict, every arm, the floor and the rule."""
    told = [f"verdict: {said['verdict']} ({_MEANING[said['verdict']]})"]
    told.append(f"  {'trained on':28}{'real':>8}{'generated':>11}   macro accuracy           rarest classes")
    for name, arm in _arms(said):
        images = arm["images"]
        told.append(
            f"  {arm['label']:28}{images['real']:8,}{images['generated']:11,}   "
            f"{between(arm['macro']):22}   {between(arm['rare'])}"
            f"{'   <- the floor' if name == 'real' else ''}"
        )
    floor, n = said["floor"], said["n"]
    told.append(
        f"floor: from one seed to another real alone gives {share(floor['low'])} to "
        f"{share(floor['high'])} (standard deviation {share(floor['std'])})"
    )
    for name, arm in _arms(said):
        if name in said["gains"]:
            gain = signed(said["gains"][name])
            told.append(f"gain of real + generated over {arm['label']}: {gain}")
    told.append(
        f"{n['seeds']} seeds, {said['images_seen']:,} images seen by each classifier, {n['test']:,} test "
        "images; 95 % intervals over seeds and test images"
    )
    return [*told, f"rule: {said['rule']}"]


def table(said: Said) -> dict[str, Any]:
    """For the report: {"title", "columns", "rows", "says"}."""
    rows = []
    for name, arm in _arms(said):
        gain = said["gains"].get(name)
        rows.append(
            [
                arm["label"],
                f"{arm['images']['real']:,}",
                f"{arm['images']['generated']:,}",
                between(arm["macro"]),
                between(arm["rare"]),
                signed(gain) if gain else "",
            ]
        )
    floor = said["floor"]
    says = (
        f"{sentence(said)} The floor, real images alone from seed to seed: {share(floor['low'])} to "
        f"{share(floor['high'])}. Rule, fixed beforehand: {said['rule']}."
    )
    return {
        "title": f"Verdict: {said['verdict']}",
        "columns": [
            "trained on",
            "real images",
            "generated images",
            "macro accuracy (95 %)",
            "rarest third of the classes",
            "gain of real + generated over it",
        ],
        "rows": rows,
        "says": says,
    }


def values(said: Said) -> dict[str, float]:
    """As one level of numbers, for curves: `macro_accuracy_real`, `gain_over_real_low`, ..."""
    found = {f"macro_accuracy_{name}": arm["macro"]["value"] for name, arm in said["arms"].items()}
    for name, gain in said["gains"].items():
        found[f"gain_over_{name}"] = gain["value"]
        found |= {f"gain_over_{name}_{end}": gain[end] for end in ("low", "high")}
    return found


def share(value: float) -> str:
    """.731: a share of 1 without the zero."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def signed(interval: Mapping[str, float]) -> str:
    """+.012 (-.004 to +.028)."""
    value, low, high = (
        f"{'+' if interval[k] >= 0 else ''}{share(interval[k])}" for k in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})"


def between(interval: Mapping[str, float]) -> str:
    """.731 (.722 to .741)."""
    return f"{share(interval['value'])} ({share(interval['low'])} to {share(interval['high'])})"


def _arms(said: Said) -> list[tuple[str, Mapping[str, Any]]]:
    """In their own order, which a manifest does not keep."""
    return [(arm.name, said["arms"][arm.name]) for arm in ARMS if arm.name in said["arms"]]


def _without(said: Said) -> str:
    return said["arms"][said["best_without"]]["label"]
