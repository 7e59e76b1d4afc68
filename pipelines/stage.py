"""What a stage is: one frozen dataclass in one file, of one of two shapes.

A `ShardStage` lists its output shards as data and makes one shard at a time; a `Stage` runs as a whole.
Neither imports Ray: an executor of `cluster/` calls them, on Ray or in this process.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from cluster.resources import Resources

if typing.TYPE_CHECKING:
    from cluster.mapping import Executor
    from cluster.storage import Storage
    from pipelines.runner.artifacts import Source

Kind = Literal["dataset", "snapshot", "report"]


@dataclass(frozen=True)
class Input:
    """Marks a field as naming another stage's output: `Annotated[str, Input("dataset", ("image",))]`.

    A field of type `tuple[str, ...]` names several; they are opened as a tuple.
    """

    kind: Kind
    columns: tuple[str, ...] = ()
    """Columns of a dataset that it reads; only they enter its fingerprint. `image` is jpg, png or webp."""
    part: Literal["autoencoder", "denoiser", "pipeline"] = "autoencoder"
    """Of foreign weights that are named for a snapshot: what is taken from them; `pipeline` is all, to draw
    with."""


KEEP = "keep"
"""The column that kept rows alone have. An input that reads nothing else says which rows a stage makes, and
not what comes out of them: it enters the fingerprint, and no sample's work."""
DROPPED = "dropped"
"""Reason of a row that is not kept. It is no reject: it counts apart, and never against `max_rejects`."""


def execution(default: Any) -> Any:
    """A field that decides how fast a stage runs, never what comes out: not in the fingerprint."""
    if dataclasses.is_dataclass(default):
        return field(default_factory=lambda: default, metadata={"execution": True})
    return field(default=default, metadata={"execution": True})


def added(default: Any) -> Any:
    """A field that the stage did not have at first.

    At its default it leaves the fingerprint as it was: what was finished before it came stays finished.
    """
    if dataclasses.is_dataclass(default):
        return field(default_factory=lambda: default, metadata={"added": default})
    return field(default=default, metadata={"added": default})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One planned sample of an output shard, known before it is made."""

    key: str
    reads: tuple[str, ...] = ()
    """Digests of the bytes that decide this sample; with the stage's meaning they are its work key."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Where its input lies (JSON)."""
    reject: str | None = None
    """Set where the input already rejected this sample: it keeps its row and is not made."""
    meta: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    """Scalars for the index of a rejected row."""


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One output shard, as data: small enough to send to any worker."""

    name: str
    """Five digits or more, the same in every dataset of a line."""
    split: str
    count: int
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One record of an output shard: its members, or the reason why it has none."""

    key: str
    members: Mapping[str, bytes] = field(default_factory=dict)
    """Suffix without the leading dot -> bytes."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """sha256 hex of members of which it is known already, by suffix."""
    meta: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    """Scalars for the shard's index."""
    shared: Mapping[str, bytes] = field(default_factory=dict)
    """Members that samples of a shard have in common, by full name (`<digest>.text.npy`); stored once."""
    reject: str | None = None


class Artifact(Protocol):
    """A finished output: a folder with a manifest."""

    manifest: dict[str, Any]

    def digest(self, columns: Sequence[str] = ()) -> str: ...


Tell = Callable[[int, int], None]
"""How far something is: done, of how many."""


class TooMany(ValueError):
    """What is to be found out before planning takes so long that it is part of the run."""


Inputs = Mapping[str, Any]
"""Field name -> opened `Dataset`, `SnapshotFolder` or report, a tuple of them where the field names several,
None for an optional input that is not set."""

Spread = Callable[[Callable[[], Callable[[Any], Any]], Sequence[Any]], list[Any]]
"""Calls the function that a factory opens on each item, on the stage's workers; results in their order."""


def in_turn(factory: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> list[Any]:
    """The same in this process."""
    call = factory()
    return [call(item) for item in items]


Event = dict[str, Any]
"""{"kind": "progress", "done", "total", "unit"}, {"kind": "metrics", "step", "values"}, {"kind": "picture",
"name", "step", "png"} (bytes) or {"kind": "note", "text"}; the runner adds the stage's name and the time."""


class Session(Protocol):
    """What a `Stage` is given to run with."""

    inputs: Inputs
    output: Any
    """`cluster.storage.Storage` of the output folder; the manifest in it is the runner's to write."""
    checkpoints: Any
    """`Storage` shared by every length of the same training (all meaning but `images_seen` equal)."""
    scratch: Path
    """A local folder, removed afterwards."""
    resources: Resources

    @property
    def lease(self) -> int:
        """Number of the lease on `checkpoints`: it stands in every checkpoint; readers take the highest."""
        ...

    def event(self, event: Event) -> None: ...

    def gang(self, worker: Callable[..., dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
        """Runs `worker(config, member)` on `resources.workers` processes; rank 0's return value."""
        ...

    def map(self, factory: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> Iterator[Any]:
        """Calls the function that `factory` opens on each item, once a worker; results as they come."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Stage(ABC):
    version: ClassVar[int] = 1
    """Raised when the output would change for equal inputs."""
    output: ClassVar[Kind]
    accelerated: ClassVar[bool] = False
    """Whether it runs faster on a GPU, and is given one where there is one."""

    resources: Resources = execution(Resources())

    @classmethod
    def name(cls) -> str:
        """`TrainAutoencoder` -> `train_autoencoder`: file, command, MLflow run and manifest have it."""
        return "".join("_" + c.lower() if c.isupper() else c for c in cls.__name__).lstrip("_")

    @classmethod
    @functools.cache
    def inputs(cls) -> dict[str, Input]:
        hints = typing.get_type_hints(cls, include_extras=True)
        return {
            f.name: mark
            for f in dataclasses.fields(cls)
            for mark in getattr(hints[f.name], "__metadata__", ())
            if isinstance(mark, Input)
        }

    @classmethod
    def keeps(cls) -> frozenset[str]:
        """Inputs that only say which rows are kept."""
        return frozenset(name for name, mark in cls.inputs().items() if mark.columns == (KEEP,))

    @classmethod
    def mark_of(cls, name: str) -> Input:
        """The mark of `field`, or of the field behind `field.0`."""
        return cls.inputs()[name.partition(".")[0]]

    def named(self) -> dict[str, str | None]:
        """What the recipe names for each input; `field.0`, `field.1`, ... where a field names several."""
        found: dict[str, str | None] = {}
        for name in self.inputs():
            value = getattr(self, name)
            if isinstance(value, tuple):
                found |= {f"{name}.{n}": reference for n, reference in enumerate(value)}
            else:
                found[name] = value
        return found

    def columns(self, name: str) -> tuple[str, ...]:
        """Columns of input `name` that this stage reads as configured."""
        return self.inputs()[name].columns

    def meaning(self) -> dict[str, Any]:
        """What decides the output, less the inputs, whose digests stand for them; canonical JSON types."""
        skip = set(self.inputs())
        return {name: value for name, value in jsonable(self).items() if name not in skip}

    def prepared(
        self, store: Storage | None = None, executor: Executor | None = None, tell: Tell | None = None
    ) -> typing.Self:
        """The stage with what it must find out before it can be planned, kept in `store`; most need nothing.

        Without an executor, what would take long is left and `TooMany` raised.
        """
        return self

    def unsuited(self, made: Mapping[str, Any]) -> dict[str, str]:
        """What is wrong with how it and stages that it reads go together, by field: told as a mistake of the
        recipe, before anything runs. `made`: input -> the stage of that recipe that makes it."""
        return {}

    def external(self) -> dict[str, str]:
        """Digests of what it reads beside its inputs (source files, weights), computed when planning."""
        return {}

    def implied(self, inputs: Inputs, store: Storage) -> Mapping[str, Source | None]:
        """Inputs that the recipe leaves out and the stage finds itself, once the others are finished."""
        return {}

    def bytes_needed(self, inputs: Inputs) -> int:
        """Roughly what its output takes in the store, told to the user before there is too little room."""
        return 0

    @abstractmethod
    def summary(self) -> str:
        """What it takes, in a few words, for the plan: "1,599 images to 48 px"."""


@dataclass(frozen=True, kw_only=True)
class ShardStage(_Stage):
    """Makes a dataset shard by shard, in any order, on any number of workers, to the same bytes."""

    output: ClassVar[Kind] = "dataset"
    primary: ClassVar[str] = ""
    """The input whose shards, splits and rows the output has; "" where the stage has its own."""

    max_rejects: float = execution(0.05)
    """Share of rejected samples above which the stage stops."""
    retry: str | None = added(None)
    """Fingerprint of an earlier output whose rejected samples are made once more; the others are copied."""

    def plan(self, inputs: Inputs) -> list[ShardPlan]:
        """The output's shards. Must be cheap: the driver calls it."""
        return [ShardPlan(name=s.name, split=s.split, count=s.samples) for s in inputs[self.primary].shards]

    def rows(self, inputs: Inputs, shard: ShardPlan) -> list[Row]:
        """The rows of one output shard in key order, without making them: the worker calls it."""
        columns = {
            n: self.columns(n)
            for n, i in self.inputs().items()
            if i.kind == "dataset" and inputs.get(n) is not None
        }
        index = {n: inputs[n].index(shard.name) for n in columns}
        keeps = self.keeps()
        first = index[self.primary]
        for name, other in index.items():
            if other.keys != first.keys:
                raise ValueError(
                    f"{name} and {self.primary} differ in the rows of shard {shard.name}: not of one line."
                )
        rows = []
        for n, key in enumerate(first.keys):
            reject = next((i.reasons[n] for i in index.values() if i.reasons[n]), None)
            lacks = any(index[name].member(n, KEEP) is None for name in keeps if name in index)
            # A view says it of its own rows.
            if not reject and (lacks or any(i.meta[n].get(KEEP) is False for i in index.values())):
                reject = DROPPED
            read = () if reject else tuple(name for name in columns if name not in keeps)
            reads = tuple(d for name in read for d in index[name].digests(n, columns[name]))
            rows.append(Row(key=key, reads=reads, reject=reject))
        return rows

    def work(self) -> dict[str, Any]:
        """What decides every sample alike, beside the bytes that its row reads and its snapshots.

        By default all meaning and `external()`. A stage leaves out what only arranges samples (shard size,
        split), so that these can change without making a sample again.
        """
        return {"meaning": self.meaning(), "external": self.external()}

    def shared(self, members: Mapping[str, bytes]) -> Sequence[str]:
        """Full names of the shared members that a sample with these members needs."""
        return ()

    def bytes_needed(self, inputs: Inputs) -> int:
        return sum(shard.bytes for shard in inputs[self.primary].shards) if self.primary else 0

    @abstractmethod
    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        """Loads what is needed (torch, weights); returns the function that makes given rows of a shard."""

    def finish(self, inputs: Inputs, dataset: Any) -> dict[str, Any]:
        """Fields for the manifest, computed in shard order from the finished shards (statistics)."""
        return {}

    def gathered(self, inputs: Inputs, dataset: Any, spread: Spread) -> dict[str, Any]:
        """`finish` of a stage that has workers read the shards, as what it needs of them is large."""
        return self.finish(inputs, dataset)


@dataclass(frozen=True, kw_only=True)
class Stage(_Stage):
    """Runs as a whole: training, evaluation, views."""

    length: ClassVar[tuple[str, ...]] = ("images_seen",)
    """Fields that only say how long: runs that differ in nothing else share their checkpoints."""

    @abstractmethod
    def run(self, session: Session) -> dict[str, Any]:
        """Writes files to `session.output`; returns what the manifest is to say."""


def jsonable(value: Any) -> Any:
    """Dataclasses, tuples and paths as canonical JSON types.

    Left out at every depth are execution fields, and fields that came later while they are at their default.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: jsonable(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not f.metadata.get("execution")
            and not ("added" in f.metadata and getattr(value, f.name) == f.metadata["added"])
        }
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value
