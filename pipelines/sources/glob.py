"""The files that a pattern names, such as s3://bucket/photos/**/*.jpg."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pipelines.places import URL
from pipelines.sources import layout
from pipelines.sources.blobs import Blobs
from pipelines.sources.folder import FileReader
from pipelines.sources.layout import Labels
from pipelines.sources.source import Found, Part, Reader, Source
from pipelines.sources.tree import Tree, tree

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class GlobSource(Source):
    """Files by a pattern: `*` and `?` within a folder's name, `[a-z]`, and `**` for any folders.

    Names are those below the last folder in front of the first wildcard; metadata and .txt files count where
    the pattern names them.
    """

    pictures: ClassVar[bool] = True
    kind: Literal["glob"] = "glob"
    path: Path = field(metadata={"execution": True})
    """The pattern: a path, or an s3, gs or az URL."""
    labels: Labels = "folders"
    """Whether images are labelled by the name of the folder they lie in, where no metadata says more."""

    def roots(self) -> list[Part]:
        self._tree()
        return [Part(name="/", stamp="", data={"folder": ""}, leaf=False)]

    def split(self, part: Part) -> list[Part]:
        pattern = name_pattern(self._divided()[1])
        return layout.walk(
            self._tree(), part.data["folder"], lambda name: pattern.fullmatch(name) is not None
        )

    def read(self, part: Part, limit: int, known: Mapping[str, str], blobs: Blobs) -> Iterator[Found]:
        return layout.read(part, self._tree().open, limit, known)

    def reader(self, blobs: Blobs) -> Reader:
        return FileReader(self._tree())

    def _tree(self) -> Tree:
        return tree(Path(self._divided()[0]))

    def _divided(self) -> tuple[str, str]:
        """The folder that is listed, and the pattern below it."""
        text = str(self.path)
        url = URL.fullmatch(text)
        front = f"{url['scheme']}://" if url else ""
        parts = (url["rest"] if url else text).split("/")
        first = next((n for n, part in enumerate(parts) if _MAGIC.search(part)), None)
        if first is None:
            raise ValueError(f"{text} has no *, ? or [: name a folder with {{kind: folder}} instead.")
        return front + ("/".join(parts[:first]) or ("/" if text.startswith("/") else ".")), "/".join(
            parts[first:]
        )


def name_pattern(text: str) -> re.Pattern[str]:
    """A pattern of names; the time that it takes is linear in the name's length for each `*`."""
    if text.count("*") > 16:
        raise ValueError(f"The pattern {text!r} has more than 16 wildcards.")
    made = ""
    for n, part in enumerate(parts := text.split("/")):
        last = n == len(parts) - 1
        if part == "**":
            made += ".*" if last else "(?:[^/]+/)*"
            continue
        for piece in re.findall(r"\*+|\?|\[[^\]/]+\]|.", part, re.DOTALL):
            if piece.startswith("*"):
                made += "[^/]*"
            elif piece == "?":
                made += "[^/]"
            elif piece.startswith("[") and len(piece) > 2:
                body = piece[1:-1].replace("\\", "\\\\")
                made += f"[^/{body[1:]}]" if body[0] in "!^" else f"[{body}]"
            else:
                made += re.escape(piece)
        made += "" if last else "/"
    try:
        return re.compile(made, re.DOTALL)
    except re.error as error:
        raise ValueError(f"{text!r} is no pattern of file names ({error}).") from error
