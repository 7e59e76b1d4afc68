"""Why an input is no sample: reason codes, and the exception that carries one."""

from __future__ import annotations

REASONS = {
    "missing": "named by the metadata and not there",
    "unreadable": "cannot be read or decoded",
    "empty": "no bytes",
    "too_large": "more bytes than max_bytes",
    "not_an_image": "begins like no image",
    "unsupported": "an image, but of no kind that is taken: JPEG (8 bits, Huffman), PNG or WebP",
    "too_many_pixels": "its header says more than max_pixels",
    "animated": "more than one frame",
    "truncated": "ends before its picture does",
    "poison": "killed the decoder, twice",
}


class Reject(Exception):
    """An input that is no picture; its one argument is a reason code."""
