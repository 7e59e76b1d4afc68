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
    "truncated_tar": "a tar that ends or breaks before its end mark; what is whole in front of it is kept",
    "trailing_bytes": "bytes behind a tar's end mark, as tars that were only strung together have",
    "too_many_members": "a tar of more members than are read",
    "bomb": "becomes too many bytes when it is unpacked",
    "bad_member": "a tar's member whose header two readers could read differently",
    "bad_name": "a tar's member whose name is absolute, too long, or holds .., \\ or control characters",
    "not_a_regular_file": "a tar's member that is a link, a device, a pipe or a sparse file",
    "bad_row": "a row of a table that is none",
    "outside": "a path or address that leads out of the images' folder: never opened",
    "not_downloaded": "an http address: download with img2dataset, then read {kind: img2dataset}",
    "download_failed": "img2dataset could not download it; the error is among its facts",
    "resize_failed": "img2dataset could not decode or resize it; the error is among its facts",
    "lost_by_img2dataset": "img2dataset counted it as done, and it is not there",
    "unfinished_shard": "img2dataset did not finish the shard: run it again, it goes on where it was",
    "digest_mismatch": "not the bytes, or not the row, whose digest was written down",
}


class Reject(Exception):
    """An input that is no picture; its one argument is a reason code."""
