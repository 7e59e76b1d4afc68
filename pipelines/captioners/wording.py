"""Words from outside as plain text: metadata, a model's answer and a server's error are anybody's writing.

A caption is data wherever it goes, and this is the one place that it passes on its way there.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST = 2_000
"""Characters of a caption; the longest text encoder reads 512 tokens."""

_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\|$)"  # a terminal's titles and links
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\|$)"  # strings to devices
    r"|\x1b[()*+][A-Z0-9]|\x1b"  # sets of characters, and whatever else begins so
)
_UNSEEN = re.compile(
    "["
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # turn the direction of what is read
    "\u00ad\u180e\u200b\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb"  # width of nothing, annotations
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"  # halves of pairs, no characters
    "\U000e0000-\U000e0fff"  # tags: a second text within the text
    "]"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_SENTENCE = re.compile(r"[.!?…。！？][\"')\]»”’]*(?=\s|$)|[。！？]")


def cleaned(text: str, longest: int = LONGEST) -> str:
    """One line in Unicode's composed form, without controls, escapes, marks of direction or what is unseen.

    Joiners within words and emoji stay. Cut between words where it is longer than `longest` characters.
    """
    # 16 times the length is enough to look at: a megabyte of marks is not worth composing.
    text = unicodedata.normalize("NFC", _unmarked(text[: 16 * longest]))
    # Again: what was taken out may have kept apart what now is an escape or composes.
    text = unicodedata.normalize("NFC", _unmarked(text))
    line = " ".join(text.split())
    if len(line) <= longest:
        return line
    cut = line[: longest + 1].rpartition(" ")[0]
    return cut if len(cut) > longest // 2 else line[:longest]


def whole_sentences(text: str) -> str:
    """A text that was cut off, up to its last whole sentence; as it is if there is none."""
    ends = [match.end() for match in _SENTENCE.finditer(text)]
    return text[: ends[-1]] if ends else text


def _unmarked(text: str) -> str:
    return _CONTROLS.sub("", _UNSEEN.sub("", _ESCAPES.sub("", text)))
