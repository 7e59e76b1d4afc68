from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.storage import Storage
from pipelines import pictures, report
from pipelines.dataset import describe, write_manifest
from pipelines.report import charts, page
from pipelines.report.frames import chosen
from pipelines.report.gather import follow, gather
from pipelines.shards import write_shard
from pipelines.stage import Row, Sample

SCORES = {
    "name": "KID-EffLite0",
    "frechet_name": "FD-EffLite0",
    "extractor": "efficientnet_lite0",
    "seed": 0,
    "rows": [
        {"label": "this run", "role": "main", "n": [64, 900],
         "kid": {"value": 0.0584, "low": 0.05, "high": 0.07}, "frechet": {"value": 61.0, "biased": True},
         "precision": 0.71, "recall": 0.32},
        {"label": "real against real", "role": "floor", "n": [80, 900],
         "kid": {"value": 0.0009, "low": -0.001, "high": 0.002}},
    ],
    "conditioning": {"true": 0.6, "shuffled": 0.63, "difference": 0.03, "low": 0.01, "high": 0.05, "n": 80},
    "neighbours": {
        "distance": "cosine distance",
        "generated": {"n": 64, "q05": 0.2, "median": 0.34, "q95": 0.5},
        "held_out": {"n": 80, "q05": 0.1, "median": 0.28, "q95": 0.4},
        "closer": {"value": 0.004, "low": 0.0, "high": 0.02},
    },
    "pictures": {"neighbours.png": "Generated images above their nearest training images"},
}  # fmt: skip


def picture(colour: tuple[int, int, int]) -> bytes:
    return pictures.grid([[Image.new("RGB", (16, 16), colour)]], column_labels=["a <red> fox"])


def started(name: str, kind: str, fingerprint: str) -> dict[str, Any]:
    return {"kind": "stage_start", "stage": name, "type": kind, "fingerprint": fingerprint, "time": 1.0}


def plan(**fingerprints: str | None) -> dict[str, Any]:
    kinds = {"images": "ingest", "base": "train", "verdict": "evaluate"}
    return {
        "kind": "plan",
        "time": 1.7e9,
        "stages": [
            {
                "name": name,
                "stage": kind,
                "state": "run",
                "summary": "",
                "fingerprint": fingerprints.get(name),
            }
            for name, kind in kinds.items()
        ],
    }


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    """A finished run of three stages, as the runner leaves it."""
    events: list[dict[str, Any]] = [plan(images="i")]
    manifests = {
        ("ingest", "i"): {"kind": "dataset", "stage": "ingest", "fingerprint": "i", "version": 1,
                          "counts": {"inputs": 1000, "committed": 998, "rejected": 2,
                                     "reasons": {"not-an-image": 2}},
                          "execution": {"seconds": 4.0, "versions": {"torch": "2.14.1"}}},
        ("train", "b"): {"kind": "snapshot", "stage": "train", "fingerprint": "b", "version": 3,
                         "inputs": {"images": {"digest": "abcdef012345", "fingerprint": "i"}},
                         "snapshot": {"images_seen": 4000}},
        ("evaluate", "v"): {"kind": "report", "stage": "evaluate", "fingerprint": "v", "version": 1},
    }  # fmt: skip
    storage = Storage.at(tmp_path)
    run = storage.folder("runs").folder("tiny & small")
    for (kind, fingerprint), manifest in manifests.items():
        storage.folder(kind).folder(fingerprint).replace("manifest.json", json.dumps(manifest).encode())
    verdict = storage.folder("evaluate").folder("v")
    verdict.replace("metrics.json", json.dumps(SCORES).encode())
    verdict.replace("neighbours.png", picture((1, 200, 1)))
    for name, kind, fingerprint in (
        ("images", "ingest", "i"),
        ("base", "train", "b"),
        ("verdict", "evaluate", "v"),
    ):
        events.append(started(name, kind, fingerprint))
        if name == "base":
            for step in range(0, 4001, 20):
                values = {"loss": 1 / (1 + step), "learning_rate": 1e-3}
                events.append({"kind": "metrics", "stage": "base", "step": step, "values": values})
            for step in (2000, 4000):
                file = f"pictures/base-samples-{step}.png"
                run.replace(file, picture((200, 1, step % 255)))
                events.append(
                    {"kind": "picture", "stage": "base", "step": step, "name": "samples", "file": file}
                )
        events.append({"kind": "stage_end", "stage": name, "state": "done", "error": None, "seconds": 8.0})
    run.replace("recipe.yaml", b"name: tiny & small\n")
    run.replace("events.jsonl", b"\n".join(json.dumps(e).encode() for e in events) + b'\n{"kind": "torn')
    return storage


def test_generated_images_show_by_index_with_their_prompts(tmp_path: Path):
    draws = [(f"k{9 - n}", n, (20 * n, 0, 0)) for n in range(10)]  # keys run against the indices
    dataset = Storage.at(tmp_path).folder("generate").folder("g")
    pairs = []
    for key, index, colour in sorted(draws):
        members = {"png": pictures.png(Image.new("RGB", (16, 16), colour)), "txt": f"prompt {index}".encode()}
        pairs.append((Row(key=key), Sample(key=key, members=members, meta={"index": index})))
    info = write_shard(dataset, "00000", pairs, split="train")
    write_manifest(dataset, describe([info], stage="generate", fingerprint="g"))
    storage = Storage.at(tmp_path)
    done = {"name": "drawn", "stage": "generate", "state": "done", "fingerprint": "g"}
    events = json.dumps({"kind": "plan", "time": 1.0, "stages": [done]}).encode()
    storage.folder("runs").folder("tiny").replace("events.jsonl", events)
    first, second = gather(storage, "tiny").stages[0].sheets
    wide, narrow = Image.open(io.BytesIO(first)), Image.open(io.BytesIO(second))
    assert narrow.width < wide.width
    middle = wide.height - 48
    shown = [wide.getpixel((48 + n * (96 + pictures.GAP), middle)) for n in range(8)]
    assert shown == [(20 * n, 0, 0, 255) for n in range(8)]
    dataset.delete_folder()
    write_manifest(dataset, describe([info], stage="generate", fingerprint="g"))
    assert gather(storage, "tiny").stages[0].sheets == [first, second]  # drawn once


class Page(HTMLParser):
    """What a page would load, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [
            v or "" for k, v in attrs if k in ("src", "srcset", "href", "data", "poster", "action")
        ]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_shows_the_run_and_loads_nothing(store: Storage):
    path = report.write(store, "tiny & small")
    text = Path(path).read_text()
    page = Page(text)
    words = " ".join(" ".join(page.words).split())
    for expected in (
        "tiny & small", "998 samples", "2 of 1,000 rejected: 2 not-an-image", "4,000 images seen", "58.4",
        "KID-EffLite0", "real against real", "The model heeds its captions", "abcdef012345", "torch 2.14.1",
        "latentmill run", "8.0 s",
    ):  # fmt: skip
        assert expected in words, expected
    assert page.loads
    assert all(load.startswith("data:") for load in page.loads)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|https?://", text)
    assert text.count("<img") == 3  # two frames of the film, and the neighbours


def test_it_opens_in_a_browser(store: Storage, tmp_path: Path):
    """Headless Chromium runs the page's script: the slider appears and shows the last frame alone."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium; install it with: apt-get install chromium")
    log = tmp_path / "net.json"
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}",
        "--host-resolver-rules=MAP * 127.0.0.1:9", f"--log-net-log={log}", "--virtual-time-budget=2000",
        "--dump-dom",
        f"file://{report.write(store, 'tiny & small').replace(' ', '%20').replace('&', '%26')}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "4,000 images seen</output>" in done.stdout
    frames = re.findall(r'<img alt="base: samples after[^>]*?>', done.stdout)
    assert [' hidden=""' in frame for frame in frames] == [True, False]
    assert "Is it copying?" in done.stdout
    asked = re.findall(r'"url":"(https?://[^"]*)"', log.read_text()) if log.exists() else []
    assert [url for url in asked if "google" not in url and "gvt1" not in url] == []
    assert "Refused to" not in done.stderr


def test_a_run_in_progress_shows_how_far_it_is():
    progress = {"kind": "progress", "stage": "base", "done": 120, "total": 4000, "unit": "images"}
    events = [plan(images="i"), started("base", "train", "b"), progress]
    run = follow("tiny", events)
    assert [stage.state for stage in run.stages] == ["waiting", "running", "waiting"]
    from pipelines.report.page import render

    assert "120 of 4,000 images" in render(run)
    assert run.state == "running"


def test_a_failure_is_told_with_its_message(store: Storage):
    ended = {"kind": "stage_end", "stage": "images", "state": "failed", "error": "too many <rejects>"}
    run = follow("tiny", [plan(), started("images", "ingest", "i"), ended])
    from pipelines.report.page import render

    assert run.state == "failed"
    assert "too many &lt;rejects&gt;" in render(run)


def test_a_resumed_stage_goes_on_with_its_curves_and_a_changed_one_starts_anew():
    def loss(step: int, value: float) -> dict[str, Any]:
        return {"kind": "metrics", "stage": "base", "step": step, "values": {"loss": value}}

    before = [plan(), started("base", "train", "b"), loss(10, 1.0), loss(20, 0.5)]
    resumed = follow("tiny", [*before, plan(), started("base", "train", "b"), loss(20, 0.5), loss(30, 0.4)])
    assert resumed.stages[1].curves == {"loss": {10: 1.0, 20: 0.5, 30: 0.4}}
    changed = follow("tiny", [*before, plan(), started("base", "train", "c"), loss(10, 2.0)])
    assert changed.stages[1].curves == {"loss": {10: 2.0}}


def test_an_earlier_fingerprint_does_not_stand_for_a_planned_stage(store: Storage):
    run_folder = store.folder("runs").folder("tiny & small")
    events = run_folder.read("events.jsonl").rpartition(b"\n")[0] + b"\n"
    run_folder.replace("events.jsonl", events + json.dumps(plan(images="other")).encode() + b"\n")
    assert [stage.state for stage in gather(store, "tiny & small").stages] == ["waiting"] * 3


def test_writing_imports_nothing_heavy(store: Storage):
    code = (
        "import sys; from cluster.storage import Storage; from pipelines import report;"
        f"report.write(Storage.at({store.url!r}), 'tiny & small');"
        "assert not {'torch', 'mlflow', 'ray', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01324, "0.0132"), (1.2, "1.2"), (12.44, "12.4"), (1599, "1,599"), (0.0, "0"), (-0.2, "-0.2")],
)
def test_numbers_keep_three_digits(value: float, text: str):
    assert charts.number(value) == text


def test_ticks_are_round_and_inside():
    assert charts.ticks(0.0, 1.0, 4) == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert charts.ticks(-3.0, 47.0, 5) == pytest.approx([0, 10, 20, 30, 40])


def test_a_long_film_keeps_its_first_and_last_frame():
    steps = [float(n) for n in range(1000)]
    kept = chosen(steps)
    assert (kept[0], kept[-1], len(kept)) == (0.0, 999.0, 24)


def test_a_curve_without_finite_values_is_left_out():
    assert charts.curves({"loss": [(0.0, float("nan"))]}, x="images") == ""
    assert charts.curves({"loss": [(5.0, 1.0)]}, x="images").count("<circle") == 1


def test_an_output_is_counted_in_samples_whatever_its_stage_counted():
    """A view holds real images beside those that augment added and told of."""
    run = follow("tiny", [plan(), started("images", "ingest", "i")])
    stage = run.stages[0]
    stage.unit, stage.total, stage.seconds = "generated images", 1_707, None
    stage.state, stage.manifest = "done", {"counts": {"committed": 14_070}}
    assert "14,070 samples" in page.render(run)
    assert "generated images" not in page.render(run)
