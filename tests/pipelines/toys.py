"""Stages that do next to nothing, to see what the runner does with them. Each call leaves a line in a log."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from cluster.storage import Storage
from pipelines import pipeline
from pipelines.stage import Input, Row, Sample, Session, ShardPlan, ShardStage, Stage, added, execution


@dataclass(frozen=True)
class ToyRecipe:
    stages: dict[str, Any]
    name: str = "toy"
    text: str = ""


def note(log: str | None, *words: object) -> None:
    if log:
        with Path(log).open("a") as file:
            file.write(" ".join(map(str, words)) + "\n")


def noted(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


@dataclass(frozen=True, kw_only=True)
class Numbers(ShardStage):
    """Reads one file a sample from a folder, `10` rows a shard by the number's tens."""

    folder: str = execution("")
    log: str | None = execution(None)
    bad: tuple[str, ...] = ()

    def external(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in sorted(Path(self.folder).iterdir())}

    def work(self) -> dict[str, Any]:
        return {"meaning": self.meaning()}

    def _keys(self) -> list[str]:
        return sorted(path.stem for path in Path(self.folder).iterdir())

    def plan(self, inputs: Any) -> list[ShardPlan]:
        keys = self._keys()
        shards = sorted({key[:-1] for key in keys})
        return [
            ShardPlan(
                name=f"{n:05d}", split="train", count=sum(k[:-1] == tens for k in keys), data={"tens": tens}
            )
            for n, tens in enumerate(shards)
        ]

    def rows(self, inputs: Any, shard: ShardPlan) -> list[Row]:
        keys = [key for key in self._keys() if key[:-1] == shard.data["tens"]]
        return [Row(key=key, reads=(Path(self.folder, key + ".txt").read_text(),)) for key in keys]

    def open(self, inputs: Any) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        def make(shard: ShardPlan, rows: Sequence[Row]) -> Iterable[Sample]:
            for row in rows:
                note(self.log, "numbers", row.key)
                if row.key in self.bad:
                    yield Sample(key=row.key, reject="bad_number")
                else:
                    yield Sample(key=row.key, members={"num": row.reads[0].encode()}, meta={"length": 1})

        return make

    def summary(self) -> str:
        return "numbers"


@dataclass(frozen=True, kw_only=True)
class Times(ShardStage):
    """Multiplies; with a snapshot, by its factor as well. Half of its samples share a member."""

    primary: ClassVar[str] = "numbers"

    numbers: Annotated[str, Input("dataset", ("num",))]
    model: Annotated[str | None, Input("snapshot")] = None
    factor: int = 2
    log: str | None = execution(None)
    crash_at: str | None = execution(None)

    def shared(self, members: Any) -> Sequence[str]:
        return [f"{'even' if int(members['num']) % 2 == 0 else 'odd'}.parity"]

    def open(self, inputs: Any) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        note(self.log, "open", os.getpid())
        extra = inputs["model"].manifest["snapshot"]["weight"] if inputs["model"] else 1

        def make(shard: ShardPlan, rows: Sequence[Row]) -> Iterable[Sample]:
            wanted = [row.key for row in rows]
            for record in inputs["numbers"].read(shard.name, wanted, ("num",)):
                note(self.log, "times", record.key)
                if record.key == self.crash_at:
                    raise RuntimeError("the machine is on fire")
                number = int(record.members["num"]) * self.factor * extra
                parity = "even" if number % 2 == 0 else "odd"
                shared = {f"{parity}.parity": parity.encode()}
                yield Sample(key=record.key, members={"num": str(number).encode()}, shared=shared)

        return make

    def finish(self, inputs: Any, dataset: Any) -> dict[str, Any]:
        total = sum(
            int(r.members["num"]) for s in dataset.shards for r in dataset.read(s.name, columns=("num",))
        )
        return {"statistics": {"sum": total}}

    def summary(self) -> str:
        return f"times {self.factor}"


@dataclass(frozen=True, kw_only=True)
class Learn(Stage):
    """A training of integers: adds up the numbers `images_seen` times, with a checkpoint at every pass."""

    output: ClassVar[Any] = "snapshot"

    numbers: Annotated[str, Input("dataset", ("num",))]
    images_seen: int = 5
    rate: int = 1
    log: str | None = execution(None)
    pause: float = execution(0.0)

    def run(self, session: Session) -> dict[str, Any]:
        dataset = session.inputs["numbers"]
        numbers = [
            int(r.members["num"]) for s in dataset.shards for r in dataset.read(s.name, columns=("num",))
        ]
        names = [n for n in session.checkpoints.list() if n.startswith("at-")]
        found = [json.loads(session.checkpoints.read(n)) for n in names]
        state = max(
            (c for c in found if c["seen"] <= self.images_seen),
            key=lambda c: (c["seen"], c["lease"]),
            default={"seen": 0, "weight": 0},
        )
        while state["seen"] < self.images_seen:
            time.sleep(self.pause)
            note(self.log, "pass", state["seen"] + 1)
            state = {"seen": state["seen"] + 1, "weight": state["weight"] + self.rate * sum(numbers)}
            state["lease"] = session.lease
            name = f"at-{state['seen']:04d}-{session.lease:06d}"
            session.checkpoints.put_if_absent(name, json.dumps(state).encode())
            session.event({"kind": "metrics", "step": state["seen"], "values": {"weight": state["weight"]}})
        weights = json.dumps(state["weight"]).encode()
        session.output.put_if_absent("weights.json", weights)
        files = {"weights.json": hashlib.sha256(weights).hexdigest()}
        return {"weight": state["weight"], "images_seen": self.images_seen, "files": files}

    def summary(self) -> str:
        return f"{self.images_seen} passes"


@dataclass(frozen=True, kw_only=True)
class Judge(Stage):
    output: ClassVar[Any] = "report"

    numbers: Annotated[str, Input("dataset", ("num",))]
    model: Annotated[str | None, Input("snapshot")] = None
    question: str = "how many?"
    log: str | None = execution(None)

    def run(self, session: Session) -> dict[str, Any]:
        note(self.log, "judge")
        return {"answer": len(session.inputs["numbers"])}

    def summary(self) -> str:
        return self.question


@dataclass(frozen=True, kw_only=True)
class Compare(Stage):
    """Reads any number of datasets, in the order given."""

    output: ClassVar[Any] = "report"

    several: Annotated[tuple[str, ...], Input("dataset", ("num",))] = ()
    late: int = added(0)

    def run(self, session: Session) -> dict[str, Any]:
        return {"first": [self._first(dataset) for dataset in session.inputs["several"]]}

    def _first(self, dataset: Any) -> int:
        return int(next(dataset.read(dataset.shards[0].name, columns=("num",))).members["num"])

    def summary(self) -> str:
        return f"{len(self.several)} datasets"


@dataclass
class World:
    """A folder of numbers, a store, and the recipe over them."""

    root: Path
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.root / "log"

    def numbers(self, *numbers: int) -> None:
        folder = self.root / "numbers"
        folder.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            (folder / f"{number:03d}.txt").write_text(str(number))

    def stage(self, kind: type, name: str, **fields: Any) -> Any:
        return kind(**{"log": str(self.log), **fields, **self.changes.get(name, {})})

    @property
    def store(self) -> Storage:
        return Storage.at(self.root / "store")

    def line(self) -> ToyRecipe:
        """numbers -> twice -> learn -> scaled (twice by the snapshot) -> verdict, and a side branch."""
        stages = {
            "numbers": self.stage(Numbers, "numbers", folder=str(self.root / "numbers")),
            "twice": self.stage(Times, "twice", numbers="numbers"),
            "learn": self.stage(Learn, "learn", numbers="twice"),
            "scaled": self.stage(Times, "scaled", numbers="twice", model="learn"),
            "verdict": self.stage(Judge, "verdict", numbers="scaled", model="learn"),
            "side": self.stage(Judge, "side", numbers="numbers"),
        }
        return ToyRecipe(stages)

    def run(self, recipe: ToyRecipe | None = None, **arguments: Any) -> list[str]:
        """Runs it in this process; the stages that ran, in order."""
        arguments = {"executor": "inline", "record": False, **arguments}
        return list(pipeline.run(recipe or self.line(), self.store, **arguments).ran)

    def log_from(self, start: int = 0) -> list[list[str]]:
        return noted(self.log)[start:]

    def files(self) -> dict[str, str]:
        """Digest of every shard and weight in the store."""
        return {
            name: hashlib.sha256(self.store.read(name)).hexdigest()
            for name in self.store.list()
            if name.endswith((".tar", ".parquet", "weights.json"))
        }
