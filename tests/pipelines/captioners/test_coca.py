from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.captioners import CoCa, Subject
from pipelines.captioners.decoding import Beams, Decoding, Greedy, Sampled
from tests.pipelines.coca import folders

DECODINGS: list[Decoding] = [
    Greedy(),
    Beams(width=3),
    Sampled(temperature=1.5, top_k=20, top_p=0.95, seed=4),
]


def png(n: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(n).integers(0, 255, (2, 2, 3), np.uint8)
    Image.fromarray(noise).resize((20, 18), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return folders.save(tmp_path_factory.mktemp("coca"), seed=3)


def captions(folder: Path, subjects: list[Subject], **fields: Any) -> list[str | None]:
    settings = {"path": str(folder), "max_tokens": 8, "micro_batch": 4, **fields}
    answers = CoCa(**settings).build().answers(subjects)
    return [answer.captions[0].text if answer.captions else answer.reject for answer in answers]


SUBJECTS = [Subject(fields={}, image=png(n)) for n in range(9)]


@pytest.mark.parametrize("decoding", DECODINGS, ids=lambda d: d.kind)
def test_company_changes_no_caption(folder: Path, decoding: Decoding) -> None:
    together = captions(folder, SUBJECTS, decoding=decoding)
    assert len(set(together)) > 4
    model = CoCa(path=str(folder), max_tokens=8, micro_batch=4, decoding=decoding).build()
    for size in (1, 2, 5):
        runs = [model.answers(SUBJECTS[start : start + size]) for start in range(0, 9, size)]
        assert [answer.captions[0].text for run in runs for answer in run] == together
    backwards = captions(folder, SUBJECTS[::-1], decoding=decoding)
    assert backwards[::-1] == together


def test_an_image_that_does_not_decode_is_a_reject_and_moves_no_other(folder: Path) -> None:
    whole = captions(folder, SUBJECTS)
    broken = [*SUBJECTS[:2], Subject(fields={}, image=b"no image"), *SUBJECTS[2:]]
    assert captions(folder, broken) == [*whole[:2], "unreadable", *whole[2:]]


def test_chance_is_the_seeds_and_the_images(folder: Path) -> None:
    first, again, other = (
        captions(folder, SUBJECTS, decoding=Sampled(temperature=2.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert sum(a != b for a, b in zip(first, other, strict=True)) > 4
    copies = captions(folder, [SUBJECTS[0]] * 6, decoding=Sampled(temperature=2.0))
    assert len(set(copies)) == 1


def test_words_are_the_tokenizers_and_the_limits_hold(folder: Path) -> None:
    for text in captions(folder, SUBJECTS, min_tokens=2, max_tokens=4):
        assert text is not None
        assert 2 <= len(text.split()) <= 4
        assert all(word.isalpha() and len(set(word)) == 1 for word in text.split())
    longest = captions(folder, SUBJECTS, min_tokens=50, max_tokens=60)  # of a context of 12
    assert {len(str(text).split()) for text in longest} == {12}


def test_clips_own_vocabulary_goes_too(tmp_path: Path) -> None:
    """The tokenizer that open_clip brings along, whose 0 is padding and an exclamation mark: not said."""
    text = {**folders.TEXT, "vocab_size": 49408, "width": 16, "hf_tokenizer_name": None}
    decoder = {**folders.DECODER, "vocab_size": 49408}
    text = {name: value for name, value in text.items() if value is not None}
    config = {
        **folders.TINY,
        "embed_dim": 16,
        "text_cfg": text,
        "multimodal_cfg": {**decoder, "width": 16},
    }
    model = CoCa(
        path=str(folders.save(tmp_path, config, tokenizer=False)), max_tokens=5, micro_batch=2
    ).build()
    for answer in model.answers(SUBJECTS[:3]):
        assert answer.captions
        assert "_of_text" not in answer.captions[0].text


def test_a_folder_that_is_no_captioner_is_said_in_a_line(folder: Path, tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is what is tested)
            CoCa(path=str(path)).build()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    settings = json.loads((folder / "open_clip_config.json").read_text())

    def copy(name: str, leave_out: str = "", **changed: Any) -> Path:
        target = tmp_path / name
        target.mkdir()
        for file in folder.iterdir():
            if not file.name.startswith(leave_out or "-"):
                (target / file.name).write_bytes(file.read_bytes())
        model = {k: v for k, v in {**settings["model_cfg"], **changed}.items() if v is not None}
        (target / "open_clip_config.json").write_text(json.dumps({**settings, "model_cfg": model}))
        return target

    assert "holds a CLIP, which does not write" in message(copy("clip", multimodal_cfg=None))
    assert "has no tokenizer.json" in message(copy("wordless", leave_out="tokenizer"))
    assert "transformers library" in message(
        copy("roberta", text_cfg={**folders.TEXT, "hf_model_name": "roberta-base"})
    )
    pickled = copy("pickled", leave_out="open_clip_model")
    (pickled / "open_clip_pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pickles are not read" in message(pickled)
    small = {**folders.TINY, "text_cfg": {**folders.TEXT, "vocab_size": 30}}
    small["multimodal_cfg"] = {**folders.DECODER, "vocab_size": 30}
    assert "it is another model's" in message(folders.save(tmp_path / "small", small))


def test_fields_that_cannot_be() -> None:
    for fields, word in (
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": 31}, "min_tokens is 31"),
    ):
        with pytest.raises(ValueError, match=word):
            CoCa(path="x", **fields)
    for build, word in (
        (lambda: Beams(width=0), "width is 0"),
        (lambda: Sampled(temperature=0.0), "above 0"),
        (lambda: Sampled(top_k=0), "top_k is 0"),
        (lambda: Sampled(top_p=1.5), "top_p is 1.5"),
    ):
        with pytest.raises(ValueError, match=word):
            build()
