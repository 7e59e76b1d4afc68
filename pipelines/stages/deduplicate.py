"""Which images are copies of others: a `keep` column, and for each copy the name of its kept twin."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pipelines.duplicates.methods import Exact, Method, Perceptual, Semantic
from pipelines.stage import Input, Kind, Row, Sample, Session, Stage, jsonable

if TYPE_CHECKING:
    from cluster.storage import Storage
    from pipelines.dataset import Dataset
    from pipelines.duplicates.linkage import Linked, Member
    from pipelines.duplicates.passes import Found
    from pipelines.shards import ShardInfo

SHOWN = 8
"""Pairs in the picture: of the near copies those that are least alike."""


@dataclass(frozen=True, kw_only=True)
class Deduplicate(Stage):
    """Writes `keep` (`1`) for the images that stay; dropping happens on read, so keys never shift.

    Every row's metadata say whose copy it is (`twin`, "" where it is kept), how that was found (`duplicate`:
    exact, perceptual or semantic), how alike they are (`similarity`, 0 to 1) and the key of its cluster's
    representative (`cluster`). Held-out images are kept before those of training, so that leaks fall out of
    training; a held-out image falls only for one of its own split. Then the larger original is kept, then the
    smaller key.
    """

    version: ClassVar[int] = 1
    output: ClassVar[Kind] = "dataset"
    accelerated: ClassVar[bool] = True

    images: Annotated[str, Input("dataset", ("image",))]
    features: Annotated[str | None, Input("dataset", ("image.npy",))] = None
    """Image vectors that `embed` made, for `semantic`. None: EfficientNet-Lite0 on lightness, made here,
    which no shift of hue changes."""
    by: Method = Semantic()
    """What counts as a copy: exact, perceptual or semantic; each finds what those before it find."""

    def __post_init__(self) -> None:
        if self.features is not None and not isinstance(self.by, Semantic):
            raise ValueError(
                f"deduplicate has `features`, which {self.by.kind} does not use: leave them out."
            )

    def external(self) -> dict[str, str]:
        if not isinstance(self.by, Semantic) or self.features is not None:
            return {}
        from pipelines.duplicates.features import identity

        return {"features": identity()}

    def summary(self) -> str:
        if isinstance(self.by, Exact):
            return "equal bytes"
        if isinstance(self.by, Perceptual):
            return f"equal bytes, and perceptual hashes at most {self.by.distance} bits apart"
        checked = "" if self.by.verify is None else f", each verified at {self.by.verify:g}"
        return f"equal bytes, and features from a cosine of {self.by.cosine:g}{checked}"

    def run(self, session: Session) -> dict[str, Any]:
        """Writes a dataset with the rows of `images`.

        Raises:
            ValueError: `features` are not of one line with `images`.
        """
        from pipelines.dataset import describe
        from pipelines.duplicates import passes
        from pipelines.duplicates.survey import Survey

        images, features = session.inputs["images"], session.inputs.get("features")
        parts = [shard.name for shard in images.shards]
        total = sum(shard.samples for shard in images.shards)
        # everything that is long is kept there as it goes, and goes when the output is there
        work = session.checkpoints.folder("duplicates")
        done = unseen = 0
        survey = Survey(work=work, images=images, features=features, by=self.by, total=total)
        for rows, blind in session.map(survey, parts):
            done, unseen = done + rows, unseen + blind
            session.event({"kind": "progress", "done": done, "total": total, "unit": "images"})
        found = passes.find(session.map, work, parts, self.by, total)
        places, members = _members(images, work, found)
        linked = _linked(found, places, members)
        session.event({"kind": "note", "text": _told(linked, members)})

        said: dict[str, dict[int, Said]] = {name: {} for name in parts}
        for (part, row), link in zip(places, linked, strict=True):
            said[parts[part]][row] = Said(
                twin="" if link.twin is None else members[link.twin].key,
                duplicate="" if link.twin is None else "exact" if link.exact else self.by.kind,
                similarity=link.similarity,
                cluster=members[link.cluster].key,
            )
        write = Write(output=session.output, images=images)
        infos: list[ShardInfo] = list(session.map(write, list(said.items())))
        _show(session, images, parts, places, linked)
        fields = describe(infos, statistics=statistics(linked, members, unseen) | {"by": jsonable(self.by)})
        work.delete_folder()
        return fields


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a row's metadata say."""

    twin: str
    duplicate: str
    similarity: float
    cluster: str


@dataclass(frozen=True, kw_only=True)
class Write:
    """Writes a shard from what was decided of its rows; of the others each is kept."""

    output: Storage
    images: Dataset

    def __call__(self) -> Callable[[tuple[str, Mapping[int, Said]]], ShardInfo]:
        from pipelines.shards import write_shard

        def write(item: tuple[str, Mapping[int, Said]]) -> ShardInfo:
            shard, said = item
            index = self.images.index(shard)

            def samples() -> Iterator[tuple[Row, Sample]]:
                for n, key in enumerate(index.keys):
                    yield Row(key=key), _sample(index, n, said.get(n))

            return write_shard(self.output, shard, samples(), split=index.info.split)

        return write


def _sample(index: Any, n: int, said: Said | None) -> Sample:
    key = index.keys[n]
    reason = index.reasons[n] or (None if index.member(n, "image") else "no_image")
    if reason:
        return Sample(key=key, reject=reason)
    meta = dataclasses.asdict(said or Said(twin="", duplicate="", similarity=0.0, cluster=key))
    if meta["twin"]:
        return Sample(key=key, meta=meta | {"dropped": "duplicate"})
    return Sample(key=key, members={"keep": b"1"}, meta=meta)


def _members(images: Dataset, work: Storage, found: Found) -> tuple[list[tuple[int, int]], list[Member]]:
    """The rows that are in some group or pair: places in order, and what linking needs of each."""
    from pipelines.duplicates.linkage import Member
    from pipelines.duplicates.passes import read_npy

    pairs = zip(found.pairs["part"].tolist(), found.pairs["row"].tolist(), strict=True)
    involved = {place for group in found.same for place in group}
    involved |= {place for part, row in pairs for place in zip(part, row, strict=True)}
    places = sorted(involved)
    members, rows, last = [], None, -1
    for part, n in places:
        if part != last:
            rows, last = read_npy(work, f"rows/{images.shards[part].name}.npy"), part
        assert rows is not None
        row = rows[n]
        members.append(
            Member(
                key=row["key"].decode(),
                split=images.shards[part].split,
                digest=row["digest"].decode(),
                area=int(row["area"]),
            )
        )
    return places, members


def _linked(found: Found, places: Sequence[tuple[int, int]], members: Sequence[Member]) -> list[Linked]:
    from pipelines.duplicates.linkage import Pair, link

    number = {place: n for n, place in enumerate(places)}
    same = [[number[place] for place in group] for group in found.same]
    pairs = (
        Pair(number[part[0], row[0]], number[part[1], row[1]], similarity)
        for part, row, similarity in zip(
            found.pairs["part"].tolist(),
            found.pairs["row"].tolist(),
            found.pairs["similarity"].tolist(),
            strict=True,
        )
    )
    return link(members, same, pairs)


def statistics(linked: Sequence[Linked], members: Sequence[Member], unseen: int) -> dict[str, Any]:
    """For the manifest: what was dropped, and what leaked."""
    dropped = [(m, link) for m, link in zip(members, linked, strict=True) if link.twin is not None]
    leaks = [link for m, link in dropped if m.split != members[link.twin or 0].split]
    heads = {link.cluster for n, link in enumerate(linked) if link.cluster != n}
    across = [
        n
        for n, link in enumerate(linked)
        if link.twin is None and link.cluster != n and members[n].split != members[link.cluster].split
    ]
    return {
        "clusters": len(heads),
        "dropped": {
            "exact": sum(link.exact for _, link in dropped),
            "near": sum(not link.exact for _, link in dropped),
        },
        "leaks": {
            "removed": len(leaks),
            "removed_exact": sum(link.exact for link in leaks),
            "between_held_out_splits": len(across),
        },
        "not_looked_at": unseen,
    }


def _told(linked: Sequence[Linked], members: Sequence[Member]) -> str:
    found = statistics(linked, members, 0)
    dropped, leaks = found["dropped"], found["leaks"]
    return (
        f"{dropped['exact']} equal and {dropped['near']} near copies are dropped; "
        f"{leaks['removed']} of them leaked from a held-out split into training."
    )


def _show(
    session: Session,
    images: Dataset,
    parts: Sequence[str],
    places: Sequence[tuple[int, int]],
    linked: Sequence[Linked],
) -> None:
    """A picture of the near copies that are least alike, each beside the twin that stays."""
    from pipelines import pictures

    doubtful = sorted(
        (n for n, link in enumerate(linked) if link.twin is not None and not link.exact),
        key=lambda n: (linked[n].similarity, n),
    )[:SHOWN]
    if not doubtful:
        return
    rows = [
        [
            pictures.decode(images.read_member(parts[places[m][0]], places[m][1], "image"))
            for m in (linked[n].twin or 0, n)
        ]
        for n in doubtful
    ]
    labels = [f"{linked[n].similarity:.3f}" for n in doubtful]
    png = pictures.grid(rows, row_labels=labels, column_labels=["kept", "copy"])
    session.event({"kind": "picture", "name": "least alike copies", "step": 0, "png": png})
