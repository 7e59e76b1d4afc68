"""MLflow's model registry: every look into it and every change of it.

A snapshot is a version of a registered model. Two aliases point at versions: `candidate` at the one that was
trained last, `champion` at the one to use. A version's tags say where its snapshot lies, its digest, how the
gate scored it, and which champion it took the place of; they are all that this module knows of the past.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage import Storage
from pipelines.dataset import MANIFEST
from pipelines.versions import TAG, Version, described, version_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

REFERENCE = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[^/@:]+)|/(?P<version>\d+))")
NAME = re.compile(r"[^/@:\s][^/@:]*")
CANDIDATE, CHAMPION = "candidate", "champion"
SQLITE = "sqlite:///"
ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"}
"""MLflow's codes for a name, alias or version that there is not."""


class RegistryError(ValueError):
    """MLflow cannot be reached, or refuses."""

    def __init__(self, message: str, error_code: str) -> None:
        super().__init__(message)
        self.error_code = error_code


class Registry:
    """The registry of a tracking server, or of the database in a store."""

    def __init__(self, uri: str, *, store: Storage | None = None, client: MlflowClient | None = None) -> None:
        """`store`: where a snapshot is looked for that is no longer at its URL, in a store that has moved."""
        self.uri, self.store = uri, store
        self._given = client

    @staticmethod
    def of(store: Storage) -> Registry:
        """`ValueError` for a store in a bucket where no server is named."""
        from pipelines.tracking import Destination

        return Registry(Destination.of(store, "models").uri, store=store)

    @property
    def empty(self) -> bool:
        """Whether nothing was ever registered: a look must not make the database, which takes seconds."""
        return self.uri.startswith(SQLITE) and not Path(self.uri.removeprefix(SQLITE)).exists()

    @functools.cached_property
    def client(self) -> MlflowClient:
        if self._given is not None:
            return self._given
        from pipelines.tracking import environment

        for key, value in environment().items():
            if key.startswith(("MLFLOW_", "DO_NOT_TRACK", "GIT_PYTHON")):
                os.environ.setdefault(key, value)
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # how a database is migrated is nobody's concern here
            logging.getLogger(name).setLevel(logging.WARNING)
        return MlflowClient(self.uri, self.uri)

    def resolve(self, reference: str) -> Version:
        """The version that `models:/name@alias` or `models:/name/3` stands for.

        Raises:
            ValueError: no such model, alias or version, or the registry cannot be reached.
        """
        match = REFERENCE.fullmatch(reference)
        if not match:
            raise ValueError(
                f"{reference} is not a registered model: write models:/name@alias or models:/name/3."
            )
        name, alias, number = match["name"], match["alias"], match["version"]
        found = self.at(name, alias) if alias else self.version(name, int(number))
        if found is None:
            known = ", ".join(self.names()) or "none yet"
            hint = f" (its aliases: {', '.join(self._aliases(name))})" if name in self.names() else ""
            raise ValueError(
                f"The registry at {self.uri} has no {reference}{hint or f' (models: {known})'}; "
                "`latentmill models` lists what there is."
            )
        return found

    def place(self, version: Version) -> Storage:
        """The folder of the version's snapshot, in this store where it is not at its URL any more.

        Raises:
            ValueError: it is nowhere.
        """
        places = [Storage.at(version.url)] if version.url and "runs:/" not in version.url else []
        folder = version.tags.get("folder", "")
        if self.store is not None and folder.count("/") == 1 and not folder.endswith("/"):
            stage, fingerprint = folder.split("/")
            places.append(self.store.folder(stage).folder(fingerprint))
        for place in places:
            if place.exists(MANIFEST):
                return place
        raise ValueError(
            f"{version.reference} has no snapshot any more at {version.url or 'any place'}: bring it back, "
            f"or `latentmill models {version.name} --promote` another version."
        )

    def names(self) -> list[str]:
        """Registered models, by name."""
        if self.empty:
            return []
        with self._asked("lists no models"):
            found, token = [], None
            while True:
                page = self.client.search_registered_models(max_results=100, page_token=token)
                found += [model.name for model in page]
                token = page.token
                if not token:
                    return sorted(found)

    def versions(self, name: str) -> list[Version]:
        """All of a model, the newest first; none for a name that is not registered."""
        if self.empty:
            return []
        aliases = self._aliases(name)
        with self._asked(f"lists no versions of {name}"):
            found = self.client.search_model_versions(f"name='{name}'", max_results=10_000)
        return sorted((version_of(v, aliases) for v in found), key=lambda v: -v.number)

    def version(self, name: str, number: int) -> Version | None:
        if self.empty:
            return None
        with self._asked(f"does not tell of version {number} of {name}", lenient=True):
            return version_of(self.client.get_model_version(name, str(number)), self._aliases(name))
        return None

    def at(self, name: str, alias: str) -> Version | None:
        """The version that an alias points at."""
        if self.empty:
            return None
        number = self._aliases(name).get(alias)
        return None if number is None else self.version(name, number)

    def find(self, name: str, digest: str) -> Version | None:
        """The version of a snapshot: the first, should it have been registered twice."""
        same = [version for version in self.versions(name) if version.digest == digest]
        return same[-1] if same else None

    def rival(self, name: str, digest: str) -> Version | None:
        """What a snapshot is to be compared with to become champion, or was compared with when it did.

        The champion; for the champion itself the one whose place it took, if its snapshot is still there. So
        a comparison stays the same one after it has moved the alias. None where there is no such version.
        """
        champion = self.at(name, CHAMPION)
        if champion is None or champion.digest != digest:
            return champion
        before = None if champion.before is None else self.version(name, champion.before)
        if before is not None:
            with contextlib.suppress(ValueError):
                self.place(before)
                return before
        return None

    def register(
        self, name: str, *, url: str, manifest: Mapping[str, Any], run: str | None = None
    ) -> Version:
        """The version of a snapshot, made if there is none of its digest; a new one is the `candidate`.

        Whoever comes second, a training's flusher or the gate, finds what the first has made.

        Args:
            run: MLflow's run that made the snapshot, if it is known.
        """
        tags = described(manifest, url=url)
        known = self.find(name, tags["digest"])
        if known is None:
            with self._asked(f"takes no version of {name}"):
                self._create(name)
                run = run or self._run_of(tags)
                # The weights stay where they are; but a server takes no path of another machine as a source.
                source = url
                if self.uri.startswith("http") and "://" not in url:
                    run = run or self._run_for(name, manifest)
                    source = f"runs:/{run}/snapshot"
                made = self.client.create_model_version(
                    name, source, run_id=run, tags={TAG + key: value for key, value in tags.items()}
                )
            known = self.find(name, tags["digest"])
            assert known is not None
            if known.number != int(made.version):  # another was first by a moment: its version stands
                self.client.delete_model_version(name, made.version)
            self.point(known, CANDIDATE)
        return known

    def point(self, version: Version, alias: str) -> None:
        with self._asked(f"does not move {alias} of {version.name}"):
            self.client.set_registered_model_alias(version.name, alias, str(version.number))

    def note(self, version: Version, **tags: str) -> None:
        """Writes tags of a version."""
        with self._asked(f"takes no tags of {version.reference}"):
            for key, value in tags.items():
                self.client.set_model_version_tag(version.name, str(version.number), TAG + key, value[:5000])

    def promote(self, version: Version, *, by: str, why: str) -> None:
        """Makes a version the champion. What it says of itself is written first and the alias moved last.

        A second time, after a crash or for whom is champion already, nothing changes.
        """
        champion = self.at(version.name, CHAMPION)
        if champion is not None and champion.number == version.number:
            return
        self.note(
            version,
            champion_before=str(champion.number) if champion else "",
            promoted_by=by,
            promoted_why=why,
            promoted_at=_now(),
        )
        self.point(version, CHAMPION)

    def roll_back(self, name: str, *, by: str, why: str) -> tuple[Version, Version]:
        """Makes the one before champion again: the version that was it, and the one that is it now.

        Raises:
            ValueError: there is no champion, or none before it.
        """
        champion = self.at(name, CHAMPION)
        if champion is None:
            raise ValueError(
                f"{name} has no champion: `latentmill models {name} --promote VERSION` makes one."
            )
        before = None if champion.before is None else self.version(name, champion.before)
        if before is None:
            raise ValueError(
                f"Version {champion.number} is the first champion of {name}: there is none before."
            )
        self.place(before)
        self.note(champion, rolled_back_by=by, rolled_back_why=why, rolled_back_at=_now())
        self.point(before, CHAMPION)
        return champion, before

    def picture(self, version: Version) -> bytes | None:
        """Pictures by the version: those that the gate drew, else the last that its training showed."""
        drawn = version.tags.get("picture")
        if drawn:
            folder, _, file = drawn.rpartition("/")
            with contextlib.suppress(OSError, ValueError):
                return Storage.at(folder).read(file)
        if version.run is None:
            return None
        with self._asked("shows no pictures", lenient=True):
            steps = {}
            for file in self.client.list_artifacts(version.run, "images"):
                match = re.fullmatch(r"images/samples\+step\+(\d+)\+.*\.png", file.path)
                if match:
                    steps[int(match[1])] = file.path
            if steps:
                return Path(self.client.download_artifacts(version.run, steps[max(steps)])).read_bytes()
        return None

    def _create(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _aliases(self, name: str) -> dict[str, int]:
        with self._asked(f"does not tell of {name}", lenient=True):
            return {a: int(v) for a, v in self.client.get_registered_model(name).aliases.items()}
        return {}

    def _run_of(self, tags: Mapping[str, str]) -> str | None:
        """The run of a version of the same snapshot under another name."""
        found = self.client.search_model_versions(f"tags.`{TAG}digest` = '{tags['digest']}'", max_results=10)
        return next((version.run_id for version in found if version.run_id), None)

    def _run_for(self, name: str, manifest: Mapping[str, Any]) -> str:
        """A run of its own for a snapshot that none is known of: a server wants a source that it can see."""
        found = self.client.get_experiment_by_name("latentmill")
        experiment = found.experiment_id if found else self.client.create_experiment("latentmill")
        run = self.client.create_run(experiment, run_name=name).info.run_id
        self.client.log_text(run, json.dumps(manifest, indent=1), "snapshot/manifest.json")
        self.client.set_terminated(run)
        return run

    @contextlib.contextmanager
    def _asked(self, what: str, *, lenient: bool = False) -> Iterator[None]:
        """MLflow's faults in one line; `lenient`: what there is not is no fault."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            if lenient and error.error_code in ABSENT:
                return
            reason = str(error).splitlines()[0] if str(error) else error.error_code
            message = f"MLflow at {self.uri} {what} ({reason[:300]})."
            raise RegistryError(message, str(error.error_code)) from error


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
