"""From a reference to a snapshot in the store: found there, or fetched, judged and written.

`pretrained/<digest>` holds the snapshot; `pretrained/refs` says which one a model of the hub became, or a
folder as it was, so that neither is asked or read again. The manifest comes last.
"""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.storage import LocalStorage, Storage
from pipelines.dataset import MANIFEST, write_manifest
from pipelines.pretrained.autoencoder_folder import AutoencoderFolder
from pipelines.pretrained.folder import PIPELINE, DiffusersFolder
from pipelines.pretrained.reference import SCHEME, HubModel, hub_model, spelled
from pipelines.runner.fingerprint import digest
from pipelines.stage import Tell, TooMany

if TYPE_CHECKING:
    pass

Part = Literal["autoencoder", "denoiser", "pipeline"]
"""Of a pipeline in diffusers' format; the last is all of it, which draws."""
FOLDER = "pretrained"
"""Of the store; stands in manifests where a stage's name does."""
REFS = "refs"
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
    if part == "pipeline" and not storage.exists(PIPELINE):
        return None
    if not DiffusersFolder.there(storage) and part == "autoencoder":
        return None
    return _of_folder(_folder(storage, reference, part), store, fetch)


def _folder(storage: Storage, name: str, part: Part) -> DiffusersFolder:
    if part == "autoencoder":
        return AutoencoderFolder.of(storage, name)
    if part == "pipeline":
        from pipelines.pretrained.pipeline_folder import PipelineFolder

        return PipelineFolder.of(storage, name)
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
            fetched = {"autoencoder": hub.autoencoder, "denoiser": hub.denoiser, "pipeline": hub.pipeline}
            found = _folder(fetched[part](model, fetch), str(model), part)
            known = adopt(found, store, reference=model.reference)
            _remember(store, mark, known)
        return known


def _of_folder(found: DiffusersFolder, store: Storage, fetch: Tell | None) -> Storage:
    found.check()
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
    target = _place(store, found)
    if target.exists(MANIFEST):
        return target
    manifest = {
        "stage": FOLDER,
        "version": VERSION,
        "fingerprint": target.url.rpartition("/")[2],
        "adopted": {"reference": reference, "files": found.digests()},
        "snapshot": found.commit(target),
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
