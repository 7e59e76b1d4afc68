"""From a tar's members to images with what is said of them: those of one name are one sample.

webdataset's rule: a name is all up to the first dot behind the last slash.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from pipelines.shards import is_key
from pipelines.sources import inflated, metadata, said
from pipelines.sources.copies import Copies, unread
from pipelines.sources.layout import HEAD, hidden
from pipelines.sources.magic import IMAGE_ENDINGS, kind_of
from pipelines.sources.source import Found
from pipelines.sources.tars import Broken, Member, TarStream
from pipelines.sources.tree import Tree

TOLD = ("cls", "json", "txt")
"""Endings of members that say something of an image, the weightiest last: a name is more than a number."""
_JSON_BYTES = 1 << 20
_LABEL_BYTES = 1024
_HELD = 32
"""Images of one name that are held until the next name comes."""
_BUFFER = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Telling:
    """Which member is the image, and which fields of the .json are text and label."""

    image: str | None = None
    text: str | None = None
    label: str | None = None


def read_tar(files: Tree, tar: str, telling: Telling, limit: int, copies: Copies) -> Iterator[Found]:
    """Everything in a tar, in its order: images named "tar/member", the key where webdataset's is legal.

    What follows a place where the tar breaks is not read; that is one reject, under the tar's own name.
    """
    try:
        raw = files.open(tar)
    except OSError as error:
        yield Found(name=tar, reject="unreadable", facts={"error": unread(error)})
        return
    with raw:
        stream: BinaryIO = io.BufferedReader(raw, _BUFFER)  # type: ignore[arg-type]
        packed = tar.lower().endswith(inflated.ENDINGS)
        if packed:
            stream = inflated.inflated(stream, tar)
        yield from _Tar(stream, tar, telling, limit, copies if packed else None).found()


@dataclass(kw_only=True)
class _Picture:
    name: str
    suffix: str
    where: Any
    data: bytes | None
    reject: str | None


@dataclass(kw_only=True)
class _Group:
    """Members of one name that lie side by side."""

    key: str
    pictures: list[_Picture] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By the ending that told them."""


@dataclass(kw_only=True)
class _Given:
    """An image that was given out."""

    found: Found
    """Its names alone."""
    kinds: set[str]
    """Endings that have told something of it."""
    weights: dict[str, int]
    """Text and label -> which of `TOLD` said it."""
    late: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was told since, by ending."""


def _weights(facts: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {
        name: n for n, told in enumerate(TOLD) for name in ("text", "label") if name in facts.get(told, {})
    }


def _merged(facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: value for told in TOLD for name, value in facts.get(told, {}).items()}


class _Tar:
    def __init__(
        self, stream: BinaryIO, tar: str, telling: Telling, limit: int, copies: Copies | None
    ) -> None:
        self._stream = TarStream(stream)
        self._tar, self._telling, self._limit, self._copies = tar, telling, limit, copies
        self._names: dict[str, int] = {}
        self._group = _Group(key="")
        self._given: dict[str, list[_Given]] = {}
        """Name -> images that were given out."""
        self._waiting: dict[str, dict[str, dict[str, Any]]] = {}
        """Name -> what was told of an image that has not come yet."""

    def found(self) -> Iterator[Found]:
        broken: Broken | None = None
        try:
            for member in self._stream.members():
                yield from self._member(member)
        except Broken as error:
            broken = error
        yield from self._end_group()
        for one in itertools.chain.from_iterable(self._given.values()):
            if one.late:
                yield dataclasses.replace(one.found, facts=_merged(one.late), side="facts")
        for key, facts in self._waiting.items():
            yield Found(name=self._unique(key), facts=_merged(facts), reject="missing")
        if broken:
            reason, seen = broken.args
            yield Found(name=self._tar, reject=reason, facts={"error": unread(seen)})

    def _member(self, member: Member) -> Iterator[Found]:
        if member.refused:
            yield Found(name=self._unique(member.name), reject=member.refused)
            return
        if member.folder:
            return
        if hidden(member.name):
            yield self._ignored(member.name)
            return
        folder, slash, base = member.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        key, suffix = f"{folder}{slash}{stem}", suffix.lower()
        if suffix in TOLD:
            facts = self._told(member, suffix)
            if facts is None:
                yield self._ignored(member.name)
                return
            if key != self._group.key or suffix in self._group.facts:
                yield from self._end_group(key)
            self._group.facts[suffix] = facts
            return
        picture = self._picture(member, suffix)
        if picture is None:
            yield self._ignored(member.name)
            return
        group = self._group
        repeated = any(other.suffix == suffix for other in group.pictures) or len(group.pictures) == _HELD
        if key != group.key or repeated:
            yield from self._end_group(key)
        self._group.pictures.append(picture)

    def _picture(self, member: Member, suffix: str) -> _Picture | None:
        """The image that a member is, if it is one."""
        wanted = self._telling.image
        if wanted is not None and suffix != wanted.lower():
            return None
        head = b""
        if wanted is None and f".{suffix.rpartition('.')[2]}" not in IMAGE_ENDINGS:
            head = self._stream.read(HEAD)
            if kind_of(head) is None:
                return None
        name = self._unique(member.name)
        if member.size > self._limit:
            return _Picture(name=name, suffix=suffix, where=None, data=None, reject="too_large")
        data = head + self._stream.read(member.size)
        where = [self._tar, member.offset, member.size] if self._copies is None else self._copies.add(data)
        return _Picture(name=name, suffix=suffix, where=where, data=data, reject=None)

    def _told(self, member: Member, suffix: str) -> dict[str, Any] | None:
        """What a .txt, .cls or .json says; None if that cannot be read."""
        if suffix == "txt":
            words = metadata.text(self._stream.read(4 * metadata.TEXT_LENGTH))
            return {"text": words} if words else {}
        if suffix == "cls":
            label = metadata.text(self._stream.read(_LABEL_BYTES))
            return {"label": int(label) if label.isdecimal() and len(label) < 10 else label} if label else {}
        if member.size > _JSON_BYTES:
            return None
        names = {"text": self._telling.text, "label": self._telling.label}
        return said.parsed(self._stream.read(_JSON_BYTES), names)

    def _end_group(self, key: str = "") -> Iterator[Found]:
        """Gives out the members that lay side by side, and begins anew with those of `key`."""
        group, self._group = self._group, _Group(key=key)
        given = self._given.get(group.key, [])
        if not group.pictures:
            if given:
                yield from self._late(group, given)
                return
            waiting = self._waiting.setdefault(group.key, {}) if group.facts else {}
            for told, facts in group.facts.items():
                if waiting.setdefault(told, facts) is not facts:
                    yield self._ignored(f"{group.key}.{told}")
            return
        facts = {**self._waiting.pop(group.key, {}), **group.facts}
        plain = [picture for picture in group.pictures if "." not in picture.suffix]
        # Where one ending is an image's alone, those with two (mask.png) are of another kind.
        chosen = group.pictures if self._telling.image else plain or ([] if given else group.pictures)
        names = {picture.name for picture in chosen}
        for picture in group.pictures:
            if picture.name not in names:
                yield Found(name=picture.name, side="file")
                continue
            legal = not given and is_key(group.key) and not group.key.startswith("__")
            found = Found(name=picture.name, key=group.key if legal else None)
            kinds = {told for told, one in facts.items() if one}
            given.append(_Given(found=found, kinds=kinds, weights=_weights(facts)))
            self._given[group.key] = given
            given_out = {"where": picture.where, "reject": picture.reject, "data": picture.data}
            yield dataclasses.replace(found, facts=_merged(facts), **given_out)

    def _late(self, group: _Group, given: list[_Given]) -> Iterator[Found]:
        """What was told behind other names, for images that nothing of the kind has told of yet."""
        meant = [one for one in given if not one.kinds & group.facts.keys()]
        for one in meant:
            for told, facts in group.facts.items():
                # What a weightier member has said before stays.
                weight = TOLD.index(told)
                one.late[told] = {k: v for k, v in facts.items() if one.weights.get(k, -1) < weight}
                one.weights |= _weights({told: one.late[told]})
            one.kinds |= {told for told, facts in group.facts.items() if facts}
        if not meant:
            for told in group.facts:
                yield self._ignored(f"{group.key}.{told}")

    def _ignored(self, name: str) -> Found:
        return Found(name=self._unique(name), side="file")

    def _unique(self, name: str) -> str:
        """The name within the source; members of one name are all told of, under names of their own."""
        count = self._names.get(name, 0) + 1
        made = name if count == 1 else f"{name}#{count}"
        while count > 1 and made in self._names:
            count += 1
            made = f"{name}#{count}"
        self._names[name] = count
        self._names.setdefault(made, 1)
        return f"{self._tar}/{made}"
