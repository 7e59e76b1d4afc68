"""The verdict from start to end: which classifiers are trained, what they answer, and what is written of it.

Workers train (`pipelines.verdict.trial`), a classifier each; this process chooses and compares. A finished
classifier's answers are kept beside the checkpoints, so that a killed run repeats none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.storage import Storage
from pipelines.dataset import Dataset
from pipelines.shards import canonical
from pipelines.stages.judge import SEEDS, Judge
from pipelines.verdict.arms import ARMS, Arm
from pipelines.verdict.examples import Rows, labelled
from pipelines.verdict.ruling import macro, ruling

if TYPE_CHECKING:
    from pipelines.stage import Session
    from pipelines.verdict.examples import Examples


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One classifier: small enough to send to any worker."""

    arm: Arm
    lr: float
    weight: float
    """Factor of the generated images' weights."""
    number: int
    choosing: bool = False
    """Answers the validation split; else the test split."""

    @property
    def file(self) -> str:
        """Where its answers are kept."""
        kind = "choosing" if self.choosing else "judging"
        return f"{self.arm.name}-{self.lr:g}-{self.weight:g}-{kind}-{self.number:03d}.json"

    def __str__(self) -> str:
        return f"{self.arm.label}, seed {self.number}"


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a classifier said."""

    trial: Trial
    answers: list[int]
    """The class it gave to each image of its split."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """Opens the images in a worker; all that it is sent."""

    stage: Judge
    augmented: str
    generated: str | None
    kept: Storage

    def __call__(self) -> Callable[[Trial], Answered]:
        return _Opened(self).answered


class _Opened:
    """A worker with its images, decoded once for all its classifiers."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self.augmented = Dataset.open(Storage.at(course.augmented))
        generated = course.generated and Dataset.open(Storage.at(course.generated))
        self.sources = {
            "train": (self.augmented, labelled(self.augmented, "train")),
            "validation": (self.augmented, labelled(self.augmented, "validation")),
            "test": (self.augmented, labelled(self.augmented, "test")),
        }
        if generated:
            self.sources["generated"] = (generated, labelled(generated, "train", generated=True))
        self.known: dict[str, Examples] = {}

    def examples(self, name: str) -> Examples:
        from pipelines.verdict.examples import decoded

        if name not in self.known:
            dataset, rows = self.sources[name]
            self.known[name] = decoded(dataset, rows, size=self.course.stage.size)
        return self.known[name]

    def answered(self, trial: Trial) -> Answered:
        import torch

        from pipelines.verdict.trial import answers, trained

        stage = self.course.stage
        device = "cuda" if torch.cuda.is_available() else "cpu"
        whole = "train" if trial.arm.real or "generated" not in self.sources else "generated"
        _, rows = self.sources[whole]
        chosen = np.flatnonzero((rows.generated & trial.arm.generated) | (~rows.generated & trial.arm.real))
        examples = self.examples(whole).of(chosen, np.where(rows.generated, trial.weight, 1.0)[chosen])
        seed = (2 * stage.seed + trial.choosing) * SEEDS + trial.number
        module = trained(
            stage,
            trial.arm,
            examples,
            classes=len(self.augmented.classes),
            seed=seed,
            lr=trial.lr,
            device=device,
        )
        asked = self.examples("validation" if trial.choosing else "test")
        found = answers(module, asked, micro_batch=stage.micro_batch).tolist()
        self.course.kept.replace(trial.file, canonical(found))
        return Answered(trial=trial, answers=found)


class Trials:
    """One run of the stage `judge`."""

    def __init__(self, stage: Judge, session: Session) -> None:
        self.stage, self.session = stage, session
        self.augmented: Dataset = session.inputs["augmented"]
        self.generated: Dataset | None = session.inputs["generated"]
        self.classes = self.augmented.classes
        self.train = labelled(self.augmented, "train")
        self.validation = labelled(self.augmented, "validation")
        self.test = labelled(self.augmented, "test")
        self.only = labelled(self.generated, "train", generated=True) if self.generated else self.train
        self._check()
        self.done = self.total = 0

    def run(self) -> dict[str, Any]:
        """Writes verdict.json and verdict.png; the manifest's report, with its table."""
        from pipelines.verdict import telling
        from pipelines.verdict.chart import chart

        stage = self.stage
        choices = {arm.name: self._choices(arm) for arm in ARMS}
        trials = [
            Trial(arm=arm, lr=lr, weight=weight, number=n, choosing=True)
            for arm in ARMS
            for lr, weight in choices[arm.name]
            for n in range(stage.choosing_seeds)
            if len(choices[arm.name]) > 1
        ]
        self.total = len(trials) + stage.seeds * len(ARMS)
        chosen = self._chosen(choices, self._answers(trials))
        judging = [
            Trial(arm=arm, lr=lr, weight=weight, number=n)
            # seed by seed, so that what is there early compares all arms
            for n in range(stage.seeds)
            for arm, (lr, weight) in ((arm, chosen[arm.name]) for arm in ARMS)
        ]
        answers = self._answers(judging)
        by_arm = {arm.name: np.array([answers[t.file] for t in judging if t.arm is arm]) for arm in ARMS}
        counts = self._counts()
        real = counts["real"]["real"]
        order = sorted(range(len(self.classes)), key=lambda c: (real[c], c))
        said = ruling(
            by_arm,
            self.test.labels,
            classes=self.classes,
            rare=order[: max(1, len(order) // 3)],
            bootstrap=stage.bootstrap,
            seed=stage.seed,
        )
        for arm in ARMS:
            lr, weight = chosen[arm.name]
            images = {source: sum(of) for source, of in counts[arm.name].items()}
            said["arms"][arm.name] |= {"images": images, "lr": lr, "weight": weight}
        for n, name in enumerate(self.classes):
            if name in said["per_class"]:
                said["per_class"][name] |= {source: of[n] for source, of in counts["augmented"].items()}
        said |= {"images_seen": stage.images_seen, "batch": stage.batch, "format": 1}
        png = chart(said)
        self.session.output.replace("verdict.png", png)
        self.session.output.replace(
            "verdict.json", json.dumps(said, indent=1, sort_keys=True).encode() + b"\n"
        )
        self.session.event({"kind": "picture", "name": "gain of each class", "step": 0, "png": png})
        self.session.event({"kind": "metrics", "step": 0, "values": telling.values(said)})
        self.session.event({"kind": "note", "text": telling.sentence(said)})
        return {"verdict": said, "table": telling.table(said)}

    def _check(self) -> None:
        where = self.augmented.storage.url
        if not self.classes:
            raise ValueError(f"judge: {where} has no classes; judge a dataset whose source gives labels.")
        if not len(self.test):
            raise ValueError(
                f"judge: {where} has no labelled image in the test split: set ingest's split.test."
            )
        if self.test.generated.any() or self.validation.generated.any():
            raise ValueError(f"judge: {where} holds generated images to be judged on; they belong in train.")
        if not self.train.generated.any():
            raise ValueError(
                "judge: there is no generated image in `augmented`; name an `augment` stage that adds some "
                "(its `target`, and `count` in generate)."
            )
        real = self.train.counts(len(self.classes), generated=False)
        empty = [name for name, count in zip(self.classes, real, strict=True) if not count]
        if empty:
            raise ValueError(
                f"judge: there is no real training image of {', '.join(empty[:3])}"
                f"{' and others' * (len(empty) > 3)}, so real images alone cannot be compared with."
            )
        if self.generated and self.classes[: len(self.generated.classes)] != self.generated.classes:
            raise ValueError("judge: `generated` numbers its classes differently from `augmented`.")
        choice = max(len(self.stage.lrs), len(self.stage.weights)) > 1
        if choice and not len(self.validation):
            raise ValueError(
                "judge: `lrs` and `weights` are chosen on the validation split, and there is none: set "
                "ingest's split.validation (or long_tail.validation), or give one of each."
            )

    def _choices(self, arm: Arm) -> list[tuple[float, float]]:
        """Learning rate and factor of the weights, which matters beside real images alone."""
        weighed = self.stage.weights if arm.real and arm.generated else ()
        return [(lr, w) for lr in self.stage.lrs or (self.stage.optimization.lr,) for w in weighed or (1.0,)]

    def _chosen(
        self, choices: dict[str, list[tuple[float, float]]], answers: dict[str, list[int]]
    ) -> dict[str, tuple[float, float]]:
        """Of each arm the choice with the best macro accuracy on validation images, the first of equals."""
        chosen = {}
        for arm in ARMS:
            scores = {}
            for lr, weight in choices[arm.name] if len(choices[arm.name]) > 1 else ():
                files = [
                    Trial(arm=arm, lr=lr, weight=weight, number=n, choosing=True).file
                    for n in range(self.stage.choosing_seeds)
                ]
                right = np.array([answers[file] for file in files]) == self.validation.labels
                scores[lr, weight] = float(macro(right, self.validation.labels).mean())
            chosen[arm.name] = max(scores, key=lambda of: scores[of]) if scores else choices[arm.name][0]
        return chosen

    def _answers(self, trials: Sequence[Trial]) -> dict[str, list[int]]:
        """By the trials' files; kept ones are read, the others are made."""
        found: dict[str, list[int]] = {}
        for trial in trials:
            kept = self._kept(trial)
            if kept is not None:
                found[trial.file] = kept
        self._tell(len(found))
        course = Course(
            stage=self.stage,
            augmented=self.augmented.storage.url,
            generated=self.generated.storage.url if self.generated else None,
            kept=self.session.checkpoints,
        )
        missing = [trial for trial in trials if trial.file not in found]
        for answered in self.session.map(course, missing) if missing else ():
            found[answered.trial.file] = answered.answers
            self._tell(1)
        return found

    def _kept(self, trial: Trial) -> list[int] | None:
        if not self.session.checkpoints.exists(trial.file):
            return None
        found = json.loads(self.session.checkpoints.read(trial.file))
        wanted = self.validation if trial.choosing else self.test
        return found if len(found) == len(wanted) else None

    def _tell(self, count: int) -> None:
        self.done += count
        done, total = (n * self.stage.images_seen for n in (self.done, self.total))
        self.session.event({"kind": "progress", "done": done, "total": total, "unit": "images"})

    def _counts(self) -> dict[str, dict[str, list[int]]]:
        """Arm -> real and generated training images of each class."""

        def of(rows: Rows, arm: Arm) -> Iterable[tuple[str, list[int]]]:
            for source, made, wanted in (("real", False, arm.real), ("generated", True, arm.generated)):
                counts = rows.counts(len(self.classes), generated=made)
                yield source, counts if wanted else [0] * len(counts)

        return {arm.name: dict(of(self.train if arm.real else self.only, arm)) for arm in ARMS}
