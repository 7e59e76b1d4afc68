"""What is done to each input: looked at for near-duplicates, or made into a sample.

Containers are read here, in plain Python; what must be decoded goes, stripped, to a disposable child.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cluster.children import Died, Done, Ended, Limits, Work, in_children
from pipelines.sources.containers.facts import Header
from pipelines.sources.decode import Checked, Reject, checked, keepable, pixels
from pipelines.sources.fit import Format, Resample, Resize, Size, decoded_scale, encode, fit, is_changed
from pipelines.sources.memory import needed
from pipelines.sources.reject import REASONS

MEMORY = 440 << 20
"""Bytes that a child may take for its pictures; with what it imports it stays below 512 MiB.

Those few pictures whose header says that they need more get a child each that may take what they need."""
LOOK = 64
"""px of the shorter side at which a picture is looked at, at least."""
SEEN = 224
"""The same, where a network looks too."""
_MODULES = (
    "PIL.ImageCms",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.WebPImagePlugin",
    "numpy",
    "pipelines.duplicates.features",
    "pipelines.duplicates.perceptual",
    "pipelines.sources.untrusted",
    "simplejpeg",
)
"""What children need, imported once by the process that they are forked from."""


@dataclass(frozen=True)
class Item:
    """A file of which more is said than its bytes."""

    data: bytes
    size: Size | None = None
    """In place of the task's."""
    sound: bool = False
    """Whether a look has decoded it and said so: where it keeps its bytes that need not be done again."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is done to each input, and the limits."""

    background: str
    """CSS colour that shows through transparency and fills up."""
    max_bytes: int
    max_pixels: int
    size: Size = 64
    resize: Resize = "crop"
    form: Format = "webp"
    """Of pictures that change; the others keep their bytes, stripped."""
    resample: Resample = "lanczos"
    quality: int = 95
    """Of the form jpg."""
    validate: Literal["header", "full"] = "full"
    """Whether pictures that keep their bytes are decoded too: "header" only reads their container, and does
    not see coded pixels that are broken, or what is hidden behind the last of them."""
    threads: int = 1
    """Pictures that a child works on at once; decides nothing."""
    features: bool = False
    """Whether a look holds what a network is shown, too."""


def looked_at(
    task: Task, items: Iterable[bytes], *, ended: Callable[[Ended], None] = lambda end: None
) -> Iterator[dict[str, Any]]:
    """For each input its perceptual hashes ("hash", "mirrored"; absent in a flat picture), or "reject".

    "sound" says whether its stripped bytes show the picture in any reader. With `task.features` there are
    "thumbnail" and "lightness" too, as `pipelines.duplicates.look_features` gives them.

    Args:
        items: files; a few are taken ahead of the results, which come in their order.
        ended: told how each child ended, for measuring.
    """

    def work(file: Checked, size: Size, sound: bool) -> Work | Done:
        return Work(_sent(file, size), _memory(file, _look_scale(task, file.header), None))

    def is_right(file: Checked, size: Size, result: Mapping[str, Any]) -> bool:
        return _is_look(task, result)

    for _, result in _done(task, open_look, items, work, is_right, ended):
        yield result


def made(
    task: Task, items: Iterable[bytes | Item], *, ended: Callable[[Ended], None] = lambda end: None
) -> Iterator[dict[str, Any]]:
    """For each input its suffix, image, width, height, original_width and original_height, or "reject".

    An image that `task` does not change keeps its coded pixels, stripped of all else.

    Args:
        items: files; a few are taken ahead of the results, which come in their order.
        ended: told how each child ended, for measuring.
    """

    def work(file: Checked, size: Size, sound: bool) -> Work | Done:
        one = task if size == task.size else dataclasses.replace(task, size=size)
        if _is_kept(one, file.header) and (sound or task.validate == "header"):
            return Done({"kept": True})
        return Work(_sent(file, size), _memory(file, _make_scale(one, file.header), one))

    def is_right(file: Checked, size: Size, result: Mapping[str, Any]) -> bool:
        if "kept" in result:
            # Of a profile that is broken only a child knows that it is, and says nothing.
            changed = is_changed(*file.header.upright, size=size, resize=task.resize)
            return file.header.plain and file.header.orientation == 1 and not changed
        return result.get("suffix") == task.form and _shows(result)

    for file, result in _done(task, open_make, items, work, is_right, ended):
        if file is None or "reject" in result:
            yield result
            continue
        width, height = file.header.upright
        if "kept" in result:
            result = {"suffix": file.header.kind, "image": file.data, "width": width, "height": height}
        yield {**result, "original_width": width, "original_height": height}


def open_look(told: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """What a child does for `looked_at`."""
    from pipelines.duplicates import look, look_features

    task = _task(told)

    def call(sent: Mapping[str, Any]) -> dict[str, Any]:
        file = _received(sent)
        try:
            picture = pixels(file, background=task.background, scale=_look_scale(task, file.header))
        except Reject as reject:
            return {"reject": str(reject)}
        seen = look(picture.image)
        said: dict[str, Any] = {"sound": picture.same}
        said |= {"hash": seen.hash, "mirrored": seen.mirrored} if seen else {}
        if task.features:
            said |= vars(look_features(picture.image))
        return said

    return call


def open_make(told: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """What a child does for `made`."""
    whole = _task(told)

    def call(sent: Mapping[str, Any]) -> dict[str, Any]:
        file, task = _received(sent), dataclasses.replace(whole, size=_size(sent["size"]))
        try:
            picture = pixels(file, background=task.background, scale=_make_scale(task, file.header))
            if _is_kept(task, file.header) and not picture.same:
                # It shows something, and not everywhere the same: its pixels are coded anew.
                picture = pixels(file, background=task.background)
        except Reject as reject:
            return {"reject": str(reject)}
        image, changed = fit(
            picture, size=task.size, resize=task.resize, background=task.background, resample=task.resample
        )
        if picture.same and not changed:
            return {"kept": True}
        data = encode(image, task.form, quality=task.quality)
        return {"suffix": task.form, "image": data, "width": image.width, "height": image.height}

    return call


def _done(
    task: Task,
    opener: Callable[[Any], Callable[[Any], Any]],
    items: Iterable[bytes | Item],
    work: Callable[[Checked, Size, bool], Work | Done],
    is_right: Callable[[Checked, Size, Mapping[str, Any]], bool],
    ended: Callable[[Ended], None],
) -> Iterator[tuple[Checked | None, dict[str, Any]]]:
    """Each input as it was checked, and its result."""
    waiting: deque[tuple[Checked | None, Size]] = deque()

    def works() -> Iterator[Work | Done]:
        for item in items:
            given = Item(item) if isinstance(item, bytes) else item
            size = given.size or task.size
            try:
                file = checked(given.data, max_bytes=task.max_bytes, max_pixels=task.max_pixels)
            except Reject as reject:
                waiting.append((None, size))
                yield Done({"reject": str(reject)})
            else:
                waiting.append((file, size))
                yield work(file, size, given.sound)

    limits = Limits(memory=MEMORY, threads=task.threads)
    told = dataclasses.asdict(task)
    for result in in_children(opener, told, works(), limits=limits, modules=_MODULES, ended=ended):
        file, size = waiting.popleft()
        # A child may have been taken over: what it says is of a known form, or its input is poison.
        if isinstance(result, Died) or not isinstance(result, dict):
            result = _POISON
        elif "reject" in result:
            result = result if result["reject"] in tuple(REASONS) else _POISON
        elif file and not is_right(file, size, result):
            result = _POISON
        yield file, result


_POISON = {"reject": "poison"}


def _shows(made: Mapping[str, Any]) -> bool:
    """Whether it is an image of the size that is said, and nothing beside."""
    image = made.get("image")
    if not isinstance(image, bytes):
        return False
    try:
        file = checked(image, max_bytes=len(image), max_pixels=1 << 31)
    except Reject:
        return False
    header = file.header
    told = {"suffix": header.kind, "image": file.data, "width": header.width, "height": header.height}
    return file.data is image and told == made


def _is_look(task: Task, result: Mapping[str, Any]) -> bool:
    hashes = [result[name] for name in ("hash", "mirrored") if name in result]
    shown = [result[name] for name in ("thumbnail", "lightness") if name in result]
    return (
        len(hashes) in (0, 2)
        and all(isinstance(one, int) and 0 <= one < 1 << 64 for one in hashes)
        and [type(one) for one in shown] == [bytes, bytes][: 2 * task.features]
        and isinstance(result.get("sound"), bool)
        and len(result) == 1 + len(hashes) + len(shown)
    )


def _is_kept(task: Task, header: Header) -> bool:
    return keepable(header) and not is_changed(*header.upright, size=task.size, resize=task.resize)


def _look_scale(task: Task, header: Header) -> float:
    return (SEEN if task.features else LOOK) / min(header.upright)


def _make_scale(task: Task, header: Header) -> float:
    if _is_kept(task, header):
        # Every coefficient is read at any scale, and none of the pixels is used.
        return 0.0
    return decoded_scale(*header.upright, size=task.size, resize=task.resize, resample=task.resample)


def _memory(file: Checked, scale: float, task: Task | None) -> int:
    """Bytes that a child takes for a picture: to decode it, and to encode it for `task`."""
    header, form, made = file.header, None, 0
    if task is not None and not _is_kept(task, header):
        across, down = (task.size, task.size) if isinstance(task.size, int) else task.size
        form, made = task.form, header.width * header.height if task.resize == "none" else across * down
    return needed(header, len(file.data), scale=scale, form=form, made=made)


def _sent(file: Checked, size: Size) -> dict[str, Any]:
    return {"header": vars(file.header), "data": file.data, "size": size}


def _received(sent: Mapping[str, Any]) -> Checked:
    return Checked(Header(**sent["header"]), sent["data"])


def _task(told: Mapping[str, Any]) -> Task:
    return Task(**{**told, "size": _size(told["size"])})


def _size(told: Any) -> Size:
    return told if isinstance(told, int) else (told[0], told[1])
