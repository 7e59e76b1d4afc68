"""Files of a model of the hub, fetched into the hub's own cache on this machine: only those that are read.

HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN do what they do elsewhere. Messages are our
own, so that nothing of a request gets into a log.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.storage import Storage
from pipelines.pretrained import autoencoder_folder, folder
from pipelines.pretrained.reference import HubModel
from pipelines.stage import Tell

ENCODER = ("*.json", "*.safetensors", "*.txt", "*.model")
"""What of a text encoder's or captioner's folder is read: config, tokenizer and weights."""
PATIENCE = 5.0
"""Seconds that the hub has to answer a question that can be left unanswered."""


def autoencoder(model: HubModel, tell: Tell | None = None) -> Storage:
    """The cache's folder that holds config and weights of an autoencoder, fetched where they are not yet.

    The config is judged before weights are fetched.

    Args:
        tell: told how many MB of how many are there, file by file.

    Raises:
        ValueError: the hub has no such model, does not give it, or cannot be reached; or it is of no use.
    """
    config = _file(model, folder.CONFIG)
    if config is None:
        model = dataclasses.replace(model, folder=f"{model.folder}/{folder.PART}".lstrip("/"))
        config = _file(model, folder.CONFIG)
    if config is None:
        raise _lacking(model, folder.CONFIG)
    autoencoder_folder.config(folder.settings(config.read_bytes(), str(model)), str(model))
    _weights(model, tell)
    return Storage.at(config.parent)


def denoiser(model: HubModel, tell: Tell | None = None) -> Storage:
    """The same of a denoiser, with what its pipeline says of its training: the pipeline's folder, or that of
    the denoiser alone where `model` names it."""
    from pipelines.pretrained.denoiser_folder import BESIDE, PARTS, SCHEDULING

    config = _file(model, folder.CONFIG)
    pipeline, place = model, None if config is None else config.parent
    if config is not None:
        pipeline = dataclasses.replace(model, folder=model.folder.rpartition("/")[0])
        _file(model, SCHEDULING)
    for part in PARTS if config is None else ():
        model = dataclasses.replace(pipeline, folder=f"{pipeline.folder}/{part}".lstrip("/"))
        config = _file(model, folder.CONFIG)
        if config is not None:
            place = config.parent.parent
            break
    if place is None:
        raise _lacking(pipeline, folder.CONFIG)
    for name in BESIDE:
        _file(pipeline, name)
    _weights(model, tell)
    return Storage.at(place)


def pipeline(model: HubModel, tell: Tell | None = None) -> Storage:
    """The same of a whole pipeline: denoiser, autoencoder, and text encoders with their tokenizers."""
    index = _file(model, folder.PIPELINE)
    if index is None:
        raise ValueError(f"{model} has no {folder.PIPELINE}: name a whole pipeline, as org/name@COMMIT.")
    place = denoiser(model, tell)
    for part, said in folder.settings(index.read_bytes(), str(model)).items():
        inner = dataclasses.replace(model, folder=f"{model.folder}/{part}".lstrip("/"))
        if part == folder.PART and said[1]:
            autoencoder(inner, tell)
        elif part.startswith(("text_encoder", "tokenizer")) and said[1]:
            encoder(inner)
    return place


def _weights(model: HubModel, tell: Tell | None) -> None:
    """Fetches them."""
    if _file(model, folder.WHOLE, tell) is None:
        index = _file(model, folder.INDEX)
        names = folder.shards(index.read_bytes(), str(model)) if index else (folder.HALF,)
        for name in names:
            if _file(model, name, tell) is None:
                raise _lacking(model, name if index else folder.WHOLE)


def encoder(model: HubModel) -> Path:
    """The cache's folder with a text encoder's or captioner's config, tokenizer and safetensors.

    Raises:
        ValueError: as for `autoencoder`.
    """
    from huggingface_hub import snapshot_download

    inner = f"{model.folder}/" if model.folder else ""
    patterns = [inner + pattern for pattern in ENCODER]
    found = _asked(
        model, lambda: snapshot_download(model.repo, revision=model.commit, allow_patterns=patterns)
    )
    place = Path(found or "", model.folder)
    if found is None or not place.is_dir():
        raise _lacking(model, "such folder")
    return place


def cached(model: HubModel) -> bool:
    """Whether anything of it is in the cache: then nothing large is fetched to read it."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name = repo_folder_name(repo_id=model.repo, repo_type="model")
    place = Path(constants.HF_HUB_CACHE, name, "snapshots", model.commit, model.folder)
    return any(place.glob("*.safetensors"))


def commit_now(repo: str, revision: str | None) -> str | None:
    """The commit that a branch (the main one if None) is at; None where the hub does not say."""
    from huggingface_hub import HfApi

    try:
        return HfApi().repo_info(repo, revision=revision, timeout=PATIENCE).sha
    except Exception:  # whatever it is, the message that this would complete comes without it
        return None


def _file(model: HubModel, name: str, tell: Tell | None = None) -> Path | None:
    """A file of the model in the cache; None where the model has none."""
    from huggingface_hub import hf_hub_download

    found = _asked(
        model,
        lambda: hf_hub_download(
            model.repo,
            f"{model.folder}/{name}" if model.folder else name,
            revision=model.commit,
            tqdm_class=_bar(tell) if tell else None,
        ),
    )
    return None if found is None else Path(found)


def _asked(model: HubModel, question: Callable[[], str]) -> str | None:
    """The answer; None where the hub, or the cache when offline, has no such file; `ValueError` else."""
    from huggingface_hub import errors

    where = f"{model.repo} at {model.commit[:7]}"
    try:
        return question()
    except errors.RemoteEntryNotFoundError:
        return None
    except errors.LocalEntryNotFoundError as error:
        if _offline():
            return None
        raise ValueError(
            f"The hub does not answer for {where}, and the cache has not all of it: try again later, "
            "or fetch it elsewhere and name the folder."
        ) from error
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{where} is for those who have accepted its licence on the hub: accept it, and set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"The hub has {model.repo}, and no commit {model.commit} of it.") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"The hub has no {model.repo} for you: check the name, and set HF_TOKEN if it is private."
        ) from error
    except (errors.HTTPError, OSError) as error:  # pyright: ignore[reportPrivateImportUsage]
        raise ValueError(
            f"{where} could not be fetched ({type(error).__name__}): try again later, "
            "or fetch it elsewhere and name the folder."
        ) from error


def _lacking(model: HubModel, name: str) -> ValueError:
    if _offline():
        return ValueError(
            f"The cache has no {name} of {model}, and HF_HUB_OFFLINE is set: unset it, or fetch it elsewhere "
            f"(hf download {model.repo} --revision {model.commit}) and copy the cache (HF_HOME)."
        )
    return ValueError(
        f"{model} has no {name} (weights in pickles are not read): name the folder of an autoencoder "
        "with safetensors, as org/name/vae@COMMIT."
    )


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.is_offline_mode()


def _bar(tell: Tell) -> Any:
    """What huggingface_hub takes for a progress bar, and tells in MB."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            self.done = int(options.get("initial") or 0)
            super().__init__(*args, **{**options, "disable": True})
            self.total = options.get("total")

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            tell(self.done // 10**6, max(int(self.total or 0), self.done) // 10**6)

    return Bar
