"""A benchmark's result: one line of results.jsonl, and RESULTS.md rendered from all of them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
LINES = HERE / "results.jsonl"
PAGE = HERE / "RESULTS.md"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure, with what it was paired with in the same run."""

    name: str
    """`line/`, `core/`, `data/`, `encode/`, `train/`, `sr/`, `verdict/` or `cluster/`, then what."""
    value: float
    unit: str
    better: Literal["higher", "lower"]
    target: float | None = None
    against: str = ""
    """What it was paired with in the same run, and that one's figure."""
    n: int = 1
    spread: tuple[float, float] | None = None
    """Smallest and largest of the n runs, or a 95 % interval where `note` says so."""
    note: str = ""
    command: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


def hardware() -> str:
    """Model of the processor, number of cores, memory and GPU: what a figure depends on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1]
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = " ".join(names[0].split()) if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {gpu}"


def record(result: Result) -> None:
    """Appends the result to results.jsonl and renders RESULTS.md anew; misses stay like any other line."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE
    ).stdout
    line = {
        **asdict(result),
        "met": result.met,
        "hardware": hardware(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit.strip(),
    }
    with LINES.open("a") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")
    PAGE.write_text(render())


def render() -> str:
    """RESULTS.md: newest first within a name, misses included."""
    lines = [json.loads(text) for text in LINES.read_text().splitlines()] if LINES.exists() else []
    page = [
        "# Results",
        "",
        "Rendered from `results.jsonl` by `make bench`; newest first within a name. A miss stays.",
        "Speeds are measured side by side in one run; qualities name their extractor and floor.",
        "",
    ]
    for group in sorted({line["name"].split("/")[0] for line in lines}):
        page += [
            f"## {group}",
            "",
            "| name | value | target | against | n, spread | note | when |",
            "|---|---|---|---|---|---|---|",
        ]
        names = dict.fromkeys(line["name"] for line in lines if line["name"].split("/")[0] == group)
        for name in sorted(names):
            for line in reversed([line for line in lines if line["name"] == name]):
                page.append(_row(line))
        page.append("")
    machines = sorted({line["hardware"] for line in lines})
    return "\n".join([*page, *(f"Machine: {machine}." for machine in machines), ""])


def _row(line: dict[str, Any]) -> str:
    target = ""
    if line["target"] is not None:
        sign = "≥" if line["better"] == "higher" else "≤"
        target = f"{sign} {line['target']:g} {'met' if line['met'] else '**missed**'}"
    spread = f"{line['spread'][0]:.3g} to {line['spread'][1]:.3g}" if line["spread"] else ""
    return (
        f"| {line['name']} | {line['value']:.4g} {line['unit']} | {target} | {line['against']} | {line['n']}"
        f"{', ' + spread if spread else ''} | {line['note']} | {line['date']} {line['commit']} |"
    )
