"""A folder with emoji and a recipe for them, and `latentmill run` there, on a Ray of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.test_end_to_end import emoji

ROOT = Path(__file__).parents[2]
FILE = "recipe.yaml"


@contextlib.contextmanager
def placed(recipe: str, *, every: int) -> Iterator[Path]:
    """`every`: of 1,600 emoji, which ones lie in `emoji/`."""
    # Ray's sockets lie in it, and their names may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        emoji(Path(folder) / "emoji", slice(0, 1600, every))
        (Path(folder) / FILE).write_text(recipe)
        yield Path(folder)


def environment(place: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "LATENTMILL_", "MLFLOW_"))}
    own = {"LATENTMILL_STORE": str(place / "store"), "RAY_TMPDIR": str(place), "RAY_worker_niceness": "0"}
    return {**kept, **own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def begun(place: Path, *words: str, **more: str) -> subprocess.Popen[str]:
    """The run of its recipe; what it says and its errors come as one."""
    command = [sys.executable, "-m", "pipelines", "run", FILE, *words]
    said = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment(place, **more), cwd=place, stdout=said, stderr=subprocess.STDOUT, text=True
    )
