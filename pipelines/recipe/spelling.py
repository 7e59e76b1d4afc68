"""What a mistyped word was meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def near(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the known one closest to it, or all there are."""
    import difflib

    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.55)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(known)}." if known else "."
