"""Looking at and making samples in children: in order, equal for any number of threads, poison alone."""

from __future__ import annotations

import hashlib
import io
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.children import Ended, Limits
from pipelines.duplicates import look
from pipelines.duplicates.features import look_features
from pipelines.sources import untrusted
from pipelines.sources.decode import decode
from pipelines.sources.fit import fit
from pipelines.sources.reject import REASONS
from pipelines.sources.strip import strip
from pipelines.sources.untrusted import Item, Task, looked_at, made
from tests.pipelines.sources import corpus, deadly

LIMITS: dict[str, Any] = {"background": "#ff0000", "max_bytes": 2_000_000, "max_pixels": 10_000_000}
FILES = corpus.files()


@pytest.mark.parametrize("resize", ["crop", "none"])
@pytest.mark.parametrize("form", ["webp", "jpg"])
def test_what_children_make_is_what_is_made_here(resize: Any, form: Any) -> None:
    task = Task(**LIMITS, size=32, resize=resize, form=form)
    found = list(made(task, [data for data, _ in FILES.values()]))
    for (name, (data, reason)), result in zip(FILES.items(), found, strict=True):
        assert result.get("reject") == reason, name
        if reason:
            continue
        picture = decode(data, **LIMITS)
        image, changed = fit(picture, size=32, resize=resize, background="#ff0000")
        assert (result["width"], result["height"]) == image.size
        assert (result["original_width"], result["original_height"]) == (picture.width, picture.height)
        if picture.same and not changed:
            assert result["suffix"] == picture.kind
            assert result["image"] == strip(data, picture.kind)
        else:
            assert result["suffix"] == form
            shown = np.asarray(Image.open(io.BytesIO(result["image"])).convert("RGB")).astype(int)
            apart = np.abs(shown - np.asarray(image.convert("RGB")).astype(int))
            # A JPEG of 40 px may be decoded at a smaller scale than here.
            assert apart.mean() < (4 if form == "jpg" or picture.kind == "jpg" else 0.01), name


def test_looks_are_those_of_the_picture() -> None:
    found = list(looked_at(Task(**LIMITS), [data for data, _ in FILES.values()]))
    for (name, (data, reason)), result in zip(FILES.items(), found, strict=True):
        assert result.get("reject") == reason, name
        if not reason:
            picture = decode(data, **LIMITS, smallest=64)
            seen = look(picture.image)
            hashes = {"hash": seen.hash, "mirrored": seen.mirrored} if seen else {}
            assert result == {"sound": picture.same, **hashes}, name
    (one,) = looked_at(Task(**LIMITS, features=True), [FILES["rotated.jpg"][0]])
    kept = look_features(decode(FILES["rotated.jpg"][0], **LIMITS, smallest=224).image)
    assert (one["thumbnail"], one["lightness"]) == (kept.thumbnail, kept.lightness)


def test_any_number_of_threads_makes_the_same() -> None:
    data = [corpus.save(corpus.scene(n, (150 + 9 * n, 200)), "JPEG") for n in range(40)]
    data += [data for data, _ in FILES.values()]
    digests = set()
    for threads in (1, 2, 5):
        task = Task(**LIMITS, size=(48, 32), form="jpg", resample="area", threads=threads)
        results = made(task, iter(data))
        digests.add(hashlib.sha256(b"".join(r.get("image", b"-") for r in results)).hexdigest())
    assert len(digests) == 1


def test_each_input_may_have_a_size_of_its_own() -> None:
    data = corpus.save(corpus.scene(1, (300, 200)), "JPEG")
    sizes = [(32, 48), (64, 16), 40, (300, 200)]
    found = list(made(Task(**LIMITS, form="jpg"), [Item(data, size) for size in sizes]))
    assert [(one["width"], one["height"]) for one in found] == [(32, 48), (64, 16), (40, 40), (300, 200)]
    assert found[-1]["image"] == data


def test_headers_alone_are_enough_where_no_pixel_changes() -> None:
    ends: list[Ended] = []
    kept = {
        name: data for name, (data, reason) in FILES.items() if reason is None and decode(data, **LIMITS).same
    }
    assert len(kept) > 10
    task = Task(**LIMITS, resize="none", validate="header")
    found = list(made(task, kept.values(), ended=ends.append))
    assert [one["image"] for one in found] == [
        strip(data, one["suffix"]) for data, one in zip(kept.values(), found, strict=True)
    ]
    assert found == list(made(Task(**LIMITS, resize="none"), kept.values())), "decoding them finds the same"
    assert not ends or all(name.startswith("profile") for name in kept if not ends), "no child was needed"
    # What has to be decoded is.
    others = {name: data for name, (data, reason) in FILES.items() if reason is None and name not in kept}
    assert all(one["suffix"] == "webp" for one in made(task, others.values()))


def test_full_validation_finds_what_a_header_cannot() -> None:
    jpeg = corpus.save(corpus.scene(3, (200, 200)), "JPEG", quality=90)
    scan = jpeg.index(b"\xff\xda")
    # The scan stops half way, and the container is whole.
    short = jpeg[: scan + (len(jpeg) - scan) // 2] + b"\xff\xd9"
    # Behind the last block of the scan there is room for anything.
    stuffed = jpeg[:-2] + b"<script>alert(1)</script>" * 20 + jpeg[-2:]
    plain = corpus.save(corpus.scene(4, (50, 40)), "PNG")
    body = plain[41:-16]
    page = plain[:33] + corpus.chunk(b"IDAT", body + b"<script>alert(1)</script>") + plain[-12:]
    rows = zlib.decompress(body) + b"<script>alert(1)</script>"
    longer = plain[:33] + corpus.chunk(b"IDAT", zlib.compress(rows, 0)) + plain[-12:]
    task = Task(**LIMITS, resize="none")
    half, *others = made(task, [short, stuffed, page, longer])
    assert "reject" in half or half["suffix"] == "webp"
    for one, image in zip(others, (jpeg, plain, plain), strict=True):
        assert one["suffix"] == "webp", "coded anew from its pixels"
        assert b"script" not in one["image"]
        shown = np.asarray(Image.open(io.BytesIO(one["image"])).convert("RGB"))
        assert np.array_equal(shown, np.asarray(Image.open(io.BytesIO(image)).convert("RGB")))


@pytest.mark.parametrize("threads", [1, 3])
def test_poison_costs_only_itself(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "open_make", deadly.open_make)
    monkeypatch.setattr(untrusted, "Limits", lambda **said: Limits(**said, seconds=0.1))
    magics = list(deadly.MAGIC.values())
    data = []
    for n in range(10):
        data += [corpus.save(corpus.scene(n), "JPEG"), deadly.poisoned(n, magics[n % 3])]
    found = list(made(Task(**LIMITS, size=16, threads=threads), data))
    assert [one.get("reject") for one in found] == [None, "poison"] * 10
    # Its pixels are sound: without the bug it is a sample as any other.
    monkeypatch.undo()
    assert not any("reject" in one for one in made(Task(**LIMITS, size=16), data))


def test_a_child_that_lies_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "open_make", deadly.open_lie)
    found = list(
        made(Task(**LIMITS, size=16), [corpus.save(corpus.scene(n), "PNG") for n in range(len(deadly.LIES))])
    )
    assert found == [{"reject": "poison"}] * len(deadly.LIES)


def test_a_large_picture_gets_the_memory_that_its_header_asks_for() -> None:
    ends: list[Ended] = []
    large = corpus.save(Image.new("RGB", (5200, 5100), "red"), "WEBP", lossless=True, method=0, quality=0)
    small = corpus.save(corpus.scene(1), "JPEG")
    limits = {**LIMITS, "max_pixels": 64_000_000}
    found = list(made(Task(**limits, size=16, resample="area"), [small, large, small], ended=ends.append))
    assert [one.get("original_width") for one in found] == [96, 5200, 96]
    assert len(ends) == 3
    assert ends[1].peak > 420 << 20 > max(ends[0].peak, ends[2].peak)


def test_every_reason_is_told() -> None:
    assert {reason for _, reason in FILES.values() if reason} <= set(REASONS)
