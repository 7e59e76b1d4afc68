"""A user's own score: any Python function of an image and its metadata."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipelines.places import at_hand
from pipelines.scorers.guarded import Fault, Guarded, described
from pipelines.scorers.scorer import Scores, Subject, Unscored, rounded


@dataclass(frozen=True, kw_only=True)
class Function:
    """Calls `package.module:name` with an RGB PIL image and the sample's metadata, a dict.

    It gives a number, or a dict of numbers by name. It runs in a process of its own, without credentials.
    """

    kind: Literal["function"] = "function"
    function: str
    """Where it is, such as `my_scores:warmth`. The source file's contents decide what is scored again; a
    change of what that file imports does not show: raise `revision` then."""
    path: str | None = field(default=None, metadata={"execution": True})
    """Folder that the module or its package lies in; else it must be importable wherever the stage runs."""
    name: str | None = None
    """Of the score; the function's own if None. Goes before the names where it gives several."""
    revision: int = 0
    """Any other number scores everything again."""
    seconds: float = field(default=20.0, metadata={"execution": True})
    """One image may take so long; then it counts as unscored."""
    errors: Literal["stop", "unscored"] = field(default="stop", metadata={"execution": True})
    """What an exception does: ends the stage, or leaves the image unscored, so that it is not kept."""

    reads: ClassVar[tuple[str, ...]] = ("image", "json")
    pixels: ClassVar[bool] = True
    guarded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        module, colon, name = self.function.partition(":")
        if not colon or not all(part.isidentifier() for part in [*module.split("."), name]):
            raise ValueError(f"function is {self.function!r}; it is written as package.module:name.")
        if self.seconds <= 0:
            raise ValueError(f"{self.function}: seconds is {self.seconds}; it must be above 0.")

    @property
    def names(self) -> None:
        """Known when it has answered."""
        return

    def external(self) -> dict[str, str]:
        return {self.function: hashlib.sha256(self._source().read_bytes()).hexdigest()}

    def build(self, *, micro_batch: int = 16) -> FunctionScorer:
        return FunctionScorer(self)

    def _source(self) -> Path:
        """The module's file, found without running it or its packages."""
        module = self.function.partition(":")[0]
        top, *below = module.split(".")
        importlib.invalidate_caches()
        if self.path:
            spec = PathFinder.find_spec(top, [str(at_hand(self.path))])
        else:
            spec = importlib.util.find_spec(top)
        for part in below:
            if spec is not None:
                spec = PathFinder.find_spec(
                    f"{spec.name}.{part}", list(spec.submodule_search_locations or ())
                )
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            where = f"in {self.path}" if self.path else "on Python's path: name its folder with `path`"
            raise ValueError(f"{self.function}: there is no module {module} {where}.")
        return Path(spec.origin)


class FunctionScorer:
    def __init__(self, config: Function) -> None:
        self._config = config
        settings = {"function": config.function, "path": str(at_hand(config.path)) if config.path else None}
        settings |= {"stop": config.errors == "stop", "name": config.name}
        self._guarded = Guarded(
            open_function, settings, seconds=config.seconds, what=f"The function {config.function}"
        )

    def scores(self, subjects: Sequence[Subject]) -> list[Scores | Unscored]:
        return self._guarded([{"key": s.key, "image": s.data, "facts": dict(s.facts)} for s in subjects])


def open_function(settings: dict[str, Any]) -> Callable[[dict[str, Any]], Scores]:
    """Called in the child: imports the user's function."""
    from pipelines import pictures

    path, stop = settings["function"], settings["stop"]
    module, _, name = path.partition(":")
    if settings["path"]:
        sys.path.insert(0, settings["path"])
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise Fault(f"{path} cannot be imported: {described(error)}.") from None

    def score(item: dict[str, Any]) -> Scores:
        image = pictures.decode(item["image"])
        try:
            return named(function(image, item["facts"]), settings["name"], own=name)
        except Exception as error:
            if not stop:
                raise
            raise Fault(
                f"{path} raised on {item['key']}: {described(error)}. Mend it, or set `errors: unscored`."
            ) from None

    return score


def named(value: Any, name: str | None, *, own: str) -> Scores:
    """What a function gave as scores; `TypeError` or `ValueError` if it is no finite number, nor a dict of
    such."""
    if isinstance(value, Mapping):
        found = {f"{name}_{k}" if name else str(k): _number(v) for k, v in value.items()}
        if not found:
            raise ValueError("it gave an empty dict")
        return found
    return {name or own: _number(value)}


def _number(value: Any) -> float:
    if not isinstance(value, numbers.Real) and not (
        hasattr(value, "item") and getattr(value, "size", 0) == 1
    ):
        raise TypeError(f"it gave {type(value).__name__}, and not a number or a dict of numbers")
    return rounded(float(value))
