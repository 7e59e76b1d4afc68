"""What a survey noted of a source, damaged afterwards."""

from __future__ import annotations

import random
from pathlib import Path

from cluster.storage import Storage
from pipelines.sources import FolderSource
from pipelines.sources.sightings import Question
from pipelines.sources.survey import survey


def test_what_is_noted_of_a_source_is_right_or_refused(tmp_path: Path) -> None:
    for n in range(40):
        (tmp_path / f"{n:02d}.png").write_bytes(b"\x89PNG\r\n\x1a\n%d" % n)
        (tmp_path / f"{n:02d}.txt").write_text(f"text number {n}")
    question, store = Question(max_bytes=1000, max_pixels=1000), Storage.at(tmp_path / "store")
    found = survey(FolderSource(path=tmp_path), question, store=store)
    truth, path = list(found.entries()), found.place.local(found.files[0])
    assert len(truth) == 40
    draw, data, refused = random.Random(2), path.read_bytes(), 0
    pages = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for _ in range(200):
        # What is behind the pages says where they are, and has no sum.
        place, bit = draw.randrange(pages), 1 << draw.randrange(8)
        path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
        try:
            assert list(found.entries()) == truth
        except ValueError as error:
            refused += "damaged" in str(error)
    assert refused > 150
