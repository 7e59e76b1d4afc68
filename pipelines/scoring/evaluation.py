"""An evaluation from start to end: what is measured, on which images, and what is written of it.

Workers measure (`pipelines.scoring.measure`), this process compares (`pipelines.scoring.judgement`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pipelines import pictures
from pipelines.scoring.jobs import FEWEST, cut, measured, opened, places, ranked
from pipelines.scoring.judgement import Copies, Judge
from pipelines.scoring.measure import CONDITIONED, HELD_OUT, Job, Measure, Place, held_out

if TYPE_CHECKING:
    import numpy as np

    from pipelines.dataset import Dataset
    from pipelines.stage import Session
    from pipelines.stages.evaluate import Evaluate


class Evaluation:
    """One run of the stage `evaluate`."""

    def __init__(self, stage: Evaluate, session: Session) -> None:
        self.stage, self.session = stage, session
        inputs = session.inputs
        self.images: Dataset = inputs["images"]
        self.generated: Dataset | None = inputs["generated"]
        self.model = inputs["model"]
        self.record: dict[str, Any] = self.model.record if self.model is not None else {}
        if self.record.get("upscaling"):
            raise ValueError(f"{stage.model} is an upscaler: evaluate_upscaler scores those.")
        self.task = self.record.get("task")
        self.judge = Judge(bootstrap=stage.bootstrap, seed=stage.seed)
        self.scores: dict[str, Any] = {
            "format": 1,
            "name": f"KID-{stage.features.label}",
            "frechet_name": f"FD-{stage.features.label}",
            "extractor": stage.features.kind,
            "extractor_digest": stage.features.identity(),
            "seed": stage.seed,
            "bootstrap": stage.bootstrap,
            "rows": [],
            "pictures": {},
        }

    def run(self) -> dict[str, Any]:
        """Writes metrics.json and the pictures; returns the scores.

        Raises:
            ValueError: too few images to judge by.
        """
        count, seed = self.stage.count, self.stage.seed
        keep = self.session.inputs.get("keep")
        most = max(self.stage.references, count)
        known = places(self.images, ("train",), "train", seed=seed, most=most, keep=keep)
        training = known[:count]
        real = places(self.images, HELD_OUT, "held_out", seed=seed, most=count, keep=keep)
        generated: list[Place] = []
        if self.generated is not None:
            generated = places(self.generated, None, "generated", seed=seed, most=count)
        if len(training) < 2 * FEWEST:
            raise ValueError(f"evaluate needs {2 * FEWEST} training images and there are {len(training)}.")
        if self.generated is not None and len(generated) < FEWEST:
            raise ValueError(f"evaluate needs {FEWEST} generated images and there are {len(generated)}.")
        real = real if len(real) >= FEWEST else []
        reconstructed = (real or training[: self.stage.untrained]) if self.model is not None else []
        pairs = self._pairs()

        jobs = {
            "training": self._jobs("images", "images", training),
            "generated": self._jobs("images", "generated", generated),
            "real": self._jobs("images", "images", real),
            "reconstructions": self._jobs("reconstructions", "images", reconstructed),
            "untrained": [Job(number=0, what="untrained", indices=tuple(range(self.stage.untrained)))]
            if self.task == "denoiser" and self.stage.untrained >= FEWEST
            else [],
            "losses": self._loss_jobs(pairs),
        }
        if generated:
            jobs |= {
                "known_thumbnails": self._jobs("thumbnails", "images", known),
                "real_thumbnails": self._jobs("thumbnails", "images", real),
                "generated_thumbnails": self._jobs("thumbnails", "generated", generated),
            }
        found = self._measure(jobs)
        self._rows(found)
        if generated:
            self._neighbours(found, known, generated)
        if "losses" in found:
            losses = found["losses"]
            self.scores["conditioning"] = {
                **self.judge.paired(losses[:, 0], losses[:, 1]),
                "by": "captions" if self.record.get("text") else "classes",
                "draws": self.stage.draws,
            }
        return self._write()

    def _jobs(self, what: Any, dataset: str, chosen: Sequence[Place]) -> list[Job]:
        return [
            Job(
                number=0,
                what=what,
                dataset=dataset,
                places=tuple(chosen[run]),
                decoded=what == "thumbnails" and dataset == "images" and self.model is not None,
            )
            for run in cut(len(chosen), self.stage.micro_batch)
        ]

    def _pairs(self) -> list[tuple[Place, Place]]:
        """Held-out samples, each with another one whose conditions it is given."""
        inputs = self.session.inputs
        if self.task != "denoiser" or inputs["latents"] is None or not self.stage.losses:
            return []
        text, classes = self.record.get("text"), self.record.get("classes")
        if text and inputs["text"] is None:
            note = "evaluate has no `text`: whether the captions matter is not measured."
            self.session.event({"kind": "note", "text": note})
            return []
        if not text and not classes:
            return []
        datasets = {name: inputs[name] for name in CONDITIONED if inputs[name] is not None}
        entries = [place for rows in held_out(datasets) for place in rows.places()]
        chosen = ranked(entries, seed=self.stage.seed, most=self.stage.losses)
        if len(chosen) < FEWEST:
            return []
        # a shift in random order: everyone has somebody else's, and every caption is used once
        return list(zip(chosen, [*chosen[1:], chosen[0]], strict=True))

    def _loss_jobs(self, pairs: Sequence[tuple[Place, Place]]) -> list[Job]:
        return [
            Job(
                number=0,
                what="losses",
                places=tuple(place for place, _ in pairs[run]),
                partners=tuple(partner for _, partner in pairs[run]),
                indices=tuple(range(run.start, run.stop)),
            )
            for run in cut(len(pairs), self.stage.micro_batch)
        ]

    def _measure(self, jobs: dict[str, list[Job]]) -> dict[str, np.ndarray]:
        measure = Measure(
            features=self.stage.features,
            datasets=opened(self.session.inputs, ("images", "generated", "latents", "text")),
            model=self.model.storage.url if self.model is not None else None,
            micro_batch=self.stage.micro_batch,
            draws=self.stage.draws,
            seed=self.stage.seed,
        )
        return measured(self.session, measure, jobs)

    def _rows(self, measured: dict[str, np.ndarray]) -> None:
        training = measured["training"]
        half = len(training) // 2
        row = self.judge.row
        rows = self.scores["rows"]
        if "untrained" in measured:
            rows.append(row("untrained", "untrained network", measured["untrained"], training))
        if "generated" in measured:
            found = measured["generated"]
            rows.append(
                row("generated", "generated", found, training, role="main", coverage=True, frechet=True)
            )
        if "reconstructions" in measured:
            rows.append(row("reconstructions", "reconstructions", measured["reconstructions"], training))
        # two floors: held-out images are other motifs, halves of the training images are as like as can be
        if "real" in measured:
            found = measured["real"]
            rows.append(
                row(
                    "real", "held-out real images", found, training, role="floor", coverage=True, frechet=True
                )
            )
        role = "plain" if "real" in measured else "floor"
        rows.append(row("halves", "half of the real images", training[:half], training[half:], role=role))

    def _neighbours(
        self, measured: dict[str, np.ndarray], known: Sequence[Place], generated: Sequence[Place]
    ) -> None:
        features = measured["known_thumbnails"]
        # without held-out images, one half of the training images is asked how near it is to the other
        half = len(features) // 2
        real, reference = measured.get("real_thumbnails"), features
        if real is None:
            real, reference = features[:half], features[half:]
        copies = self.judge.copies(measured["generated_thumbnails"], real, reference)
        self.scores["neighbours"] = copies.said
        offset = 0 if reference is features else half
        shown = self.stage.shown
        first = range(min(shown, len(generated)))
        closest = copies.distance.argsort(kind="stable")[:shown].tolist()
        for name, title, chosen in (
            ("neighbours.png", "Generated images above their nearest training images", first),
            ("neighbours_closest.png", "The generated images nearest to a training image", closest),
        ):
            self._picture(name, title, self._pairs_picture(chosen, copies, known[offset:], generated))

    def _pairs_picture(
        self, chosen: Iterable[int], copies: Copies, training: Sequence[Place], generated: Sequence[Place]
    ) -> bytes:
        assert self.generated is not None
        chosen = list(chosen)
        above = [_image(self.generated, generated[n]) for n in chosen]
        below = [_image(self.images, training[int(copies.index[n])]) for n in chosen]
        distances = [f"{copies.distance[n]:.2f}" for n in chosen]
        labels = ("generated", "nearest training")
        return pictures.grid([above, below], row_labels=labels, column_labels=distances, cell=64)

    def _picture(self, name: str, title: str, png: bytes) -> None:
        self.session.output.replace(name, png)
        self.scores["pictures"][name] = title
        self.session.event({"kind": "picture", "name": name.removesuffix(".png"), "step": 0, "png": png})

    def _write(self) -> dict[str, Any]:
        values = flat_values(self.scores)
        self.session.event({"kind": "metrics", "step": 0, "values": values})
        text = json.dumps(self.scores, indent=1, sort_keys=True).encode() + b"\n"
        self.session.output.replace("metrics.json", text)
        return {"metrics": self.scores}


def flat_values(scores: dict[str, Any]) -> dict[str, float]:
    """The scores as one level of numbers, for curves and tables: `kid_generated`, `recall_generated`, ..."""
    values: dict[str, float] = {}
    for row in scores["rows"]:
        for score in ("kid", "frechet"):
            for part in ("value", "low", "high") if score in row else ():
                suffix = "" if part == "value" else f"_{part}"
                values[f"{score}_{row['name']}{suffix}"] = row[score][part]
        for score in ("precision", "recall"):
            if score in row:
                values[f"{score}_{row['name']}"] = row[score]
    if "conditioning" in scores:
        said = scores["conditioning"]
        values |= {f"held_out_{k}": said[k] for k in ("true", "shuffled", "difference", "low", "high")}
    if "neighbours" in scores:
        said = scores["neighbours"]
        values |= {"closer_than_1_percent": said["closer"]["value"]}
        values |= {f"nearest_{of}_median": said[of]["median"] for of in ("generated", "held_out")}
    return values


def _image(dataset: Dataset, place: Place) -> Any:
    return pictures.decode(dataset.read_member(*place, "image"))
