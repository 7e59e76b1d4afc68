"""From a reference to a snapshot in the store: found there, or fetched, judged and written.

`pretrained/<digest>` holds the snapshot; `pretrained/refs` says which one a model of the hub became, or a
folder as it was, so that neither is asked or read again. The manifest comes last.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.storage import LocalStorage, Storage
from pipelines import weights
from pipelines.dataset import MANIFEST, write_manifest
from pipelines.pretrained.folder import CONFIG, DiffusersFolder
from pipelines.pretrained.reference import SCHEME, HubModel, hub_model, spelled
from pipelines.runner.fingerprint import digest
from pipelines.stage import Tell, TooMany, jsonable

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion.config import AutoencoderConfig

Part = Literal["autoencoder", "denoiser"]
"""Of a pipeline in diffusers' format."""
FOLDER = "pretrained"
"""Of the store; stands in manifests where a stage's name does."""
REFS = "refs"
WEIGHTS = "autoencoder.safetensors"
VERSION = 1
"""Raised when equal files would become another snapshot."""
_LOCK = threading.Lock()
"""Stages that begin at once and name the same model have it fetched once."""


def adopted(
    reference: str,
    store: Storage,
    *,
    part: Part = "autoencoder",
    fetch: Tell | None = None,
    ask: bool = False,
) -> Storage | None:
    """The folder of the store with the snapshot that foreign weights became; None where there are none.

    Args:
        reference: a folder in diffusers' format, or a model of the hub at a commit.
        part: which one of a pipeline's is wanted.
        fetch: told how many MB are there; without it nothing is fetched or written.
        ask: whether the hub may be asked which commit a model has now, to say it where it is not pinned.

    Raises:
        TooMany: it is not in the store yet, and nothing may be fetched.
        ValueError: there is no such model, or it is of no use here; one line that says what to do.
    """
    text = reference if reference.startswith(SCHEME) else spelled(reference, Path.cwd())
    if text is not None:
        return _of_hub(hub_model(text, ask=ask), store, part, fetch)
    storage = Storage.at(reference)
    if not DiffusersFolder.there(storage) and part == "autoencoder":
        return None
    return _of_folder(_folder(storage, reference, part), store, fetch)


def _folder(storage: Storage, name: str, part: Part) -> DiffusersFolder:
    if part == "autoencoder":
        return DiffusersFolder.of(storage, name)
    from pipelines.pretrained.denoiser_folder import DenoiserFolder

    return DenoiserFolder.of(storage, name)


def _of_hub(model: HubModel, store: Storage, part: Part, fetch: Tell | None) -> Storage:
    mark = model.reference if part == "autoencoder" else f"{model.reference} {part}"
    known = _remembered(store, mark)
    if known is not None:
        return known
    if fetch is None:
        raise TooMany(f"{model} is not fetched yet: run fetches it")
    from pipelines.pretrained import hub

    with _LOCK:
        known = _remembered(store, mark)
        if known is None:
            fetched = hub.autoencoder if part == "autoencoder" else hub.denoiser
            found = _folder(fetched(model, fetch), str(model), part)
            known = adopt(found, store, reference=model.reference)
            _remember(store, mark, known)
        return known


def _of_folder(found: DiffusersFolder, store: Storage, fetch: Tell | None) -> Storage:
    if not found.whole:
        found.config()  # what cannot be used is said at once
    stamp = found.stamp()
    mark = f"{found.storage.url} {stamp}"
    target = _remembered(store, mark) if stamp else None
    if target is None and isinstance(found.storage, LocalStorage):
        target = _place(
            store, found
        )  # on a disk they are read to know them; in a bucket that would take long
    if target is not None and target.exists(MANIFEST):
        return target
    if fetch is None:
        raise TooMany(f"{found.name} is not in the store yet: run reads it in")
    with _LOCK:
        target = adopt(found, store, reference=found.name)
        if stamp:
            _remember(store, mark, target)
    return target


def adopt(found: DiffusersFolder, store: Storage, *, reference: str) -> Storage:
    """Writes a snapshot of the weights, in the dtype they have, unless it is there; gives its folder.

    Raises:
        ValueError: they are not what the config says, or damaged.
    """
    from diffusion.autoencoders.diffusers_format import state_from

    target = _place(store, found)
    if target.exists(MANIFEST):
        return target
    if found.whole:
        return _committed(target, found, found.commit(target), reference)
    config = found.config()
    try:
        state = dict(state_from(config, found.tensors()))
    except KeyError as error:
        raise ValueError(f"{found.name}: its weights lack {error.args[0]}: get it again.") from error
    _check(config, state, found.name)
    sha256 = _write(state, target)
    target.put_if_absent(CONFIG, found.storage.read(CONFIG))
    record = {
        "task": "autoencoder",
        "class": str(found.settings.get("_class_name")),
        "autoencoder": jsonable(config),
        "resolution": found.resolution(config.factor),
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "files": {WEIGHTS: sha256},
    }
    return _committed(target, found, record, reference)


def _committed(target: Storage, found: DiffusersFolder, record: dict[str, Any], reference: str) -> Storage:
    """Writes the manifest."""
    manifest = {
        "stage": FOLDER,
        "version": VERSION,
        "fingerprint": target.url.rpartition("/")[2],
        "adopted": {"reference": reference, "files": found.digests()},
        "snapshot": record,
    }
    write_manifest(target, manifest, kind="snapshot")
    return target


def forget(store: Storage, name: str) -> None:
    """Removes what was noted of a snapshot that is not there any more."""
    refs = store.folder(FOLDER).folder(REFS)
    for file in refs.list():
        with contextlib.suppress(FileNotFoundError, ValueError):
            if json.loads(refs.read(file)).get("digest") == name:
                refs.delete(file)


def _place(store: Storage, found: DiffusersFolder) -> Storage:
    return store.folder(FOLDER).folder(digest([FOLDER, VERSION, found.digest()]))


def _check(config: AutoencoderConfig, state: Mapping[str, Tensor], name: str) -> None:
    """`ValueError` where the weights are not those of the network that the config describes."""
    import torch

    with torch.device("meta"):
        expected = config.build().state_dict()
    lacking, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if lacking or unknown:
        both = ((lacking, "missing"), (unknown, "unknown"))
        told = [f"{len(names)} {word} ({names[0]})" for names, word in both if names]
        raise ValueError(f"{name}: its weights are not those that its config names: {', '.join(told)}.")
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise ValueError(
                f"{name}: {key} is {list(state[key].shape)}, and by its config {list(tensor.shape)}."
            )
        if state[key].is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{name}: {key} is {state[key].dtype}, and by its config {tensor.dtype}.")


def _write(state: Mapping[str, Tensor], target: Storage) -> str:
    """Commits the weights without their file's metadata, which nobody vouches for; gives their sha256."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix="latentmill-", ignore_cleanup_errors=True) as scratch:
        path = Path(scratch, WEIGHTS)
        save_file({key: state[key].contiguous() for key in sorted(state)}, path)
        sha256 = weights.file_digest(path)
        # A driver killed before its manifest has left the same bytes, or those of another safetensors.
        if not target.put_if_absent(WEIGHTS, path) and weights.file_digest(target.local(WEIGHTS)) != sha256:
            target.replace(WEIGHTS, path.read_bytes())
    return sha256


def _remembered(store: Storage, mark: str) -> Storage | None:
    """The finished folder that was noted under a mark."""
    try:
        said: Any = json.loads(store.folder(FOLDER).folder(REFS).read(f"{digest([VERSION, mark])}.json"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(said, dict) or said.get("reference") != mark:
        return None
    target = store.folder(FOLDER).folder(str(said.get("digest")))
    return target if target.exists(MANIFEST) else None


def _remember(store: Storage, mark: str, target: Storage) -> None:
    said = {"reference": mark, "digest": target.url.rpartition("/")[2]}
    store.folder(FOLDER).folder(REFS).replace(f"{digest([VERSION, mark])}.json", json.dumps(said).encode())
