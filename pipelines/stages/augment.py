"""Real and generated images as one training set: a view, in which nothing is copied."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pipelines.stage import KEEP, Input, Kind, Session, Stage, added

if TYPE_CHECKING:
    from pipelines.dataset import Dataset

ALL = ""
"""The one group of a dataset without classes."""
SHOWN = 8
"""Classes, the rarest first, and images of each, in the picture."""
Place = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Augment(Stage):
    """Tops the training split up with generated images, class by class; validation and test stay real.

    A row's metadata say where it comes from (`source`: real or generated) and what it weighs. Which generated
    images are taken depends on their keys alone, so that a higher target adds to a lower one.
    """

    version: ClassVar[int] = 1
    output: ClassVar[Kind] = "dataset"

    real: Annotated[str, Input("dataset")]
    generated: Annotated[str, Input("dataset")]
    keep: Annotated[str | None, Input("dataset", (KEEP,))] = added(None)
    """A filter or deduplicate stage over the real images: what it drops stays out, of all splits."""
    keep_generated: Annotated[str | None, Input("dataset", (KEEP,))] = added(None)
    """The same over the generated images: they are taken from those that it keeps."""
    per: Literal["class", "total"] | None = None
    """Top-up of each class, or of the whole; by class where the real images have classes if None."""
    target: int | None = None
    """Training images that each class (or the whole) is to have. None: as many as the largest class, at most
    the 75 % quantile of the classes' sizes; twice the real ones without classes."""
    max_ratio: float = 3.0
    """Generated images, at most, for each real one of the class."""
    weight: float = 0.5
    """What a generated image counts in training, next to 1 for a real one."""

    def __post_init__(self) -> None:
        if self.target is not None and self.target < 1:
            raise ValueError(f"target is {self.target}; it must be at least 1.")
        if self.max_ratio < 0 or not math.isfinite(self.max_ratio):
            raise ValueError(f"max_ratio is {self.max_ratio}; it must be 0 or more.")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight is {self.weight}; it must lie between 0 and 1.")

    def summary(self) -> str:
        goal = f"{self.target:,} images" if self.target else "the 75 % quantile"
        return f"to {goal} a class, at most {self.max_ratio:g} generated for a real one"

    def run(self, session: Session) -> dict[str, Any]:
        """Writes the view's index.

        Raises:
            ValueError: the real images have classes and the generated ones do not, or other ones.
        """
        from pipelines.view import ViewRow, write_view

        real, generated = session.inputs["real"], session.inputs["generated"]
        by_class = bool(real.classes) if self.per is None else self.per == "class"
        if by_class:
            _check_classes(real, generated)
        kept = _kept(real, session.inputs.get("keep"))
        held = _groups(real, by_class=by_class, kept=kept)
        offered = _groups(
            generated, by_class=by_class, kept=_kept(generated, session.inputs.get("keep_generated"))
        )
        wanted = top_up(
            {name: len(places) for name, places in held.items()}, target=self.target, max_ratio=self.max_ratio
        )
        chosen = {name: offered.get(name, [])[:count] for name, count in wanted.items()}

        rows = [
            ViewRow(key=key, source="real", shard=shard.name, row=n, keep=kept((shard.name, n)))
            for shard in real.shards
            for n, key in enumerate(real.index(shard.name).keys)
        ]
        for shard, n in (place for places in chosen.values() for place in places):
            # a prefix of its own: a generated key never meets a real one
            key = f"generated-{generated.index(shard).keys[n]}"
            rows.append(ViewRow(key=key, source="generated", shard=shard, row=n, weight=self.weight))
        said = write_view(session.output, {"real": real, "generated": generated}, rows)

        counts = {
            name or "all": {
                "real": len(held[name]),
                "wanted": wanted[name],
                "available": len(offered.get(name, [])),
                "generated": len(chosen[name]),
            }
            for name in held
        }
        self._tell(session, counts, held, chosen)
        return {**said, "augmented": counts, "weight": self.weight}

    def _tell(
        self,
        session: Session,
        counts: Mapping[str, Mapping[str, int]],
        held: Mapping[str, Sequence[Place]],
        chosen: Mapping[str, Sequence[Place]],
    ) -> None:
        added = sum(count["generated"] for count in counts.values())
        session.event({"kind": "progress", "done": added, "total": added, "unit": "generated images"})
        short = {
            name: c["wanted"] - c["available"] for name, c in counts.items() if c["wanted"] > c["available"]
        }
        if short:
            least = max(short, key=lambda name: short[name])
            text = f"{len(short)} of {len(counts)} classes are short of generated images, {least} by "
            text += f"{short[least]}: a larger `count` in generate fills them."
            session.event({"kind": "note", "text": text})
        values = {"real": float(sum(c["real"] for c in counts.values())), "generated": float(added)}
        session.event({"kind": "metrics", "step": 0, "values": values})
        named = sorted((name for name in chosen if chosen[name]), key=lambda name: len(held[name]))[:SHOWN]
        if named:
            png = _picture(session.inputs["real"], session.inputs["generated"], held, chosen, named)
            session.event({"kind": "picture", "name": "real and generated", "step": 0, "png": png})


def top_up(counts: Mapping[str, int], *, target: int | None, max_ratio: float) -> dict[str, int]:
    """Generated images that each class is to get: up to the target, at most `max_ratio` for each real one.

    The target is the 75 % quantile of the class sizes if None (never above the largest class), and twice the
    size where there is one group alone.
    """
    if target is None:
        sizes = sorted(counts.values())
        # the size that three quarters of the classes do not exceed
        target = 2 * sizes[0] if [*counts] == [ALL] else sizes[max(math.ceil(0.75 * len(sizes)) - 1, 0)]
    return {
        name: min(max(target - count, 0), math.floor(max_ratio * count + 1e-9))
        for name, count in counts.items()
    }


def _kept(dataset: Dataset, keep: Dataset | None) -> Callable[[Place], bool]:
    """Whether a row is; `ValueError` if `keep` is about other images."""
    if keep is None:
        return lambda place: True
    from pipelines.dataset import join

    join({"images": dataset, KEEP: keep})
    return lambda place: keep.index(place[0]).member(place[1], KEEP) is not None


def _groups(dataset: Dataset, *, by_class: bool, kept: Callable[[Place], bool]) -> dict[str, list[Place]]:
    """Training images of each class, in an order that depends on their keys alone."""
    found: dict[str, list[tuple[bytes, Place]]] = (
        {name: [] for name in dataset.classes} if by_class else {ALL: []}
    )
    for shard in dataset.shards:
        if shard.split != "train":
            continue
        index = dataset.index(shard.name)
        ids = _class_ids(dataset, shard.name) if by_class else {}
        for n, key in enumerate(index.keys):
            there = index.reasons[n] is None and index.member(n, "image") and kept((shard.name, n))
            if there and (not by_class or key in ids):
                name = dataset.classes[ids[key]] if by_class else ALL
                found[name].append((hashlib.sha256(key.encode()).digest(), (shard.name, n)))
    return {name: [place for _, place in sorted(places)] for name, places in found.items()}


def _class_ids(dataset: Dataset, shard: str) -> dict[str, int]:
    return {record.key: int(record.members["cls"]) for record in dataset.read(shard, columns=("cls",))}


def _check_classes(real: Dataset, generated: Dataset) -> None:
    if not real.classes:
        raise ValueError("augment: the real images have no classes; set `per: total`, or leave `per` out.")
    if "cls" not in generated.columns:
        raise ValueError(
            "augment: the real images have classes and the generated ones do not. Generate with `images` set "
            "to the real ones (or with `classes`), or set `per: total`."
        )
    if real.classes[: len(generated.classes)] != generated.classes:
        raise ValueError(
            "augment: the generated images number their classes differently; generate with a model of the "
            "same images."
        )


def _picture(
    real: Dataset,
    generated: Dataset,
    held: Mapping[str, Sequence[Place]],
    chosen: Mapping[str, Sequence[Place]],
    names: Sequence[str],
) -> bytes:
    """A row a class: real images, then generated ones."""
    from pipelines import pictures

    half = SHOWN // 2
    rows = []
    for name in names:
        left = [pictures.decode(real.read_member(*place, "image")) for place in held[name][:half]]
        right = [pictures.decode(generated.read_member(*place, "image")) for place in chosen[name][:half]]
        rows.append([*left, *[None] * (half - len(left)), *right])
    labels = ["real"] * half + ["generated"] * max(len(row) - half for row in rows)
    return pictures.grid(rows, row_labels=[name for name in names if name], column_labels=labels, cell=64)
