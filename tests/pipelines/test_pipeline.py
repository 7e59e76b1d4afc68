"""What runs, what is kept and what is copied, seen in the logs of stages that do next to nothing."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cluster.mapping import InlineExecutor
from cluster.resources import Capacity, Resources
from cluster.storage import LocalStorage, Storage
from pipelines import pipeline
from pipelines.dataset import Dataset
from tests.pipelines.toys import Compare, Judge, Learn, Numbers, Times, ToyRecipe, World

ALL = ["numbers", "twice", "learn", "scaled", "verdict", "side"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.numbers(*range(25))
    return world


def test_a_run_makes_every_output_and_the_next_one_nothing(world: World):
    assert world.run() == ALL
    result = pipeline.run(world.line(), world.store, executor="inline", record=False)
    assert result.ran == ()
    assert [s.state for s in result.plan.stages] == ["done"] * 6
    scaled = Dataset.open(result.plan["scaled"].folder)  # pyright: ignore[reportArgumentType]
    weight = 5 * 2 * sum(range(25))
    found = {
        r.key: int(r.members["num"]) for s in scaled.shards for r in scaled.read(s.name, columns=("num",))
    }
    assert found == {f"{n:03d}": n * 2 * 2 * weight for n in range(25)}
    assert scaled.manifest["statistics"] == {"sum": 4 * weight * sum(range(25))}
    assert scaled.manifest["inputs"]["model"]["reference"] == "learn"
    assert scaled.manifest["counts"] == {"inputs": 25, "committed": 25, "rejected": 0, "reasons": {}}


CLOSURE: list[tuple[str, dict[str, dict[str, Any]], set[str]]] = [
    ("nothing", {}, set()),
    ("workers", {"twice": {"resources": Resources(workers=3)}}, set()),
    ("allowed rejects", {"twice": {"max_rejects": 0.5}}, set()),
    ("factor", {"twice": {"factor": 3}}, {"twice", "learn", "scaled", "verdict"}),
    ("factor behind", {"scaled": {"factor": 3}}, {"scaled", "verdict"}),
    ("rate", {"learn": {"rate": 2}}, {"learn", "scaled", "verdict"}),
    ("length", {"learn": {"images_seen": 7}}, {"learn", "scaled", "verdict"}),
    ("question", {"verdict": {"question": "why?"}}, {"verdict"}),
    ("side question", {"side": {"question": "why?"}}, {"side"}),
    ("no model", {"scaled": {"model": None}}, {"scaled", "verdict"}),
    ("other branch", {"side": {"numbers": "scaled"}}, {"side"}),
]


@pytest.mark.parametrize(("what", "changes", "expected"), CLOSURE, ids=[c[0] for c in CLOSURE])
def test_a_change_runs_what_depends_on_it(
    world: World, what: str, changes: dict[str, dict[str, Any]], expected: set[str]
):
    world.run()
    world.changes = changes
    assert set(world.run()) == expected
    assert world.run() == []


def test_equal_bytes_stop_a_change_from_spreading(world: World):
    """`factor` 1 with `scaled` gives other columns; a version of a stage that yields equal bytes does not."""
    world.run()

    class Times(sys.modules["tests.pipelines.toys"].Times):  # type: ignore[misc]
        version = 2

    recipe = world.line()
    recipe.stages["twice"] = Times(numbers="numbers", log=str(world.log))
    assert world.run(recipe) == ["twice"]


def test_a_touched_file_a_moved_store_and_reordered_stages_run_nothing(world: World):
    world.run()
    for path in (world.root / "numbers").iterdir():
        os.utime(path, (1, 1))
    (world.root / "store").rename(world.root / "moved")
    recipe = world.line()
    recipe = ToyRecipe(dict(reversed(recipe.stages.items())))
    result = pipeline.run(recipe, Storage.at(world.root / "moved"), executor="inline", record=False)
    assert result.ran == ()


def test_new_samples_are_made_and_old_ones_copied(world: World):
    world.run()
    before = len(world.log_from())
    world.numbers(*range(25, 35))
    events: list[dict[str, Any]] = []
    assert world.run(listeners=[events.append]) == ALL
    made = Counter(word[0] for word in world.log_from(before) if word[0] in ("numbers", "times"))
    # `scaled` depends on the snapshot, which learned from other numbers: nothing of it can be copied.
    assert made == {"numbers": 10, "times": 10 + 35}
    rejects = {e["stage"]: e for e in events if e["kind"] == "rejects"}
    assert (rejects["twice"]["copied"], rejects["twice"]["inputs"]) == (25, 35)
    assert rejects["scaled"]["copied"] == 0

    fresh = World(world.root / "fresh")
    fresh.numbers(*range(35))
    fresh.run()
    assert set(fresh.files().items()) <= set(world.files().items()), (
        "copied shards have the bytes of new ones"
    )


def test_a_shard_that_copies_everything_opens_nothing(world: World):
    world.run(until="twice")
    before = len(world.log_from())
    world.numbers(30)
    world.run(until="twice")
    assert [w for w in world.log_from(before) if w[0] in ("open", "times")][1:] == [["times", "030"]]


def test_more_training_goes_on_from_the_shorter(world: World):
    world.run(until="learn")
    before = len(world.log_from())
    world.changes = {"learn": {"images_seen": 8}}
    world.run(until="learn")
    assert world.log_from(before) == [["pass", "6"], ["pass", "7"], ["pass", "8"]]
    fresh = World(world.root / "fresh", world.changes)
    fresh.numbers(*range(25))
    fresh.run(until="learn")
    assert set(fresh.files().items()) <= set(world.files().items())


def test_until_runs_what_the_stage_needs(world: World):
    assert world.run(until="learn") == ["numbers", "twice", "learn"]


def test_force_makes_it_again_and_what_reads_it_stays(world: World):
    world.run()
    files, before = world.files(), len(world.log_from())
    assert world.run(force=["twice", "learn"]) == ["twice", "learn"]
    made = Counter(word[0] for word in world.log_from(before))
    assert made == {"open": 1, "times": 25, "pass": 5}
    assert world.files() == files
    assert world.run() == []


def test_a_failed_stage_says_so_in_one_line_and_keeps_its_shards(world: World):
    world.changes = {"twice": {"crash_at": "015"}}
    events: list[dict[str, Any]] = []
    with pytest.raises(pipeline.StageError) as failed:
        world.run(listeners=[events.append])
    assert str(failed.value).startswith("twice: RuntimeError: the machine is on fire (all of it in ")
    assert "\n" not in str(failed.value)
    assert [e["state"] for e in events if e["kind"] in ("stage_end", "run_end")] == [
        "done",
        "failed",
        "failed",
    ]
    before = len(world.log_from())
    world.changes = {}
    world.run()
    assert [w[1] for w in world.log_from(before) if w[0] == "times"][:10] == [
        f"{n:03d}" for n in range(10, 20)
    ]


def test_rejects_are_counted_and_too_many_stop(world: World):
    bad = {"bad": ("003", "004", "013")}
    world.changes = {"numbers": bad}
    with pytest.raises(pipeline.StageError, match=r"numbers: 2 of 25 samples were rejected \(2 bad_number\)"):
        world.run()
    world.changes = {"numbers": bad | {"max_rejects": 0.2}}
    events: list[dict[str, Any]] = []
    world.run(listeners=[events.append], until="twice")
    told = {e["stage"]: e for e in events if e["kind"] == "rejects"}
    # A row that the input rejected stays a row, and is not held against the stage that reads it.
    for stage, own in (("numbers", 3), ("twice", 0)):
        assert (told[stage]["inputs"], told[stage]["committed"], told[stage]["rejected"]) == (25, 22, 3)
        assert told[stage]["rejected_here"] == own


def test_damaged_shards_are_made_again(world: World):
    world.changes = {"twice": {"crash_at": "020"}}
    with pytest.raises(pipeline.StageError):
        world.run(until="twice")
    first, second = sorted((world.root / "store" / "times").rglob("*.tar"))
    whole = first.read_bytes(), second.read_bytes()
    first.write_bytes(whole[0][:512])
    second.unlink()
    world.changes = {}
    world.run(until="twice")
    assert (first.read_bytes(), second.read_bytes()) == whole


def test_too_little_room_is_said_before_anything_runs(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(world.store), "free", lambda self: 10_000_000)
    with pytest.raises(ValueError, match=r"0\.01 GB are free: make room"):
        world.run()
    assert not world.log.exists()


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    write, calls = LocalStorage._write, 0

    def full(self: LocalStorage, path: Path, source: Any) -> Path:
        nonlocal calls
        calls += 1
        if calls > 12 and ("numbers" in str(path) or "times" in str(path)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, path, source)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "_write", full)
        with pytest.raises(pipeline.StageError, match=r"^\w+: there is no room left in "):
            world.run()
    assert world.run(until="twice")
    fresh = World(world.root / "fresh")
    fresh.numbers(*range(25))
    fresh.run(until="twice")
    assert world.files() == fresh.files()


def test_events_tell_the_whole_run(world: World):
    events: list[dict[str, Any]] = []
    world.run(listeners=[events.append])
    assert events[0]["kind"] == "plan"
    assert [s["state"] for s in events[0]["stages"]] == ["run", *["after"] * 5]
    assert (events[-1]["kind"], events[-1]["state"]) == ("run_end", "done")
    assert all({"kind", "stage", "time"} <= event.keys() for event in events)
    twice = [e for e in events if e["stage"] == "twice"]
    assert [e["kind"] for e in twice] == ["stage_start", *["progress"] * 4, "rejects", "stage_end"]
    assert [e["done"] for e in twice if e["kind"] == "progress"] == [0, 10, 20, 25]
    weights = [e["values"]["weight"] for e in events if e["kind"] == "metrics"]
    assert weights == [600 * n for n in range(1, 6)]
    journal = world.store.folder("runs").folder("toy")
    kinds = [json.loads(line)["kind"] for line in journal.read("events.jsonl").splitlines()]
    assert kinds.count("stage_end") == 6


class Threads(InlineExecutor):
    """Two CPUs of this process, for several stages at a time."""

    parallel = True

    def capacity(self) -> Capacity:
        return Capacity(cpus=2.0)


@dataclass(frozen=True, kw_only=True)
class Meet(Judge):
    """Ends only if the other one runs at the same time."""

    barrier: ClassVar[threading.Barrier]
    fails: bool = False

    def run(self, session: Any) -> dict[str, Any]:
        self.barrier.wait()
        if self.fails:
            raise ValueError("no")
        return super().run(session)


def meeting(world: World, cpus: float, *, fails: bool = False) -> ToyRecipe:
    resources = Resources(cpus=cpus)
    Meet.barrier = threading.Barrier(2, timeout=3.0)
    stages: dict[str, Any] = {"numbers": world.line().stages["numbers"]}
    for name in ("one", "two"):
        bad = fails and name == "one"
        stages[name] = Meet(numbers="numbers", question=name, resources=resources, fails=bad)
    return ToyRecipe(stages)


def test_stages_run_side_by_side_when_their_requests_fit(world: World):
    assert set(world.run(meeting(world, 1.0), executor=Threads())) == {"numbers", "one", "two"}


def test_a_stage_waits_for_its_whole_request(world: World):
    with pytest.raises(pipeline.StageError, match="BrokenBarrierError"):
        world.run(meeting(world, 2.0), executor=Threads())


def test_what_runs_beside_a_failure_is_finished(world: World):
    with pytest.raises(pipeline.StageError, match="one: no"):
        world.run(meeting(world, 1.0, fails=True), executor=Threads())
    assert pipeline.plan(meeting(world, 1.0), world.store)["two"].state == "done"


def test_the_plan_says_why(world: World):
    world.run()
    world.changes = {"twice": {"factor": 3}}
    plan = pipeline.plan(world.line(), world.store)
    assert {s.name: (s.state, s.reason) for s in plan.stages} == {
        "numbers": ("done", ""),
        "twice": ("run", "changed: factor 2 -> 3"),
        "learn": ("after", "after twice"),
        "scaled": ("after", "after twice and learn"),
        "verdict": ("after", "after scaled and learn"),
        "side": ("done", ""),
    }


def test_a_recipe_that_does_not_fit_together_is_told_before_anything_runs(world: World):
    numbers = Numbers(folder=str(world.root / "numbers"))
    with pytest.raises(ValueError, match="no stage 'nubmers'; did you mean numbers?"):
        world.run(ToyRecipe({"numbers": numbers, "twice": Times(numbers="nubmers")}))
    with pytest.raises(ValueError, match=r"takes a dataset; learn \(learn\) makes a snapshot"):
        world.run(
            ToyRecipe({"numbers": numbers, "learn": Learn(numbers="numbers"), "j": Judge(numbers="learn")})
        )
    with pytest.raises(ValueError, match="wait for one another"):
        world.run(ToyRecipe({"a": Times(numbers="b"), "b": Times(numbers="a")}))
    with pytest.raises(ValueError, match="no finished dataset at"):
        world.run(ToyRecipe({"j": Judge(numbers=str(world.root / "nowhere"))}))
    with pytest.raises(ValueError, match="no stage 'twise' in toy; did you mean twice?"):
        world.run(until="twise")


def compared(world: World, *several: str, **fields: Any) -> ToyRecipe:
    stages = {name: world.line().stages[name] for name in ("numbers", "twice")}
    return ToyRecipe({**stages, "compare": Compare(several=several, **fields)})


def test_a_field_may_name_several_inputs_and_their_order_counts(world: World):
    world.numbers(10)
    (world.root / "numbers" / "000.txt").write_text("7")
    assert world.run(compared(world, "numbers", "twice")) == ["numbers", "twice", "compare"]
    planned = pipeline.plan(compared(world, "numbers", "twice"), world.store)["compare"]
    manifest = json.loads(planned.folder.read("manifest.json"))  # pyright: ignore[reportOptionalMemberAccess]
    assert manifest["report"] == {"first": [7, 14]}
    assert {n: i["reference"] for n, i in manifest["inputs"].items()} == {
        "several.0": "numbers",
        "several.1": "twice",
    }
    assert world.run(compared(world, "numbers", "twice")) == []
    assert world.run(compared(world, "twice", "numbers")) == ["compare"]
    assert world.run(compared(world, "twice")) == ["compare"]
    assert world.run(compared(world)) == ["compare"]
    # the same bytes by another way are the same inputs
    url = pipeline.plan(world.line(), world.store)["numbers"].folder.url  # pyright: ignore[reportOptionalMemberAccess]
    assert world.run(compared(world, url, "twice")) == []
    with pytest.raises(
        ValueError, match=r"compare\.several\.1: there is no stage 'twise'; did you mean twice?"
    ):
        world.run(compared(world, "numbers", "twise"))


def test_a_field_that_came_later_counts_once_it_is_set(world: World):
    world.run(compared(world, "numbers"))
    now = pipeline.plan(compared(world, "numbers"), world.store)["compare"]
    assert now.identity is not None
    assert "late" not in now.identity.meaning
    assert world.run(compared(world, "numbers", late=0)) == []
    assert world.run(compared(world, "numbers", late=1)) == ["compare"]


def test_an_output_of_another_recipe_is_an_input_by_its_path(world: World):
    world.run(until="twice")
    folder = pipeline.plan(world.line(), world.store)["twice"].folder
    recipe = ToyRecipe({"j": Judge(numbers=folder.url)}, name="other")  # pyright: ignore[reportOptionalMemberAccess]
    assert world.run(recipe) == ["j"]


def test_a_finished_run_imports_nothing_heavy(world: World):
    world.run()
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.pipelines.toys import World\n"
        f"world = World(Path({str(world.root)!r}))\n"
        "assert world.run(executor='ray', record=True) == []\n"
        "heavy = {'torch', 'ray', 'mlflow', 'webdataset', 'transformers', 'open_clip'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
