"""Nothing that reads data can be made to run it: calls that would are not in the code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path for package in ("diffusion", "cluster", "pipelines") for path in (ROOT / package).rglob("*.py")
)

BANNED = {
    "pickle.load",
    "pickle.loads",
    "cloudpickle.load",
    "cloudpickle.loads",
    "joblib.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "os.system",
    "eval",
    "exec",
}
METHODS = {"extract", "extractall"}


def faults(source: str, file: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        wrong = (
            name in BANNED
            or name.rpartition(".")[2] in METHODS
            or words.get("shell") == "True"
            or words.get("allow_pickle") == "True"
            or words.get("trust_remote_code") == "True"
            or (name == "torch.load" and words.get("weights_only") != "True")
        )
        if wrong:
            found.append(f"{file}:{node.lineno} {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_call_runs_what_it_reads(path: Path) -> None:
    assert faults(path.read_text(), path.relative_to(ROOT).as_posix()) == []


@pytest.mark.parametrize(
    "call",
    [
        "pickle.loads(data)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "tar.extractall(folder)",
        "subprocess.run(line, shell=True)",
        "eval(text)",
    ],
)
def test_the_test_sees_them(call: str) -> None:
    assert faults(call, "pipelines/x.py")
