"""Runs the benchmarks: `python -m tests.benchmarks [only=WORD]`; each appends one line to results.jsonl."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from tests.benchmarks.results import Result, record

MODULES = (
    "startup",
    "core",
    "techniques",
    "plan",
    "planning",
    "verifying",
    "data",
    "duplicates",
    "stream",
    "stream_reads",
    "encoding",
    "embedding",
    "text_storage",
    "autoencoder",
    "quickstart",
    "upscale",
    "detection",
    "clip",
    "captioning",
    "verdict",
    "cluster",
    "checkpoints",
    "training",
    "parallel",
    "parallel_gpu",
    "faults",
    "tracking",
)


def benchmarks() -> dict[str, Callable[[], Iterable[Result]]]:
    """Name -> function of every benchmark, in the order of MODULES."""
    found: dict[str, Callable[[], Iterable[Result]]] = {}
    for module in MODULES:
        loaded = importlib.import_module(f"tests.benchmarks.{module}")
        found |= {
            name.removeprefix("bench_"): f for name, f in vars(loaded).items() if name.startswith("bench_")
        }
    return found


def main(arguments: list[str]) -> int:
    """Runs those whose name holds the word; a benchmark that fails is told and the others still run."""
    only = next((a.removeprefix("only=") for a in arguments if a.startswith("only=")), "")
    chosen = {name: function for name, function in benchmarks().items() if only in name}
    if not chosen:
        print(f"no benchmark has {only!r} in its name; there are: {', '.join(benchmarks())}", file=sys.stderr)
        return 2
    failed = []
    for name, function in chosen.items():
        start = time.monotonic()
        try:
            for result in function():
                record(replace(result, command=f"make bench only={name}"))
                mark = {True: "met", False: "MISSED", None: ""}[result.met]
                print(
                    f"{result.name:48} {result.value:10.4g} {result.unit:12} {mark:7} {result.against}",
                    flush=True,
                )
        except Exception as error:
            failed.append(name)
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        print(f"  ({name}: {time.monotonic() - start:.0f} s)", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
