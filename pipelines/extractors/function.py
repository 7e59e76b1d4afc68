"""A user's own network: what a Python function of theirs builds."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.embedders.embedding import device_at_hand
from pipelines.places import at_hand

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class OwnNetwork:
    """Calls `package.module:name`, without arguments, for a torch module; that is called with images
    [b, 3, h, w] in [0, 1] and gives features [b, c, i, j] or [b, c].

    It runs in the stage's own process, with all that this may do: name only code that you trust.
    """

    kind: Literal["function"] = "function"
    function: str
    """Where it is, such as `my_networks:dino`. The source file's contents decide what is made again; a change
    of what that file reads or imports does not show: raise `revision` then."""
    path: str | None = field(default=None, metadata={"execution": True})
    """Folder that the module lies in; else it must be importable wherever the stage runs."""
    revision: int = 0
    """Any other number makes everything again."""

    def __post_init__(self) -> None:
        module, colon, name = self.function.partition(":")
        if not colon or not all(part.isidentifier() for part in [*module.split("."), name]):
            raise ValueError(f"function is {self.function!r}; it is written as package.module:name.")

    def identity(self) -> str:
        return hashlib.sha256(self._source().read_bytes()).hexdigest()

    def build(self) -> OwnExtractor:
        return OwnExtractor(self)

    def _source(self) -> Path:
        module = self.function.partition(":")[0]
        if self.path:
            file = at_hand(self.path).joinpath(*module.split("."))
            found = next((f for f in (file.with_suffix(".py"), file / "__init__.py") if f.is_file()), None)
        else:
            spec = importlib.util.find_spec(module)
            found = Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
        if found is None:
            where = f"in {self.path}" if self.path else "on Python's path: name its folder with `path`"
            raise ValueError(f"{self.function}: there is no module {module} {where}.")
        return found


class OwnExtractor:
    def __init__(self, config: OwnNetwork) -> None:
        if config.path and str(at_hand(config.path)) not in sys.path:
            sys.path.insert(0, str(at_hand(config.path)))
        module, _, name = config.function.partition(":")
        try:
            network: Any = getattr(importlib.import_module(module), name)()
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{config.function}: {type(error).__name__}: {reason}") from error
        self._name, self._network = config.function, network.eval().to(device_at_hand())

    def __call__(self, images: Tensor) -> Tensor:
        found = self._network(images)
        if getattr(found, "ndim", 0) not in (2, 4) or len(found) != len(images):
            raise ValueError(
                f"{self._name} gave {tuple(getattr(found, 'shape', ()))} for {len(images)} images: it must "
                "give [images, channels], or [images, channels, rows, columns]."
            )
        return found
