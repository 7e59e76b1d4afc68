"""Fifty tars that were made to be read wrongly, and what has to be found in each."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

BLOCK = 512


def png(shade: int = 127) -> bytes:
    """A gray image of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes([0, shade])))
        + chunk(b"IEND", b"")
    )


PNG = png()


@dataclass(frozen=True)
class Case:
    """A tar, the members that are images all the same, and how many rejects of each reason there are."""

    data: bytes
    kept: tuple[str, ...] = ("first.png", "last.png")
    rejects: dict[str, int] = field(default_factory=dict)
    ignored: int = 0


def header(
    name: bytes, size: int = 0, kind: bytes = b"0", link: bytes = b"", prefix: bytes = b"",
    raw_size: bytes | None = None, magic: bytes = b"ustar\x0000", tail: bytes = b"",
) -> bytes:  # fmt: skip
    """A header block with a right checksum, whatever it says."""
    said = raw_size if raw_size is not None else b"%011o\0" % size
    front = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + said + b"0" * 11 + b"\0"
    rest = kind + link.ljust(100, b"\0") + magic + bytes(32 + 32 + 16) + prefix.ljust(155, b"\0")
    rest = (rest + tail).ljust(BLOCK - 156, b"\0") if not tail else rest[: BLOCK - 156 - len(tail)] + tail
    checksum = sum(front) + 8 * 32 + sum(rest)
    return front + b"%06o\0 " % checksum + rest


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(name: bytes, data: bytes = PNG, **said: object) -> bytes:
    return header(name, len(data), **said) + padded(data)  # type: ignore[arg-type]


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    data = b""
    for name, value in records:
        length = len(name) + len(value) + 3
        length += len(str(length))
        length = len(name) + len(value) + 3 + len(str(length))
        data += b"%d %s=%s\n" % (length, name, value)
    return member(b"PaxHeaders/x", data, kind=kind)


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    return member(b"././@LongLink", name + b"\0", kind=kind)


FIRST, LAST, END = member(b"first.png"), member(b"last.png"), bytes(2 * BLOCK)


def between(*pieces: bytes) -> bytes:
    return FIRST + b"".join(pieces) + LAST + END


def refused(piece: bytes, reason: str, number: int = 1) -> Case:
    return Case(between(piece), rejects={reason: number})


def _links() -> dict[str, Case]:
    kinds = {"symlink": b"2", "hardlink": b"1", "character_device": b"3", "block_device": b"4", "pipe": b"6"}
    cases = {
        name: refused(header(b"a.png", kind=kind, link=b"/etc/passwd"), "not_a_regular_file")
        for name, kind in kinds.items()
    }
    # The write through a link of CVE-2025-4517 and its kin: a link, and a file "below" it.
    through = header(b"here", kind=b"2", link=b"/tmp") + member(b"here/a.png")
    cases["file_below_a_link"] = Case(
        between(through), kept=("first.png", "here/a.png", "last.png"), rejects={"not_a_regular_file": 1}
    )
    cases["hardlink_with_bytes"] = Case(
        FIRST + header(b"a.png", BLOCK, kind=b"1", link=b"first.png") + LAST + END,
        rejects={"not_a_regular_file": 1},
    )
    cases["link_to_itself"] = refused(header(b"a.png", kind=b"2", link=b"a.png"), "not_a_regular_file")
    cases["symlink_with_a_long_target"] = refused(
        long_name(b"x/" * 300, b"K") + header(b"a.png", kind=b"2"), "not_a_regular_file"
    )
    cases["unknown_kind"] = refused(member(b"a.png", kind=b"Z"), "not_a_regular_file")
    cases["more_of_another_volume"] = refused(member(b"a.png", kind=b"M"), "not_a_regular_file")
    cases["folder_with_bytes"] = refused(header(b"folder/", BLOCK, kind=b"5"), "bad_member")
    return cases


def _names() -> dict[str, Case]:
    names = {
        "parent": b"../a.png",
        "parent_within": b"x/../../a.png",
        "absolute": b"/tmp/a.png",
        "double_slash": b"x//a.png",
        "dot_then_parent": b"./../a.png",
        "newline": b"a\nb.png",
        "escape_sequence": b"\x1b[2Ja.png",
        "carriage_return": b"a.png\r",
        "backslashes": b"..\\..\\a.png",
        "drive": b"C:a.png",
        "bytes_behind_a_nul": b"a.png\0/../../b.png",
        "no_name": b"",
    }
    cases = {name: refused(member(said), "bad_name") for name, said in names.items()}
    cases["parent_in_prefix"] = refused(member(b"a.png", prefix=b"../.."), "bad_name")
    cases["parent_in_pax"] = refused(pax((b"path", b"../../a.png")) + member(b"a.png"), "bad_name")
    cases["nul_in_pax"] = refused(pax((b"path", b"a.png\0b")) + member(b"a.png"), "bad_name")
    cases["parent_in_long_name"] = refused(long_name(b"../" * 60 + b"a.png") + member(b"x"), "bad_name")
    cases["name_of_a_mebibyte"] = refused(long_name(b"a" * (1 << 20)) + member(b"x"), "bad_name")
    cases["name_of_2000_bytes"] = refused(long_name(b"a" * 2000 + b".png") + member(b"x"), "bad_name")
    return cases


def _sizes() -> dict[str, Case]:
    ten_gib = b"\x80" + (10 << 30).to_bytes(11, "big")
    return {
        "ten_gib_claimed": Case(
            FIRST + header(b"a.png", raw_size=ten_gib) + LAST + END,
            kept=("first.png",), rejects={"too_large": 1, "truncated_tar": 1},
        ),
        "ten_gib_extended_header": Case(
            FIRST + header(b"x", raw_size=ten_gib, kind=b"x") + LAST + END,
            kept=("first.png",), rejects={"truncated_tar": 1},
        ),
        "negative_size": Case(
            FIRST + header(b"a.png", raw_size=b"\xff" * 12) + LAST + END,
            kept=("first.png",), rejects={"truncated_tar": 1},
        ),
        "size_is_no_number": Case(
            FIRST + header(b"a.png", raw_size=b"banana\0\0\0\0\0\0") + LAST + END,
            kept=("first.png",), rejects={"truncated_tar": 1},
        ),
        # CVE-2025-62518: what pax claims holds members that a reader of the header alone would see.
        "pax_size_differs": refused(
            pax((b"size", b"%d" % (BLOCK + len(padded(PNG)))))
            + header(b"a.png", 0) + member(b"hidden.png"),
            "bad_member",
        ),
        "pax_size_is_no_number": Case(
            FIRST + pax((b"size", b"-1")) + member(b"a.png") + LAST + END,
            kept=("first.png",), rejects={"truncated_tar": 1},
        ),
        "pax_length_lies": refused(
            member(b"x", b"99 path=a.png\n", kind=b"x") + member(b"a.png"), "bad_member"
        ),
        "pax_says_twice": refused(
            pax((b"path", b"a.png"), (b"path", b"b.png")) + member(b"x.png"), "bad_member"
        ),
        "pax_for_all_names": refused(pax((b"path", b"a.png"), kind=b"g") + member(b"x.png"), "bad_member"),
        "headers_in_a_row": Case(
            FIRST + pax((b"comment", b"x")) * 20 + LAST + END,
            kept=("first.png",), rejects={"truncated_tar": 1},
        ),
        "extended_header_at_the_end": Case(
            FIRST + pax((b"path", b"a.png")) + END, kept=("first.png",), rejects={"truncated_tar": 1}
        ),
        "sparse": refused(header(b"a.png", 0, kind=b"S", magic=b"ustar  \0"), "not_a_regular_file"),
        "sparse_by_pax": refused(
            pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"9999999999")) + member(b"a.png"),
            "not_a_regular_file",
        ),
    }  # fmt: skip


def _shapes() -> dict[str, Case]:
    whole = between()
    return {
        "empty_file": Case(b"", kept=(), rejects={"truncated_tar": 1}),
        "no_tar": Case(b"<html>404</html>" * 100, kept=(), rejects={"truncated_tar": 1}),
        "cut_in_a_member": Case(
            whole[: len(FIRST) + BLOCK + 20], kept=("first.png",), rejects={"truncated_tar": 1}
        ),
        "cut_at_a_member": Case(whole[: len(FIRST)], kept=("first.png",), rejects={"truncated_tar": 1}),
        "cut_in_a_header": Case(whole[: len(FIRST) + 100], kept=("first.png",), rejects={"truncated_tar": 1}),
        "without_an_end": Case(FIRST + LAST, rejects={"truncated_tar": 1}),
        "another_tar_behind": Case(whole + member(b"behind.png") + END, rejects={"trailing_bytes": 1}),
        "junk_behind": Case(whole + b"MZ" + bytes(600), rejects={"trailing_bytes": 1}),
        "flipped_checksum": Case(
            FIRST + b"X" + LAST[1:] + END, kept=("first.png",), rejects={"truncated_tar": 1}
        ),
        "tar_within": Case(between(member(b"inner.tar", between())), ignored=1),
        "one_name_twice": Case(
            FIRST + member(b"a.png", png(1)) + member(b"a.png", png(2)) + LAST + END,
            kept=("first.png", "a.png", "a.png#2", "last.png"),
        ),
        "reserved_names": Case(
            between(member(b"__meta__", b"{}"), member(b"__key__.png")),
            kept=("first.png", "__key__.png", "last.png"), ignored=1,
        ),
        "compiled_code": Case(between(member(b"a.pyd", b"\x80\x04N."), member(b"a.pth", b"PK")), ignored=2),
    }  # fmt: skip


CASES = {**_links(), **_names(), **_sizes(), **_shapes()}


def plain(members: dict[str, bytes], add: Callable[[tarfile.TarFile], None] | None = None) -> bytes:
    """A tar by Python's own writer."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if add:
            add(tar)
    return sink.getvalue()
