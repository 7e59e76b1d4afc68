from __future__ import annotations

import io

import pytest
from PIL import Image

from pipelines.scorers import Size, Subject


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_the_header_is_enough(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.effect_noise((200, 300), 50).convert("RGB").save(buffer, form, exif=turned)
    monkeypatch.setattr(Image, "open", None)
    (found,) = Size().build().scores([Subject(key="k", data=buffer.getvalue())])
    assert found == {"width": 300, "height": 200, "shorter": 200, "aspect": 1.5}


def test_the_metadata_are_enough_and_say_what_was_before() -> None:
    facts = {"width": 64, "height": 64, "original_width": 100, "original_height": 300}
    subject = Subject(key="k", facts=facts)
    assert Size().knows(facts)
    assert Size().build().scores([subject]) == [
        {"width": 100, "height": 300, "shorter": 100, "aspect": 0.3333333}
    ]
    stored = Size(of="stored", name="stored")
    assert stored.build().scores([subject]) == [
        {"stored_width": 64, "stored_height": 64, "stored_shorter": 64, "stored_aspect": 1}
    ]
    assert not Size().knows({"width": 64})
