"""What a HuggingFace dataset's README says of its files: configurations, splits, and the names of classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.sources.glob import name_pattern as compiled
from pipelines.sources.listing import SPLITS

_CARD_BYTES = 1 << 20
_SPLIT = re.compile(
    r"(?:^|[/._\- ])(train|training|val|valid|validation|dev|test|testing|eval|evaluation)(?=[/._\- ]|$)"
)
_MORE = {**SPLITS, "eval": "test", "evaluation": "test"}


@dataclass(frozen=True, kw_only=True)
class Card:
    """One configuration of a dataset."""

    patterns: Sequence[tuple[str, str]] = ()
    """Split as it is called there, and a pattern of files; files decide by their names if there are none."""
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Column -> names of its numbers."""

    def files(self, names: Sequence[str]) -> dict[str, str]:
        """File -> the split that it is of ("" where nothing does); other configurations' are left out."""
        if not self.patterns:
            return {name: _by_name(name) for name in names}
        found: dict[str, str] = {}
        for split, pattern in self.patterns:
            match = compiled(pattern.removeprefix("./"))
            found |= {name: SPLITS.get(split.lower(), "") for name in names if match.fullmatch(name)}
        return found


def card(readme: bytes | None, config: str | None) -> Card:
    """The configuration of that name, or the only or default one.

    Raises:
        ValueError: there is none of that name, or several and none is chosen.
    """
    said = _front(readme or b"")
    configs = [one for one in _list(said.get("configs")) if isinstance(one, dict)]
    told = [one for one in _list(said.get("dataset_info")) if isinstance(one, dict)]
    names = [str(one.get("config_name", "default")) for one in configs or told]
    if config is not None and config not in names:
        raise ValueError(
            f"the dataset has no configuration {config!r}; there are: {', '.join(names[:40]) or 'none'}."
        )
    if config is None and len(names) > 1:
        defaults = [str(one.get("config_name")) for one in configs if one.get("default") is True]
        config = next(iter(defaults), "default" if "default" in names else None)
        if config is None:
            raise ValueError(
                f"the dataset has several configurations; choose one by `config:` {', '.join(names[:40])}."
            )
    config = config if config is not None else next(iter(names), "default")
    chosen = next((one for one in configs if str(one.get("config_name", "default")) == config), {})
    info = next((one for one in told if str(one.get("config_name", "default")) == config), {})
    return Card(patterns=_patterns(chosen.get("data_files")), classes=_classes(info.get("features")))


def _front(readme: bytes) -> dict[str, Any]:
    """The YAML between the first two lines of three dashes; empty where that is none."""
    import yaml

    match = re.match(
        r"\ufeff?---\s*\n(.*?)\n---\s*(?:\n|$)", readme[:_CARD_BYTES].decode("utf-8", "replace"), re.DOTALL
    )
    try:
        # Plain data only; what is not understood is as if it were not said.
        found = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _patterns(files: Any) -> list[tuple[str, str]]:
    if isinstance(files, str):
        return [("train", files)]
    found: list[tuple[str, str]] = []
    for one in _list(files)[:1000]:
        if isinstance(one, str):
            found.append(("train", one))
        elif isinstance(one, dict):
            split = str(one.get("split", "train"))
            found += [(split, path) for path in _list(one.get("path"))[:1000] if isinstance(path, str)]
    return found


def _classes(columns: Any) -> dict[str, list[str]]:
    """Column -> names, as cards write them: {"class_label": {"names": {"0": "cat", "1": "dog"}}}."""
    found = {}
    for column in _list(columns)[:1000]:
        kind = column.get("dtype") if isinstance(column, dict) else None
        names = kind.get("class_label", {}).get("names") if isinstance(kind, dict) else None
        if isinstance(names, dict) and all(str(n) in {str(k) for k in names} for n in range(len(names))):
            by_number = {str(number): str(name) for number, name in names.items()}
            found[str(column.get("name"))] = [by_number[str(n)] for n in range(len(names))]
        elif isinstance(names, list):
            found[str(column.get("name"))] = [str(name) for name in names]
    return found


def _by_name(name: str) -> str:
    """The split that a file's name or folder says, as in data/train-00000-of-00005.parquet."""
    found = _SPLIT.findall(name.lower())
    return _MORE[found[-1]] if found else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
