"""What a recipe becomes when it is handed to a cluster: a job with a name of its own that any node runs."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.jobs import CurrentJob, JobServer, Node
from cluster.session import SHARED_STORE, packages
from cluster.storage import LocalStorage, Storage
from pipelines.config import Recipe
from pipelines.places import in_package
from pipelines.recipe import yaml12
from pipelines.runner.record import versions
from pipelines.shards import canonical
from pipelines.uploads import named, upload

PREFIX = "latentmill-"
"""Of every job of ours."""
PASSED = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_S3_ENDPOINT_URL",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "FSSPEC_S3_ENDPOINT_URL",
    "GOOGLE_CLOUD_PROJECT",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "HF_HUB_OFFLINE",
)
"""Variables of this environment that a job is given too, beside those that begin with LATENTMILL_."""
OURS = ("LATENTMILL_STORE", "LATENTMILL_CACHE", "LATENTMILL_BENCH_STORE")
"""Those of them that hold for this machine alone."""
SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|CREDENTIAL|ACCESS_KEY|ACCOUNT_KEY|API_KEY|CONNECTION_STRING")
"""What no job is ever given: Ray shows a job's environment to all who see its dashboard."""
NEEDED = {
    "s3": ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "FSSPEC_S3_SECRET"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "az": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_SAS_TOKEN"),
    "mlflow": ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
}
"""Credentials that a node needs of its own, where this machine has them."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """All that a job is given."""

    name: str
    """Of its first attempt: the recipe's name and a digest of what is asked for and where."""
    recipe: str
    text: str
    """The resolved recipe, without a path that only this machine has."""
    command: str
    environment: Mapping[str, str]
    metadata: Mapping[str, str]
    packages: tuple[Path, ...]
    copied: tuple[tuple[str, str, int], ...] = ()
    """(field, URL, bytes copied) of what was brought into the store."""
    notes: tuple[str, ...] = ()
    """What the user should know, a line each."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What the nodes of a cluster see of this machine's files."""

    nodes: Sequence[Node]
    store: bool = False
    """Whether the user says that every node sees the store."""
    folders: Sequence[Path] = ()
    """What the user says that every node sees under the same path."""
    upload: bool = False
    """Whether the rest is to be copied into the store."""

    @property
    def here(self) -> bool:
        """Whether the cluster is this machine."""
        return all(node.here for node in self.nodes)

    def sees(self, path: Path, store: Storage) -> bool:
        folders = [*self.folders, *([store.path] if self.store and isinstance(store, LocalStorage) else [])]
        return any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)


def prepare(
    recipe: Recipe,
    store: Storage,
    server: JobServer,
    *,
    reach: Reach,
    until: str | None = None,
    force: Sequence[str] = (),
    installed: bool = False,
) -> Submission:
    """Copies what must be copied, and puts the job together; nothing is submitted.

    Args:
        installed: the nodes have this version of the project, so none is sent.

    Raises:
        ValueError: the nodes could not read or write something; one line each.
    """
    shared = _check_store(store, reach)
    environment = _environment(os.environ, store, reach)
    if shared and len(reach.nodes) > 1:
        environment[SHARED_STORE] = "1"
    text, copied = _portable(recipe, store, reach)
    asked = ["--until", until] if until else []
    asked += [word for stage in force for word in ("--force", stage)]
    file = f"{recipe.name}.yaml"
    command = shlex.join(["python", "-m", "pipelines", "run", file, "--store", store.url, *asked])
    digest = hashlib.sha256(canonical([text, store.url, asked])).hexdigest()[:8]
    tracking = environment.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.url}/mlflow.db"
    told = {
        "recipe": recipe.name,
        "store": store.url,
        "report": f"{store.url}/runs/{recipe.name}/report.html",
        "mlflow": tracking,
        "mlflow_experiment": environment.get("MLFLOW_EXPERIMENT_NAME") or "latentmill",
        "dashboard": server.url,
        "version": versions().get("latentmill", "?"),
        "installed": "yes" if installed else "no",
    }
    return Submission(
        name=f"{PREFIX}{recipe.name}-{digest}",
        recipe=recipe.name,
        text=text,
        command=command,
        environment=environment,
        metadata=told,
        packages=() if installed else packages(),
        copied=copied,
        notes=_notes(os.environ, store),
    )


def check_installed(job: CurrentJob) -> None:
    """`ValueError` in a job that was sent no code, where other code is installed than was submitted with."""
    here, there = versions().get("latentmill"), job.metadata.get("version")
    if job.metadata.get("installed") == "yes" and here != there:
        raise ValueError(
            f"latentmill {here} is installed here, and {there} has submitted this: leave --installed out, "
            "or bring the nodes to that version."
        )


def _check_store(store: Storage, reach: Reach) -> bool:
    """Whether the store is a folder that several machines share."""
    if not isinstance(store, LocalStorage):
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise ValueError(
                f"{store.url} cannot hold MLflow's database: start `mlflow server` where the cluster reaches "
                "it, and set MLFLOW_TRACKING_URI."
            )
        return False
    declared = reach.store or any(store.path.is_relative_to(folder.resolve()) for folder in reach.folders)
    if len(reach.nodes) > 1 and not declared:
        raise ValueError(
            f"The cluster has {len(reach.nodes)} nodes and the store {store.url} is a folder: put it into a "
            "bucket (--store s3://BUCKET/store), or add --shared-store if every node sees it at that path."
        )
    return declared


def _portable(recipe: Recipe, store: Storage, reach: Reach) -> tuple[str, tuple[tuple[str, str, int], ...]]:
    """The recipe's text as any node reads it, and what was copied for that."""
    tree: Any = yaml12.read(recipe.text, recipe.name).tree
    refused, replaced, copied = [], {}, []
    for one in named(recipe.stages):
        shipped = in_package(one.path)
        if shipped:
            replaced[one.place] = shipped
        elif reach.sees(one.path, store) or (reach.here and not reach.upload):
            replaced[one.place] = str(one.path)
        elif reach.upload:
            if isinstance(store, LocalStorage) and not (reach.here or reach.sees(store.path, store)):
                raise ValueError(
                    f"--upload copies into the store, and {store.url} is a folder of this machine: give a "
                    "bucket (--store s3://BUCKET/store), or add --shared-store if every node sees it."
                )
            replaced[one.place], size = upload(store, one)
            copied.append((one.field, replaced[one.place], size))
        else:
            refused.append(
                f"{one.field}: {one.path} is on this machine: --upload copies it into the store, "
                f"--shared {one.path if one.path.is_dir() else one.path.parent} says that every node has it."
            )
    if refused:
        raise ValueError("\n".join(refused))
    for place, value in replaced.items():
        _put(tree["stages"], place, value)
    return yaml12.write(tree), tuple(copied)


def _put(tree: Any, place: Sequence[str | int], value: str) -> None:
    *above, last = place
    for step in above:
        tree = tree.setdefault(step, {}) if isinstance(tree, dict) else tree[step]
    tree[last] = value


def _environment(environ: Mapping[str, str], store: Storage, reach: Reach) -> dict[str, str]:
    """The variables that a job is given; `ValueError` where one of them holds a password or a path."""
    given = {
        name: value
        for name, value in sorted(environ.items())
        if (name in PASSED or (name.startswith("LATENTMILL_") and name not in OURS))
        and not SECRET.search(name)
        and value
    }
    for name, value in given.items():
        if "://" in value and urlsplit(value).password:
            raise ValueError(
                f"{name} holds a password, which Ray's dashboard would show: take it out, and give it to the "
                "nodes (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in their environment)."
            )
    uri = given.get("MLFLOW_TRACKING_URI", "")
    if uri and not uri.startswith(("http://", "https://")):
        path = Path(uri.partition(":///")[2] or uri)
        if not (reach.here or reach.sees(path, store)):
            raise ValueError(
                f"MLFLOW_TRACKING_URI={uri} is of this machine: start `mlflow server` where the cluster "
                "reaches it, and give its http address."
            )
    return given


def _notes(environ: Mapping[str, str], store: Storage) -> tuple[str, ...]:
    scheme = store.url.partition("://")[0] if "://" in store.url else ""
    kept = [name for name in (*NEEDED.get(scheme, ()), *NEEDED["mlflow"]) if environ.get(name)]
    if not kept:
        return ()
    return (f"{' and '.join(kept)} stay here, for Ray shows what a job is given: the nodes need their own.",)
