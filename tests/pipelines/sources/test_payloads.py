"""Files that run code where a reader is careless: none of it runs here, and images beside them are read."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from pipelines.sources.huggingface import HuggingFaceSource
from pipelines.sources.img2dataset import Img2datasetSource
from pipelines.sources.rowgroups import _in_base64
from pipelines.sources.table import TableSource
from pipelines.sources.webdataset import WebDatasetSource
from tests.pipelines.sources.downloads import shard
from tests.pipelines.sources.hostile_tars import PNG, plain, png
from tests.pipelines.sources.reading import everything, images, leaves


class Payload:
    """Pickles to a call that makes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Payload(canary))


def archived(canary: Path) -> bytes:
    """As torch writes a .pt: a zip whose data.pkl is unpickled."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(canary))
        archive.writestr("archive/version", "3\n")
    return sink.getvalue()


def objects(canary: Path) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.array([Payload(canary)], dtype=object), allow_pickle=True)
    return sink.getvalue()


def archived_objects(canary: Path) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, a=np.array([Payload(canary)], dtype=object))
    return sink.getvalue()


def dumped(canary: Path) -> bytes:
    sink = io.BytesIO()
    joblib.dump(Payload(canary), sink)
    return sink.getvalue()


def tagged(canary: Path) -> bytes:
    return f"!!python/object/apply:os.system ['touch {canary}']\n".encode()


def naive_numpy(data: bytes) -> None:
    found = np.load(io.BytesIO(data), allow_pickle=True)
    dict(found) if hasattr(found, "files") else found.tolist()


PARSERS: dict[str, tuple[Callable[[Path], bytes], Callable[[bytes], Any]]] = {
    "pyd": (pickled, pickle.loads),
    "pickle": (pickled, pickle.loads),
    "pkl": (pickled, pickle.loads),
    "pth": (archived, lambda data: torch.load(io.BytesIO(data), weights_only=False)),
    "pt": (archived, lambda data: torch.load(io.BytesIO(data), weights_only=False)),
    "ckpt": (pickled, pickle.loads),
    "npy": (objects, naive_numpy),
    "npz": (archived_objects, naive_numpy),
    "joblib": (dumped, lambda data: joblib.load(io.BytesIO(data))),
    "yaml": (tagged, yaml.unsafe_load),
    "cls": (lambda canary: f"__import__('pathlib').Path({str(canary)!r}).touch()".encode(), eval),
    "pkl.gz": (
        lambda canary: gzip.compress(pickled(canary)),
        lambda data: pickle.loads(gzip.decompress(data)),
    ),
}
"""Member's ending -> what makes the payload, and a reader that runs it."""


@pytest.mark.parametrize("ending", PARSERS)
def test_a_member_is_not_run(ending: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    make, naive = PARSERS[ending]
    data = make(canary)
    with contextlib.suppress(Exception):
        naive(data)
    assert canary.exists(), "this payload runs nothing"
    canary.unlink()
    (tmp_path / "x.tar").write_bytes(plain({f"a.{ending}": data, "a.png": PNG, f"b.{ending}": data}))
    found = everything(WebDatasetSource(path=tmp_path / "x.tar"), tmp_path)
    assert [one.data for one in found if one.data is not None] == [PNG]
    assert not canary.exists()


TEXTS: dict[str, Callable[[Path], dict[str, bytes]]] = {
    "shell_in_a_text": lambda canary: {"a.txt": f"$(touch {canary}) `touch {canary}`".encode()},
    "shell_in_a_name": lambda canary: {f"$(touch {canary.name}).png": PNG},
    "classes_in_json": lambda canary: {
        "a.json": json.dumps(
            {"__class__": "os.system", "py/reduce": [{"py/function": "os.system"}, [f"touch {canary}"]],
             "__reduce__": ["os.system", [f"touch {canary}"]]}
        ).encode()
    },
    "deep_json": lambda canary: {"a.json": b'{"a":' * 200_000},
    "deep_but_whole_json": lambda canary: {"a.json": b'{"a":' * 900 + b"1" + b"}" * 900},
    "a_metadata_of_torch": lambda canary: {".metadata": pickled(canary), "__0_0.distcp": pickled(canary)},
    "code": lambda canary: {"a.py": f"open({str(canary)!r}, 'w')".encode(), "a.so": b"\x7fELF"},
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_member_says_is_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary"
    (tmp_path / "x.tar").write_bytes(plain({"a.png": PNG, **TEXTS[name](canary)}))
    found = everything(WebDatasetSource(path=tmp_path / "x.tar"), tmp_path)
    assert "x.tar/a.png" in images(found)
    json.dumps([dict(one.facts) for one in found], allow_nan=False)
    assert not canary.exists()


@contextlib.contextmanager
def registered(name: str) -> Iterator[None]:
    """As older versions of pyarrow and Ray registered their types: what a file says is unpickled."""

    class Unpickling(pa.ExtensionType):
        def __init__(self, said: bytes = b"") -> None:
            self._said = said
            super().__init__(pa.binary(), name)

        def __arrow_ext_serialize__(self) -> bytes:
            return self._said

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> Any:
            pickle.loads(serialized)
            return cls(serialized)

    # Of Ray's own types another test may have loaded the real ones.
    with contextlib.suppress(KeyError):
        pa.unregister_extension_type(name)
    pa.register_extension_type(Unpickling())
    try:
        yield
    finally:
        pa.unregister_extension_type(name)


@pytest.mark.parametrize(
    "name", ["arrow.py_extension_type", "ray.data.arrow_tensor", "ray.data.arrow_variable_shaped_tensor"]
)
def test_an_extension_type_of_arrow_is_not_unpickled(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    said = {b"ARROW:extension:name": name.encode(), b"ARROW:extension:metadata": pickled(canary)}
    fields = [pa.field("image", pa.binary()), pa.field("tensor", pa.binary(), metadata=said)]
    path = tmp_path / "in" / "t.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table([[PNG], [b"x"]], schema=pa.schema(fields)), path)
    with registered(name):
        with contextlib.suppress(Exception):
            pq.read_table(path)
        assert canary.exists(), "this payload runs nothing"
        canary.unlink()
        for source in (TableSource(path=path), HuggingFaceSource(path=path.parent)):
            (found,) = everything(source, tmp_path)
            assert found.reject == "unreadable"
            assert "Python objects" in found.facts["error"]
        (path.parent / "t_stats.json").write_text('{"count": 1}')
        assert not images(everything(Img2datasetSource(path=path.parent), tmp_path))
    assert not canary.exists()


def test_a_name_in_base64_is_seen_wherever_it_begins() -> None:
    for before in range(9):
        for name in (b"ray.data.", b"arrow.py_extension_type", b"x" * 7, b"x" * 8):
            coded = base64.b64encode(b"\xff" * before + name + b"\xff" * 5)
            assert any(needle in coded for needle in _in_base64(name))
    assert min(map(len, _in_base64(b"ray.data."))) >= 10


def test_a_dataset_with_code_is_read_as_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loading script, a README that asks for Python objects, features that name classes."""
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary"
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.py").write_text(f"open({str(canary)!r}, 'w')")
    (folder / "README.md").write_text(
        f"---\nconfigs: !!python/object/apply:os.system ['touch {canary}']\n---\n"
    )
    said = {"info": {"features": {"image": {"_type": f"__import__('os').system('touch {canary}')"}, "x": 1}}}
    table = pa.table({"image": [PNG]}).replace_schema_metadata({b"huggingface": json.dumps(said).encode()})
    pq.write_table(table, folder / "train.parquet")
    assert len(images(everything(HuggingFaceSource(path=folder), tmp_path))) == 1
    assert not canary.exists()


@pytest.mark.parametrize(
    "cell",
    [
        "=cmd|' /C touch {}'!A0",
        "| touch {}",
        "pipe:touch {}",
        "a.png; touch {}",
        "$(touch {}).png",
        "`touch {}`",
    ],
)
def test_a_cell_is_data(cell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary"
    (tmp_path / "a.png").write_bytes(PNG)
    said = cell.format(canary)
    (tmp_path / "t.csv").write_text(f'path,text\na.png,"{said}"\n"{said}",b\n')
    found = everything(TableSource(path=tmp_path / "t.csv"), tmp_path / "out")
    assert images(found)["a.png"].facts["text"] == said
    assert len([one for one in found if one.reject]) == 1
    assert not canary.exists()


def test_a_pattern_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary"
    numbers = ["{0..999999999}.tar", "{0..999}{0..999}{0..999}.tar", "{" * 50, "*" * 40 + "{a,b}.tar"]
    for path in (f"pipe:touch {canary}", f"pipe:touch {canary}; cat x", "http://127.0.0.1:1/x.tar", *numbers):
        with pytest.raises(ValueError, match=r"."):
            leaves(WebDatasetSource(path=Path(path)))
    assert not canary.exists()


def test_statistics_that_are_pickled(tmp_path: Path) -> None:
    shard(tmp_path / "in", 0, 2, png)
    (tmp_path / "in" / "00000_stats.json").write_bytes(pickled(tmp_path / "canary"))
    found = everything(Img2datasetSource(path=tmp_path / "in"), tmp_path)
    assert len(images(found)) == 2
    assert not (tmp_path / "canary").exists()
