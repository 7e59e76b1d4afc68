"""Live rows: counts, rates and times left as the events give them, on a terminal and without one."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipelines import pictures, progress
from pipelines.progress import Board, StageRow


def event(kind: str, time: float, stage: str | None = "train", **rest: Any) -> dict[str, Any]:
    return {"kind": kind, "stage": stage, "time": time, **rest}


def text_of(console: Console, board: Board, now: float) -> str:
    with console.capture() as capture:
        console.print(progress.rows_table(board, now, width=console.width))
    return capture.get()


def test_rate_and_time_left_follow_the_window() -> None:
    row = StageRow("train")
    for second in range(101):
        row.progress(float(second), 10 * second if second <= 50 else 500 + 2 * (second - 50), 1000, "images")
    assert row.rate == pytest.approx(2.0)
    assert row.left(100.0) == pytest.approx((1000 - 600) / 2)
    assert row.left(130.0) == pytest.approx((1000 - 600) / 2 - 30)


def test_what_goes_back_to_a_checkpoint_has_no_negative_rate() -> None:
    row = StageRow("a")
    row.progress(0.0, 900, 1000, "images")
    row.progress(60.0, 800, 1000, "images")
    assert row.rate is None
    row.progress(70.0, 900, 1000, "images")
    assert row.rate == pytest.approx(10.0)


def test_a_stage_without_progress_claims_no_rate() -> None:
    row = StageRow("train")
    row.progress(1.0, 0, 100, "images")
    assert row.rate is None
    assert row.left(2.0) is None


def test_a_row_says_first_what_matters_first() -> None:
    board = Board({"train": StageRow("train")})
    board.take(event("stage_start", 0.0))
    board.take(event("progress", 1.0, done=8, total=80, unit="images"))
    said = {"loss": 0.25, "loss_by_time/0.000-0.125": 9.0, "grad_norm": 9.0, "lr": 9.0, "memory_gib": 9.0}
    said |= {"tflops": 31.46, "share_of_peak": 0.318, "goodput": 0.934, "badput_data": 9.0, "workers": 9.0}
    board.take(event("metrics", 1.0, step=8, values={**said, "checkpoint_age": 9.0, "restarts": 9.0}))
    board.take(event("metrics", 1.0, step=8, values={"kid": 12.5, "validation_loss": float("nan")}))
    shown = progress.status(board.rows["train"], 1.0)
    assert shown.endswith("  loss 0.25  validation loss nan  kid 12.5  goodput 93 %  share of peak 32 %")


def test_the_board_follows_a_stage_from_start_to_end() -> None:
    console = Console(width=100, file=io.StringIO())
    board = Board(
        {"train": StageRow("train", told="after latents"), "images": StageRow("images", state="done")}
    )
    assert "after latents" in text_of(console, board, 0.0)
    assert "finished before" in text_of(console, board, 0.0)
    board.take(event("stage_start", 100.0))
    board.take(event("progress", 101.0, done=100, total=1599, unit="images"))
    board.take(event("progress", 103.0, done=300, total=1599, unit="images"))
    board.take(event("metrics", 103.0, step=300, values={"grad_norm": 1.0, "loss": 0.5123, "name": "x"}))
    shown = text_of(console, board, 103.0)
    assert "300 of 1,599 images  100/s, 13 s left  loss 0.512" in shown
    board.take(event("progress", 119.0, done=1599, total=1599, unit="images"))
    board.take(event("stage_end", 120.0))
    assert "1,599 of 1,599 images, 20 s" in text_of(console, board, 500.0)


def test_a_failed_stage_says_why_in_one_line() -> None:
    board = Board({})
    board.take(event("stage_start", 1.0))
    board.take(event("stage_end", 2.0, error="no disk left\nTraceback"))
    assert board.rows["train"].state == "failed"
    assert progress.status(board.rows["train"], 2.0) == "no disk left"


def test_no_input_is_lost_in_the_line_about_rejects() -> None:
    told = event(
        "rejects", 1.0, inputs=1600, committed=1597, rejected=3, reasons={"truncated": 2, "too_large": 1}
    )
    assert (
        progress.conservation(told)
        == "1,600 inputs = 1,597 committed + 3 rejected (1 too_large, 2 truncated)"
    )
    filtered = {"inputs": 1600, "committed": 1500, "rejected": 0, "dropped": 100, "reasons": {}}
    assert progress.conservation(filtered) == "1,600 inputs = 1,500 committed + 0 rejected + 100 dropped"


def test_without_a_terminal_each_line_stands_alone() -> None:
    file = io.StringIO()
    listener = progress.shown(Console(file=file, width=40), [("images", "new"), ("train", "after images")])
    with listener:
        listener(event("stage_start", 0.0))
        for second in range(41):
            listener(event("progress", float(second), done=second, total=40, unit="images"))
        listener(event("note", 40.0, text="a [bracket] stays"))
        listener(event("picture", 40.0, name="samples", step=1, png=b""))
        listener(event("stage_end", 41.0))
    assert file.getvalue().splitlines() == [
        "train: starts",
        "train: 15 of 40 images, 1/s, 25 s left",
        "train: 30 of 40 images, 1/s, 10 s left",
        "train: a [bracket] stays",
        "train: 40 of 40 images, done in 41 s",
    ]


def test_on_a_terminal_the_samples_are_redrawn_below_the_rows() -> None:
    from PIL import Image

    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=90, height=40)
    listener = progress.shown(console, [("train", "new")])
    grid = pictures.grid([[Image.fromarray(np.full((32, 32, 3), 90, np.uint8))] * 4], cell=32)
    with listener:
        listener(event("stage_start", 0.0))
        listener(event("picture", 1.0, name="samples", step=100, png=grid))
        listener._live.refresh()  # pyright: ignore
        assert "train: samples" in file.getvalue()
        assert "38;2;90;90;90" in file.getvalue()
        listener(event("note", 1.0, text="kept above"))
        listener(event("stage_end", 2.0))
    assert "kept above" in file.getvalue()


def test_what_was_interrupted_is_not_called_failed() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=90, height=40)
    listener = progress.shown(console, [("train", "new")])
    with listener:
        listener(event("stage_start", 0.0))
        listener(event("progress", 1.0, done=40, total=100, unit="images"))
        listener(event("stage_end", 2.0, error="RuntimeError: the run was interrupted."))
        listener.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert "· train" in file.getvalue().rpartition("✗")[2].replace("  ", " ")
    assert "interrupted at 40 of 100 images" in file.getvalue()


def test_nor_is_it_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    listener = progress.shown(Console(file=file, width=90), [("train", "new"), ("other", "new")])
    for stage, state in (("train", "interrupted"), ("other", "failed")):
        listener(event("stage_start", 0.0, stage))
        listener(event("stage_end", 2.0, stage, state=state, error="Stopped at 40 images."))
    assert "train: Stopped at 40 images.\n" in file.getvalue()
    assert "other: failed: Stopped at 40 images.\n" in file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.4, "9.4 s"),
        (59.6, "1 min 00 s"),
        (75, "1 min 15 s"),
        (3725, "1 h 02 min"),
        (-1, "0.0 s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1599, "1,599"), (0.03217, "0.0322"), (1234.5, "1,234"), (None, "?")]
)
def test_numbers(value: float | None, text: str) -> None:
    assert progress.number(value) == text
