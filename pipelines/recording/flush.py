"""Writes a spool to MLflow, each record once: `python -m pipelines.recording.flush SPOOL --uri URI`.

A process of its own with low priority, so that MLflow's import, migrations, slowness and outages are never a
stage's. It may be killed at any moment: runs are found again by their tag, metrics by their history, pictures
by their names and model versions by their digest before anything is written a second time.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.recording import spool

if TYPE_CHECKING:
    from pipelines.recording.ledger import Ledger

POLL = 0.3
"""Seconds between looks at the spool."""


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: all is flushed. 3: MLflow did not answer and nobody waits for it any more."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.recording.flush", description=__doc__)
    parser.add_argument("spool", type=Path)
    parser.add_argument("--uri", required=True)
    parser.add_argument("--experiment", default="latentmill")
    parser.add_argument("--artifacts", default=None, help="where a new experiment keeps its artifacts")
    options = parser.parse_args(arguments)
    with open(options.spool / "lock", "w") as lock:
        while not _locked(lock):  # another flusher is at it: wait, or there is nothing left to do
            if not spool.files(options.spool):
                return 0
            time.sleep(POLL)
        return _drain(options.spool, options.uri, options.experiment, options.artifacts)


def _locked(file: object) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # pyright: ignore[reportArgumentType]
    except BlockingIOError:
        return False
    return True


def _drain(folder: Path, uri: str, experiment: str, artifacts: str | None) -> int:
    from pipelines.recording.ledger import Ledger

    ledger: Ledger | None = None
    failures = 0
    while files := spool.files(folder):
        try:
            ledger = ledger or Ledger(uri, experiment=experiment, artifacts=artifacts)
            moved = [_flush(file, ledger) for file in files]
        except Exception as error:
            failures += 1
            (folder / spool.AWAY).touch()
            waited_for = _awaited(files)
            _say(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            if not waited_for and failures >= 2:
                return 3
            ledger = None
            until = time.monotonic() + (min(0.5 * 2**failures, 30.0) if waited_for else 0.5)
            while time.monotonic() < until and _awaited(files) == waited_for:
                time.sleep(POLL)
            continue
        failures = 0
        (folder / spool.AWAY).unlink(missing_ok=True)
        if not any(moved):
            time.sleep(POLL)
    return 0


def _awaited(files: Sequence[spool.SpoolFile]) -> bool:
    """Whether a writer still lives."""
    return any(file.alive() for file in files if file.path.exists())


def _flush(file: spool.SpoolFile, ledger: Ledger) -> bool:
    """Flushes what the file holds now; deletes it when its writer has ended. Whether anything moved."""
    alive = file.alive()  # asked before reading: a writer that ended since then may have written more
    offset = 0
    for offset, record in file.read():
        if record["kind"] == "metrics":
            ledger.collect(record)
            continue
        ledger.flush_metrics()
        ledger.write(record, writer=file.path.stem)
        file.advance(offset)
    ledger.flush_metrics()
    if offset:
        file.advance(offset)
    elif not alive:
        ledger.abandon(file.path.stem)
        file.delete()
        return True
    return bool(offset)


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.nice(5)
    # All processes of a job that is stopped are told; this one ends when the driver's last words are flushed.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(main())
