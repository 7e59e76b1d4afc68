"""A verdict as words, table, numbers and picture."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.commands import results
from pipelines.report.gather import RunView, StageView
from pipelines.verdict import telling
from pipelines.verdict.chart import COLOURS, LABEL, PLOT, chart


def interval(value: float, reach: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - reach, "high": value + reach}


def said(**changes: Any) -> dict[str, Any]:
    names = ("real", "class_balanced", "balanced_softmax", "augmented", "generated")
    labels = ("real", "real, class-balanced loss", "real, balanced softmax", "real + generated", "generated")
    images = [(1363, 0)] * 3 + [(1363, 2637), (0, 4000)]
    return {
        "verdict": "benefit",
        "rule": "benefit if ...",
        "best_without": "balanced_softmax",
        "gains": {n: interval(v, 0.01) for n, v in zip(names, (0.04, 0.03, 0.0125), strict=False)},
        "arms": {
            name: {
                "label": label,
                "images": {"real": real, "generated": made},
                "macro": interval(value),
                "rare": interval(value - 0.1, 0.02),
                "seeds": [value],
            }
            for name, label, (real, made), value in zip(
                names, labels, images, (0.8, 0.81, 0.8275, 0.84, 0.7), strict=True
            )
        },
        "per_class": {
            "Ankle boot": {
                "real": 400, "generated": 0, "test": 1000,
                "gain": {"real": interval(0.0), "balanced_softmax": interval(-0.02, 0.03)},
            },
            "Trouser": {
                "real": 20, "generated": 380, "test": 1000,
                "gain": {"real": interval(0.1, 0.05), "balanced_softmax": interval(0.05, 0.02)},
            },
        },
        "floor": {"low": 0.79, "high": 0.81, "std": 0.008},
        "n": {"seeds": 5, "test": 10_000, "classes": 10, "bootstrap": 4000},
        "images_seen": 19_200,
        **changes,
    }  # fmt: skip


def test_a_run_ends_with_the_verdict_its_floor_and_its_rule() -> None:
    kept = json.loads(json.dumps({"report": {"verdict": said()}}, sort_keys=True))
    stage = StageView("verdict", kind="judge", manifest=kept)
    told = results.of_run(RunView("r", stages=[stage, StageView("images", kind="ingest")]))
    assert told[0] == "verdict: benefit (the generated images help)"
    assert told[2].split() == ["real", "1,363", "0", ".800", "(.790", "to", ".810)", ".700", "(.680", "to",
                               ".720)", "<-", "the", "floor"]  # fmt: skip
    assert len({line.index("(") for line in told[2:7]}) == 1, "columns stand under each other"
    assert (
        told[7] == "floor: from one seed to another real alone gives .790 to .810 (standard deviation .008)"
    )
    assert "gain of real + generated over real, balanced softmax: +.013 (+.003 to +.022)" in told
    assert told[-1] == "rule: benefit if ..."
    assert results.of_run(RunView("r", stages=[StageView("images", kind="ingest")])) == []


def test_the_sentence_names_the_best_arm_without_generated_images() -> None:
    assert telling.sentence(said()) == (
        "Verdict: benefit. With them macro accuracy is +.040 (+.030 to +.050) over real images alone and "
        "+.013 (+.003 to +.022) over the best without them (real, balanced softmax); 5 seeds, 10,000 test "
        "images, 95 % intervals."
    )
    assert "best without" not in telling.sentence(said(best_without="real"))


def test_the_table_has_a_row_an_arm() -> None:
    table = telling.table(said())
    assert table["title"] == "Verdict: benefit"
    assert [row[0] for row in table["rows"]] == [arm["label"] for arm in said()["arms"].values()]
    assert table["rows"][0][1:] == [
        "1,363", "0", ".800 (.790 to .810)", ".700 (.680 to .720)", "+.040 (+.030 to +.050)",
    ]  # fmt: skip
    assert table["rows"][3][-1] == "", "nothing is gained over itself"


def test_numbers_for_curves() -> None:
    found = telling.values(said())
    assert found["macro_accuracy_augmented"] == 0.84
    assert found["gain_over_real_low"] == pytest.approx(0.03)
    assert len(found) == 5 + 3 * 3


@pytest.mark.parametrize(
    ("value", "text"), [(0.7312, ".731"), (1.0, "1.000"), (-0.02, "-.020"), (0.0, ".000")]
)
def test_shares(value: float, text: str) -> None:
    assert telling.share(value) == text


def test_the_chart_puts_every_gain_where_it_belongs() -> None:
    image = np.asarray(Image.open(io.BytesIO(chart(said()))))
    low, high = -0.05, 0.15
    margin = 0.05 * (high - low)
    low, high = low - margin, high + margin

    def middle(colour: tuple[int, ...], rows: slice) -> float:
        """Where the dot of a colour is: its highest columns."""
        found = (image[rows, LABEL:] == colour).all(-1).sum(0)
        return float(np.flatnonzero(found >= found.max() - 1).mean())

    first, second = slice(46, 80), slice(80, 114)
    for rows, gains in ((first, (0.0, -0.02)), (second, (0.1, 0.05))):
        for colour, gain in zip(COLOURS, gains, strict=True):
            assert middle(colour, rows) == pytest.approx((gain - low) / (high - low) * PLOT, abs=2)
    assert chart(said()) == chart(said())
    wide = said()
    wide["per_class"]["Trouser"]["gain"]["real"] = {"value": 0.0, "low": -1.0, "high": 1.0}
    assert chart(wide) != chart(said())
