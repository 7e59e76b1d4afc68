from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from pipelines.captioners import Subject, Tags
from pipelines.captioners.tags import class_names

EMOJI = Path(__file__).parents[3] / "pipelines" / "data" / "emoji3d.zip"


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    """Emoji whose word is one of ImageNet's classes."""
    found = []
    with zipfile.ZipFile(EMOJI) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        table = io.TextIOWrapper(archive.open(names["metadata.csv"]), "utf-8")
        for row in csv.DictReader(table):
            if row["text"] in ("plunger", "umbrella", "teapot"):
                image = Image.open(io.BytesIO(archive.read(names[Path(row["file_name"]).name]))).convert(
                    "RGBA"
                )
                white = Image.new("RGBA", image.size, "white")
                white.alpha_composite(image)
                data = io.BytesIO()
                white.convert("RGB").save(data, "PNG")
                found.append(Subject(fields={"text": row["text"]}, image=data.getvalue()))
    assert len(found) == 3
    return found


def test_class_names_are_imagenets() -> None:
    names = class_names()
    assert len(set(names)) == 1000
    assert [names[n] for n in (0, 277, 731, 999)] == ["tench", "red fox", "plunger", "toilet tissue"]


def test_what_is_plainly_there_is_named(subjects: list[Subject]) -> None:
    answers = Tags(micro_batch=2, text="a photo of a {tag}").build().answers(subjects)
    for subject, answer in zip(subjects, answers, strict=True):
        found = answer.captions
        assert found[0].text == f"a photo of a {subject.fields['text']}"
        assert found[0].source == "tags"
        probabilities = [c.probability or 0 for c in found]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(c.weight for c in found) == pytest.approx(1, abs=1e-4)


def test_company_changes_nothing(subjects: list[Subject]) -> None:
    captioner = Tags(micro_batch=2, threshold=0, top=5).build()
    together = captioner.answers(subjects)
    assert [captioner.answers([s])[0] for s in subjects] == together
    assert all(len(found.captions) == 5 for found in together)


def test_one_tag_is_kept_however_unlikely(subjects: list[Subject]) -> None:
    blank = io.BytesIO()
    Image.new("RGB", (8, 8), "grey").save(blank, "PNG")
    (found,) = Tags(threshold=0.999).build().answers([Subject(fields={}, image=blank.getvalue())])
    assert [caption.weight for caption in found.captions] == [1]


def test_settings_are_checked() -> None:
    for wrong in ({"text": "a photo"}, {"text": "{tag} {x}"}, {"top": 0}, {"threshold": 1.0}):
        with pytest.raises(ValueError, match="tag"):
            Tags(**wrong)


def test_an_image_that_does_not_decode_is_a_reject_and_its_neighbours_are_named(
    subjects: list[Subject],
) -> None:
    cut = Subject(fields={}, image=(subjects[0].image or b"")[:-300])
    captioner = Tags(micro_batch=2).build()
    found = captioner.answers([subjects[0], cut, subjects[1]])
    assert [answer.reject for answer in found] == [None, "unreadable", None]
    assert [found[0], found[2]] == captioner.answers(subjects[:2])
