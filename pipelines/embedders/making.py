"""The samples of an embed stage's shards."""

from __future__ import annotations

import io
import itertools
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.arrays import from_npy, to_npy
from pipelines.embedders.embedding import caption_digest
from pipelines.embedders.folder import folder_digest
from pipelines.embedders.storing import Store, members, suffixes
from pipelines.shards import canonical
from pipelines.stage import Row, Sample, ShardPlan

if TYPE_CHECKING:
    import numpy as np

SIMILARITY = "similarity"
NOT_FINITE = "not_finite"
"""Reason of a sample whose caption gives numbers that fp16 does not hold, in float32 too."""
DECODED = 256
"""Images that are decoded at once, ahead of those that the network has."""
REMEMBERED = 1 << 26
"""Bytes of captions' vectors that are kept for the shards that follow, as captions may be the same there."""


class EmbedShard:
    """Makes given rows of a shard; the encoders are loaded once."""

    def __init__(
        self,
        *,
        captions: Any,
        images: Any,
        text: Any,
        image: Any,
        store: Store,
        tag: str,
        similarity: bool,
        micro_batch: int,
    ) -> None:
        if similarity and folder_digest(text.path, ("*",)) != folder_digest(image.path, ("*",)):
            raise ValueError("`similarity` compares vectors of one model: `text` and `image` name two.")
        self.captions, self.images, self.store, self.tag = captions, images, store, tag
        self.similarity, self.micro_batch = similarity, micro_batch
        self.suffixes = suffixes(text, store)
        self.text = text.build(micro_batch=micro_batch) if self.suffixes else None
        self.image: Any = None if image is None else image.build(micro_batch=micro_batch)
        self.known = _Remembered(REMEMBERED)

    def __call__(self, shard: ShardPlan, rows: Sequence[Row]) -> Iterator[Sample]:
        wanted = [row.key for row in rows if not row.reject]
        records = self.captions.read(shard.name, wanted, ("captions.json",))
        captions = {record.key: json.loads(record.members["captions.json"]) for record in records}
        vectors = dict(self._vectors(shard.name, list(captions))) if self.image else None
        files = self._files(sorted({caption["text"] for found in captions.values() for caption in found}))
        for row in rows:
            found = captions.get(row.key)
            if row.reject or found is None or (vectors is not None and row.key not in vectors):
                reason = row.reject or ("no_captions" if found is None else "no_image")
                yield Sample(key=row.key, reject=reason)
            elif any(files[caption["text"]] is None for caption in found if self.suffixes):
                yield Sample(key=row.key, reject=NOT_FINITE)
            else:
                yield self._sample(row.key, found, files, None if vectors is None else vectors[row.key])

    def _sample(
        self, key: str, captions: Sequence[Any], files: dict[str, Any], vector: np.ndarray | None
    ) -> Sample:
        listed, shared, meta = [], {}, {}
        for caption in captions:
            words = caption["text"]
            said = {"digest": caption_digest(words), "weight": caption["weight"]}
            said |= {"text": words} if self.store == "online" else {}
            listed.append(said | ({"encoder": self.tag} if self.tag else {}))
            if self.suffixes:
                made, retried = files[words]
                shared |= {f"{said['digest']}.{suffix}": data for suffix, data in made.items()}
                meta |= {"retried": True} if retried else {}
        own = {"text.json": canonical(listed)}
        if vector is not None:
            own["image.npy"] = to_npy(vector)
        if vector is not None and self.similarity and captions:
            pooled = from_npy(files[captions[0]["text"]][0]["pooled.npy"])
            score = _cosine(vector, pooled)
            own["scores.json"] = canonical({SIMILARITY: score})
            meta[SIMILARITY] = score
        return Sample(key=key, members=own, shared=shared, meta=meta)

    def _files(self, texts: Sequence[str]) -> dict[str, Any]:
        """Of each text its members and whether it was made twice; None where it is not finite."""
        import numpy as np

        if self.text is None:
            return {}
        files = {words: self.known.get(words) for words in texts if words in self.known}
        new = [words for words in texts if words not in files]
        embeddings = self.text.encode(new)[::-1]
        for words in new:
            embedding = embeddings.pop()  # so that arrays and members are not all in memory together
            whole = all(np.isfinite(array).all() for array in (embedding.states, embedding.pooled))
            files[words] = (members(embedding, self.suffixes), embedding.retried) if whole else None
            self.known.put(words, files[words])
        return files

    def _vectors(self, shard: str, keys: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Key and vector of each image; the next ones are decoded while the network has these."""
        from pipelines.training.prefetch import prefetched

        records = self.images.read(shard, keys, ("image",))
        size = self.micro_batch * max(1, DECODED // self.micro_batch)
        runs = iter(lambda: list(itertools.islice(records, size)), [])
        for run, opened in prefetched(runs, _opened, ahead=1):
            vectors = self.image.encode(opened)
            yield from zip((record.key for record in run), vectors, strict=True)


class _Remembered:
    """Captions' members, those that were used last; a caption is the same wherever it is embedded."""

    def __init__(self, budget: int) -> None:
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._left = budget

    def __contains__(self, words: str) -> bool:
        return words in self._kept

    def get(self, words: str) -> Any:
        self._kept.move_to_end(words)
        return self._kept[words]

    def put(self, words: str, made: Any) -> None:
        self._kept[words] = made
        self._left -= _bytes(made)
        while self._left < 0:
            self._left += _bytes(self._kept.popitem(last=False)[1])


def _bytes(made: Any) -> int:
    return 0 if made is None else sum(map(len, made[0].values()))


def _opened(records: list[Any]) -> tuple[list[Any], list[Any]]:
    from PIL import Image

    return records, [Image.open(io.BytesIO(record.members["image"])).convert("RGB") for record in records]


def _cosine(image: np.ndarray, text: np.ndarray) -> float:
    """The very number that the scorer `similarity` gives."""
    from pipelines.scorers.clip import unit
    from pipelines.scorers.scorer import rounded

    return rounded(float((unit(image).astype("float64") * unit(text)).sum()))
