"""Which images are one picture: equal bytes, a perceptual hash, or features of a network and a second look.

Names are loaded when they are first used, so that a recipe needs neither numpy nor FAISS.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "features": "Features Seen look_features",
    "grouping": "groups",
    "linkage": "link Linked Pair",
    "methods": "Exact Perceptual Semantic Method",
    "perceptual": "REACH Look clusters look",
    "verification": "agreement thumbnail",
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names.split()}
__all__ = [*_HOMES]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
