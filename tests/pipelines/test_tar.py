"""Tars: those that any reader takes, byte for byte the same."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest

from pipelines.tar import TarWriter, header, scan


def written(members: dict[str, bytes]) -> tuple[TarWriter, bytes]:
    file = io.BytesIO()
    tar = TarWriter(file)
    for name, data in members.items():
        tar.add(name, data)
    tar.close()
    return tar, file.getvalue()


def test_headers_are_those_that_tarfile_writes() -> None:
    draw = random.Random(0)
    for n in range(200):
        name, size = "k" * draw.randrange(1, 100) + ".é"[: n % 3], draw.randrange(8 ** draw.randrange(1, 11))
        if len(name.encode()) <= 100:
            member = tarfile.TarInfo(name)
            member.size = size
            assert header(name, size) == member.tobuf(tarfile.USTAR_FORMAT, "utf-8")
    with pytest.raises(ValueError, match="8 GiB"):
        header("a", 8**11)


def test_any_reader_finds_what_was_written(tmp_path: Path) -> None:
    members = {"a.json": b"{}", "a.webp": bytes(513), "b.txt": b""}
    tar, data = written(members)
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        assert {m.name: opened.extractfile(m).read() for m in opened} == members  # pyright: ignore
    for name, (offset, size, _) in tar.spans.items():
        assert data[offset : offset + size] == members[name]
    (tmp_path / "a.tar").write_bytes(data)
    found = scan(tmp_path / "a.tar")
    assert found is not None
    assert (found.spans, found.sha256, found.size) == (tar.spans, tar.sha256, tar.size)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_what_is_no_plain_file_is_not_ours(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("a.json")
        member.type = kind
        member.linkname = "/etc/passwd"
        tar.addfile(member)
    assert scan(tmp_path / "a.tar") is None


def test_other_tars_are_not_ours(tmp_path: Path) -> None:
    _, data = written({"a.json": b"{}" * 300})
    # Longer padding, as other writers leave it; a byte more, a block less; a mode that is not ours.
    for other in (data + bytes(8192), data + b"x", data[:-512], data.replace(b"0000644", b"0000755", 1), b""):
        (tmp_path / "a.tar").write_bytes(other)
        assert scan(tmp_path / "a.tar") is None


def test_two_members_of_one_name_are_refused() -> None:
    tar, _ = written({"a": b""})
    with pytest.raises(ValueError, match="two members"):
        tar.add("a", b"")
