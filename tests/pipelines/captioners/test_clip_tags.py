from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.captioners import ClipTags, Subject

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TAGS = ("red fox", "blue car", "house", "tree at night", "!")
TEMPLATES = ("a photo of {tag}.", "{tag}", "a drawing of {tag}, in ink")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY)
    model.logit_scale.data.fill_(2.5)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    return folder


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (40, 30 + 8 * n, 3), np.uint8)) for n in range(5)]


@pytest.fixture(scope="module")
def subjects(images: list[Image.Image]) -> list[Subject]:
    found = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        found.append(Subject(fields={}, image=buffer.getvalue()))
    return found


def test_probabilities_are_clips_zero_shot(
    folder: Path, images: list[Image.Image], subjects: list[Subject]
) -> None:
    """Radford et al., 2021: the mean of the templates' unit vectors, scaled cosines, softmax over tags."""
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer, model = open_clip.get_tokenizer(f"local-dir:{folder}"), model.eval()
    with torch.inference_mode():
        vectors = []
        for tag in TAGS:
            texts = tokenizer([template.replace("{tag}", tag) for template in TEMPLATES])
            mean = model.encode_text(texts, normalize=True).mean(0)
            vectors.append(mean / mean.norm())
        seen = model.encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
        truth = (model.logit_scale.exp() * seen @ torch.stack(vectors).T).softmax(-1)
    config = ClipTags(
        path=str(folder), tags=TAGS, templates=TEMPLATES, top=5, threshold=0, text="tag: {tag}", micro_batch=2
    )
    answers = config.build().answers(subjects)
    for row, answer in zip(truth, answers, strict=True):
        found = {caption.text: caption.probability for caption in answer.captions}
        assert len(found) == 5
        for tag, probability in zip(TAGS, row.tolist(), strict=True):
            assert found[f"tag: {tag}"] == pytest.approx(probability, abs=2e-3)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert sum(caption.weight for caption in answer.captions) == pytest.approx(1, abs=1e-5)
        assert {caption.source for caption in answer.captions} == {"open_clip"}


def test_company_changes_nothing(folder: Path, subjects: list[Subject]) -> None:
    captioner = ClipTags(path=str(folder), tags=TAGS, threshold=0, micro_batch=3).build()
    together = captioner.answers(subjects)
    assert [captioner.answers([subject])[0] for subject in subjects] == together
    assert captioner.answers(subjects[::-1]) == together[::-1]
    broken = Subject(fields={}, image=b"no image")
    assert captioner.answers([broken, *subjects])[1:] == together
    assert captioner.answers([broken])[0].reject == "unreadable"


def test_tags_of_a_file_are_those_of_the_recipe_and_stand_for_themselves(
    folder: Path, subjects: list[Subject], tmp_path: Path
) -> None:
    (tmp_path / "tags.txt").write_text("# what there is\n" + "\n".join(TAGS) + "\n\n")
    listed = ClipTags(path=str(folder), file=str(tmp_path / "tags.txt"))
    assert listed.names() == TAGS
    assert listed.build().answers(subjects) == ClipTags(path=str(folder), tags=TAGS).build().answers(subjects)
    before = listed.external()
    assert len(before) == 2
    (tmp_path / "tags.txt").write_text("fox\ncar\n")
    assert listed.external() != before
    (tmp_path / "tags.txt").write_text("fox\nfox\n")
    with pytest.raises(ValueError, match="at least two tags"):
        listed.names()
    with pytest.raises(ValueError, match="no file of tags"):
        ClipTags(path=str(folder), file=str(tmp_path / "none.txt")).names()


def test_settings_are_checked() -> None:
    for wrong in (
        {},
        {"tags": ("a",)},
        {"tags": ("a", "a")},
        {"tags": ("a", "b"), "file": "x"},
        {"tags": ("a", "b"), "text": "a photo"},
        {"tags": ("a", "b"), "templates": ("a photo",)},
        {"tags": ("a", "b"), "templates": ()},
        {"tags": ("a", "b"), "threshold": 1.0},
    ):
        with pytest.raises(ValueError, match="tag"):
            ClipTags(path="x", **wrong)
