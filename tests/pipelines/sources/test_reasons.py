"""Every reason that a source gives is one that the reports can tell of."""

from __future__ import annotations

import ast
from pathlib import Path

import pipelines.sources
from pipelines.sources.reject import REASONS

FILES = sorted(Path(pipelines.sources.__file__).parent.rglob("*.py"))


def given(tree: ast.AST) -> set[str]:
    """Literals that are given as reasons: reject="...", Reject("..."), Refused("..."), Broken("...", ...)."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            values = [word.value for word in node.keywords if word.arg == "reject"]
            if ast.unparse(node.func) in ("Reject", "Refused", "Broken"):
                values += node.args[:1]
            literals = [one for value in values for one in ast.walk(value) if isinstance(one, ast.Constant)]
            found |= {one.value for one in literals if isinstance(one.value, str)}
    return found


def test_reasons_are_known() -> None:
    reasons = set().union(*(given(ast.parse(path.read_text())) for path in FILES))
    assert {"truncated_tar", "outside", "unfinished_shard", "missing"} <= reasons
    assert reasons <= REASONS.keys()
