"""A gate from start to end: both models draw and are measured, the rule decides, the alias moves last."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines import pictures
from pipelines.registry import CHAMPION, Registry
from pipelines.scoring.gate import Decision, Figures, Loss, Rule, decide, plain, thousand, told, values
from pipelines.scoring.jobs import FEWEST, cut, measured, opened, places, ranked
from pipelines.scoring.measure import CONDITIONED, Job, Measure, Place, held_out
from pipelines.versions import who

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from pipelines.dataset import Dataset
    from pipelines.models import SnapshotFolder
    from pipelines.stage import Session
    from pipelines.stages.promote import Promote
    from pipelines.versions import Version

SPLIT = "validation"
"""What may decide; the test split is for the scores of what was decided."""
Asked = tuple[str | None, str | None]


class Promotion:
    """One run of the stage `promote`."""

    def __init__(self, stage: Promote, session: Session) -> None:
        self.stage, self.session = stage, session
        inputs = session.inputs
        self.images: Dataset = inputs["images"]
        self.candidate: SnapshotFolder = inputs["candidate"]
        self.champion: SnapshotFolder | None = inputs.get("champion")
        if self.candidate.record.get("task") != "denoiser":
            raise ValueError("promote compares models that draw: name a train stage as `candidate`.")

    def run(self) -> dict[str, Any]:
        """Measures, decides, moves the alias; returns what the report is to say.

        Raises:
            ValueError: too few validation images, or MLflow cannot be reached.
        """

        registry = Registry.of(self._store())
        registry.names()  # an MLflow that is away is told now, not after the drawing
        figures, drawings, words = self._figures()
        version = self._registered(registry)
        rule = Rule(min_gain=self.stage.min_gain, max_loss=self.stage.max_loss)
        before = self._before(registry, version)
        decision = decide(figures, rule, champion=f"version {before.number}" if before else "the champion")
        files = self._draw(drawings, words)
        said = self._say(figures, decision, version, before)
        self._tag(registry, version, figures, decision, files)
        if decision.promoted:
            registry.promote(version, by=who("promote"), why=decision.why)
        self.session.event({"kind": "metrics", "step": 0, "values": said["metrics"]})
        self.session.event({"kind": "note", "text": said["says"]})
        return said

    def _figures(self) -> tuple[Figures, list[np.ndarray], list[str]]:
        """What is measured, the first images that each model drew, and what they were asked for."""
        import torch

        from diffusion.metrics.kernel import kernel_distance
        from diffusion.metrics.paired import pair_estimate, pair_matrix

        stage = self.stage
        real = places(self.images, (SPLIT,), SPLIT, seed=stage.seed, most=stage.count)
        if len(real) < FEWEST:
            raise ValueError(
                f"promote chooses by {FEWEST} validation images or more and there are {len(real)}: set "
                "split.validation in ingest (and train again), for the test split must not choose."
            )
        asked = self._asked(real)
        samples = self._loss_places()
        shared = {"real": [Job(number=0, what="images", dataset="images", places=tuple(real[r]))
                           for r in cut(len(real), stage.micro_batch)]}  # fmt: skip
        shared["untrained"] = [Job(number=0, what="untrained", indices=tuple(range(stage.untrained)))]
        own = {
            "drawn": [self._drawing(asked, run, "drawn") for run in cut(len(asked), stage.micro_batch)],
            "drawings": [self._drawing(asked, slice(0, min(stage.shown, len(asked))), "drawings")],
            "losses": [
                Job(number=0, what="losses", places=tuple(samples[r]), indices=tuple(range(r.start, r.stop)))
                for r in cut(len(samples), stage.micro_batch)
            ],
        }
        rest: dict[str, list[Job]] = {}
        if self.champion is not None:
            rest = own if alike(self.candidate, self.champion) else {**own, "losses": []}
            if samples and not rest["losses"]:
                text = "Held-out losses are not compared: the champion reads other latents, texts or classes."
                self.session.event({"kind": "note", "text": text})
        after = sum(len(job) for of in rest.values() for job in of)
        found = measured(self.session, self._measure(self.candidate), {**shared, **own}, after=after)
        held = None
        if self.champion is not None:
            before = sum(len(job) for of in (shared | own).values() for job in of)
            held = measured(self.session, self._measure(self.champion), rest, before=before)

        features = torch.from_numpy(found["real"])
        bootstrap: dict[str, int] = {"resamples": stage.bootstrap, "seed": stage.seed}

        def pairs(drawn: np.ndarray) -> Tensor:
            each = torch.from_numpy(drawn).unflatten(0, (-1, len(real))).transpose(0, 1)
            return 1000 * pair_matrix(features, each)

        own_pairs = pairs(found["drawn"])
        held_pairs = pairs(held["drawn"]) if held is not None else None
        untrained = kernel_distance(features, torch.from_numpy(found["untrained"]), **bootstrap)
        figures = Figures(
            name=f"KID-{stage.features.label}",
            candidate=pair_estimate(own_pairs, **bootstrap),
            untrained=thousand(untrained),
            champion=pair_estimate(held_pairs, **bootstrap) if held_pairs is not None else None,
            gain=pair_estimate(held_pairs - own_pairs, **bootstrap) if held_pairs is not None else None,
            loss=self._loss(found.get("losses"), held.get("losses") if held is not None else None),
            finite=_finite(found["drawn"]) and _finite(found.get("losses")),
        )
        drawings = [found["drawings"], *([held["drawings"]] if held is not None else [])]
        return figures, drawings, [text or label or "" for text, label in asked[: len(found["drawings"])]]

    def _measure(self, model: SnapshotFolder) -> Measure:
        stage = self.stage
        return Measure(
            features=stage.features,
            datasets=opened(self.session.inputs, ("images", "latents", "text")),
            model=model.storage.url,
            micro_batch=stage.micro_batch,
            draws=stage.draws,
            seed=stage.seed,
            sampler=stage.sampler,
            guidance=stage.guidance,
        )

    def _asked(self, real: Sequence[Place]) -> list[Asked]:
        """Caption and class of each image to draw: those of the validation images, in turn, equally often."""
        import json

        from diffusion import randomness
        from pipelines.training.tasks.texts import pick

        captions, names = self.session.inputs.get("captions"), self.images.classes
        asked: list[Asked] = []
        for n in range(self.stage.count // len(real) * len(real)):
            shard, row = real[n % len(real)]
            text = label = None
            if captions is not None and captions.index(shard).member(row, "captions.json"):
                choices = json.loads(captions.read_member(shard, row, "captions.json"))
                u = randomness.generator(self.stage.seed, n, "promote caption").random()
                text = pick([(c["text"], float(c["weight"])) for c in choices], u)
            if names and self.images.index(shard).member(row, "cls"):
                label = names[int(self.images.read_member(shard, row, "cls"))]
            asked.append((text, label))
        return asked

    def _drawing(self, asked: Sequence[Asked], run: slice, what: Any) -> Job:
        return Job(number=0, what=what, indices=tuple(range(run.start, run.stop)), asked=tuple(asked[run]))

    def _loss_places(self) -> list[Place]:
        inputs = self.session.inputs
        if inputs.get("latents") is None or not self.stage.losses:
            return []
        reads, text = self.candidate.record.get("text"), inputs.get("text")
        if reads and (text is None or encoder(text.manifest["statistics"]) != encoder(self.candidate.record)):
            told = "`text` is not what the candidate was trained with: the held-out losses are not compared."
            self.session.event({"kind": "note", "text": told})
            return []
        datasets = {name: inputs[name] for name in CONDITIONED if inputs.get(name) is not None}
        entries = [place for rows in held_out(datasets, (SPLIT,)) for place in rows.places()]
        return ranked(entries, seed=self.stage.seed, most=self.stage.losses)

    def _loss(self, candidate: np.ndarray | None, champion: np.ndarray | None) -> Loss | None:
        from diffusion.metrics.estimate import Estimate
        from pipelines.scoring.judgement import Judge

        if candidate is None or champion is None:
            return None
        judge = Judge(bootstrap=self.stage.bootstrap, seed=self.stage.seed)
        said = judge.paired(champion[:, 0], candidate[:, 0])
        stderr = float((candidate - champion).std() / len(candidate) ** 0.5)
        rise = Estimate(value=said["difference"], stderr=stderr, low=said["low"], high=said["high"])
        return Loss(candidate=said["shuffled"], champion=said["true"], rise=rise)

    def _store(self) -> Any:
        """The store that the report goes to: its registry is the one whose alias moves."""
        from cluster.storage import Storage

        return Storage.at(self.session.output.url.rsplit("/", 2)[0])

    def _registered(self, registry: Registry) -> Version:
        folder = self.candidate
        return registry.register(self.stage.model, url=folder.storage.url, manifest=folder.manifest)

    def _before(self, registry: Registry, version: Version) -> Version | None:
        """The version that the candidate was held to.

        Raises:
            ValueError: the champion is another one by now, and the comparison says nothing of it.
        """
        from pipelines.models import SnapshotFolder

        if self.stage.champion is not None:
            return registry.find(self.stage.model, self.champion.digest()) if self.champion else None
        rival = registry.rival(self.stage.model, self.candidate.digest())
        held_to = self.champion.digest() if self.champion is not None else None
        now = None if rival is None else rival.digest or SnapshotFolder.open(registry.place(rival)).digest()
        if now != held_to:
            raise ValueError(f"The champion of {self.stage.model} changed meanwhile: run again.")
        return rival

    def _draw(self, drawings: Sequence[np.ndarray], words: Sequence[str]) -> dict[str, str]:
        """Writes the pictures: both models' first images, and the candidate's alone for the registry."""
        from PIL import Image

        rows = [[Image.fromarray(image) for image in images] for images in drawings]
        side = rows[0][0].width
        labels = ["candidate", "champion"][: len(rows)]
        both = pictures.grid(rows, row_labels=labels, column_labels=words, cell=max(96, side))
        self.session.output.replace("drawings.png", both)
        self.session.output.replace("candidate.png", pictures.grid([rows[0][:8]], cell=side))
        self.session.event({"kind": "picture", "name": "the same noise", "step": 0, "png": both})
        return {"picture": f"{self.session.output.url}/candidate.png"}

    def _say(
        self, figures: Figures, decision: Decision, version: Version, before: Version | None
    ) -> dict[str, Any]:

        name = self.stage.model
        verdict = "is champion now" if decision.promoted else "is not promoted"
        if CHAMPION in version.aliases and not decision.promoted:  # made so by hand, or by another rule
            verdict = "stays champion, though this would not make it so"
        says = f"{name}: version {version.number} {verdict}: {decision.why}."
        loss = figures.loss
        rows = [["candidate", f"version {version.number}", told(figures.candidate),
                 f"{loss.candidate:.4f}" if loss else ""]]  # fmt: skip
        if figures.champion is not None:
            place = f"version {before.number}" if before else "given"
            rows.append(["champion", place, told(figures.champion), f"{loss.champion:.4f}" if loss else ""])
        if figures.gain is not None:
            rise = f"{-loss.rise.value:.4f} ({-loss.rise.high:.4f} to {-loss.rise.low:.4f})" if loss else ""
            rows.append(["gain, paired", "", told(figures.gain), rise])
        rows.append(["untrained network", "", told(figures.untrained), ""])
        return {
            "model": name,
            "version": version.number,
            "before": before.number if before else None,
            "promoted": decision.promoted,
            "says": says,
            "rule": {"min_gain": self.stage.min_gain, "max_loss": self.stage.max_loss},
            "figures": plain(dataclasses.asdict(figures)),
            "metrics": values(figures),
            "table": {
                "title": f"The gate of {name}",
                "columns": ["", "", f"{figures.name} × 1000", "held-out loss"],
                "rows": rows,
                "says": says,
            },
        }

    def _tag(
        self,
        registry: Registry,
        version: Version,
        figures: Figures,
        decision: Decision,
        files: dict[str, str],
    ) -> None:
        """What the gate found, on the version: whoever lists the registry sees it without a run."""
        scores = {key: f"{value:.6g}" for key, value in values(figures).items()}
        registry.note(
            version,
            kid_name=figures.name,
            gate="promoted" if decision.promoted else "not promoted",
            gate_why=decision.why,
            **scores,
            **files,
        )


def encoder(record: Mapping[str, Any]) -> str | None:
    """Digest of the text encoder that a dataset or a model names."""
    return (record.get("text") or {}).get("digest")


def alike(a: SnapshotFolder, b: SnapshotFolder) -> bool:
    """Whether two models can be given the same latents and conditions, so that their losses are in the same
    units: one autoencoder, one whitening (within 1 %), one encoder of texts, one list of classes."""
    file = "autoencoder.safetensors"
    if a.record["files"].get(file) != b.record["files"].get(file):
        return False
    if any(x and y and x != y for x, y in ((encoder(a.record), encoder(b.record)), (a.classes, b.classes))):
        return False
    of_a, of_b = (list(map(float, s.record["statistics"]["std"])) for s in (a, b))
    return len(of_a) == len(of_b) and all(abs(x - y) <= 0.01 * y for x, y in zip(of_a, of_b, strict=True))


def _finite(array: np.ndarray | None) -> bool:
    import numpy as np

    return array is None or bool(np.isfinite(array).all())
