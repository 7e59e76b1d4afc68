"""Files that hold the sha256 of their other bytes, so that no bit of them turns unseen.

For formats that keep a text of one's own somewhere: there `BLANK` is put, and filled in once all is written.
"""

from __future__ import annotations

import hashlib

_MARK = b"sha256 of the file with zeros here: "
_ZEROS = b"0" * 64
BLANK = _MARK + _ZEROS
"""To be in the file once, behind whatever else could look like it."""


def seal(data: bytes) -> bytes:
    """The file with its digest filled in."""
    at = data.rindex(BLANK) + len(_MARK)
    return data[:at] + hashlib.sha256(data).hexdigest().encode() + data[at + len(_ZEROS) :]


def sealed(data: bytes) -> bool:
    """Whether there is a seal in the file.

    Raises:
        ValueError: there is one, and the file is not what it was put on.
    """
    at = data.rfind(_MARK) + len(_MARK)
    if at < len(_MARK):
        return False
    hasher = hashlib.sha256(data[:at])
    hasher.update(_ZEROS)
    hasher.update(data[at + len(_ZEROS) :])
    if hasher.hexdigest().encode() != data[at : at + len(_ZEROS)]:
        raise ValueError("the seal is broken")
    return True
