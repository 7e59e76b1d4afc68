"""YAML 1.2 as recipes use it: the core schema's scalars, no tags, no key twice, and the line of every value.

PyYAML follows YAML 1.1, where `1e-4` is text and `no` is false; only its parser is used here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

NULL = re.compile(r"null|Null|NULL|~|")
TRUE = re.compile(r"true|True|TRUE")
FALSE = re.compile(r"false|False|FALSE")
INTEGER = re.compile(r"[-+]?\d+(_\d+)*")
OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.\d+|\d+(_\d+)*(\.\d*)?)([eE][-+]?\d+)?")
INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

Scalar = str | int | float | bool | None
Place = tuple[str | int, ...]
"""Where a value stands in the tree: keys and list positions from the root."""


@dataclass(frozen=True)
class Document:
    tree: Any
    """Dicts, lists and scalars."""
    lines: Mapping[Place, int] = field(default_factory=dict)
    """1-based line of each value, or of its key where it has one."""


def scalar(text: str) -> Scalar:
    """The value of a plain scalar by the core schema (YAML 1.2.2, section 10.3.2); `1_000` is an integer."""
    if NULL.fullmatch(text):
        return None
    if TRUE.fullmatch(text):
        return True
    if FALSE.fullmatch(text):
        return False
    if INTEGER.fullmatch(text):
        return int(text)
    if OTHER_BASE.fullmatch(text):
        return int(text[2:], 8 if text[1] == "o" else 16)
    if FLOAT.fullmatch(text):
        return float(text)
    if INFINITE.fullmatch(text):
        return float(text.lower().replace(".", ""))
    return text


def read(text: str, name: str) -> Document:
    """Reads one document; `name` stands before the line number in the `ValueError` that a mistake raises."""
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{name}{line}: not YAML: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: not YAML: {' '.join(str(error).split())}.") from None
    lines: dict[Place, int] = {}
    return Document(None if root is None else _value(root, (), lines, name, ()), lines)


def _value(node: yaml.Node, place: Place, lines: dict[Place, int], name: str, above: tuple[int, ...]) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(place, line)
    if id(node) in above:
        raise ValueError(f"{name}:{line}: an alias stands inside what it names.")
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode) and node.tag == yaml.BaseLoader.DEFAULT_MAPPING_TAG:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ValueError(f"{name}:{line}: a key must be a single word.")
            key = key_node.value
            if key in mapping:
                raise ValueError(
                    f"{name}:{line}: {key!r} stands here twice, first in line {lines[(*place, key)]}."
                )
            lines[(*place, key)] = line
            mapping[key] = _value(value_node, (*place, key), lines, name, above)
        return mapping
    if isinstance(node, yaml.SequenceNode) and node.tag == yaml.BaseLoader.DEFAULT_SEQUENCE_TAG:
        return [_value(item, (*place, n), lines, name, above) for n, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and node.tag == yaml.BaseLoader.DEFAULT_SCALAR_TAG:
        return node.value if node.style else scalar(node.value)
    raise ValueError(f"{name}:{line}: tags such as {node.tag!r} are not read; write the value itself.")


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the texts that `scalar` would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "'" if not isinstance(scalar(text), str) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_float(dumper: _Dumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    text = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(text, text)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")  # PyYAML would tag `1e+20`, which 1.1 takes for text
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_float)


def write(tree: Any) -> str:
    """The tree as YAML that `read` reads back to the same tree; short branches on one line."""
    return yaml.dump(
        tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None
    )
