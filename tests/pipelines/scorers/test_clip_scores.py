from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipelines.embedders import OpenClipImages
from pipelines.scorers import Aesthetic, Similarity, Subject, Unscored, clip

WIDTH = 32
TINY = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CAPTIONS = [{"text": "a red fox", "weight": 3.0}, {"text": "snow", "weight": 1.0}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import open_clip

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    state = open_clip.CLIP(**TINY).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    return folder


def subjects(count: int = 5) -> list[Subject]:
    found, chance = [], np.random.default_rng(0)
    for n in range(count):
        buffer = io.BytesIO()
        Image.fromarray(chance.integers(0, 256, (40, 40 + n, 3), np.uint8)).save(buffer, "PNG")
        found.append(Subject(key=f"k{n}", data=buffer.getvalue(), captions=CAPTIONS))
    return found


@pytest.fixture
def given() -> list[Subject]:
    return subjects()


def image_truth(folder: Path, given: list[Subject]) -> np.ndarray:
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    with torch.inference_mode():
        pixels = torch.stack([preprocess(s.image) for s in given])
        return model.eval().encode_image(pixels, normalize=True).numpy()


def numbers(found: list[Any], name: str) -> list[float]:
    return [scores[name] for scores in found]


def test_similarity_is_open_clips_cosine(folder: Path, given: list[Subject]) -> None:
    import open_clip

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")([c["text"] for c in CAPTIONS])
    with torch.inference_mode():
        texts = model.eval().encode_text(tokens, normalize=True).numpy()
    truth = image_truth(folder, given) @ texts.T
    wanted = {"first": truth[:, 0], "best": truth.max(1), "mean": truth @ [0.75, 0.25]}
    for caption, values in wanted.items():
        scorer = Similarity(path=str(folder), caption=caption).build(micro_batch=4)
        np.testing.assert_allclose(numbers(scorer.scores(given), "similarity"), values, atol=3e-3)
    given[1].captions = ()
    found = Similarity(path=str(folder)).build(micro_batch=4).scores(given)
    assert found[1] == Unscored("no caption")
    assert numbers([found[0]], "similarity") == pytest.approx([truth[0, 0]], abs=3e-3)


def laion_head(width: int = WIDTH) -> torch.nn.Sequential:
    """As LAION's predictor is built: linear layers and dropouts, told apart by their place."""
    torch.manual_seed(1)
    linear, dropout = torch.nn.Linear, torch.nn.Dropout(0.2)
    return torch.nn.Sequential(
        linear(width, 24),
        dropout,
        linear(24, 16),
        dropout,
        linear(16, 8),
        dropout,
        linear(8, 4),
        linear(4, 1),
    ).eval()


def test_aesthetic_is_the_head_over_unit_vectors(folder: Path, given: list[Subject], tmp_path: Path) -> None:
    head = laion_head()
    state = {f"layers.{name}": tensor for name, tensor in head.state_dict().items()}
    save_file(state, tmp_path / "head.safetensors")
    with torch.inference_mode():
        truth = head(torch.from_numpy(image_truth(folder, given)))[:, 0].numpy()
    config = Aesthetic(path=str(folder), file=str(tmp_path / "head.safetensors"))
    found = numbers(config.build(micro_batch=4).scores(given), "aesthetic")
    np.testing.assert_allclose(found, truth, atol=2e-3)
    assert np.ptp(truth) > 1e-4

    # One layer is a linear probe, and a .pth is read if it is the file that is meant.
    probe = tmp_path / "probe.pth"
    torch.save({"weight": torch.ones(1, WIDTH), "bias": torch.zeros(1)}, probe)
    digest = hashlib.sha256(probe.read_bytes()).hexdigest()
    linear = Aesthetic(path=str(folder), file=str(probe), sha256=digest, name="probe").build(micro_batch=4)
    np.testing.assert_allclose(
        numbers(linear.scores(given), "probe"), image_truth(folder, given).sum(1), atol=2e-2
    )
    with pytest.raises(ValueError, match="give its sha256"):
        Aesthetic(path=str(folder), file=str(probe))
    with pytest.raises(ValueError, match="and not the 000"):
        Aesthetic(path=str(folder), file=str(probe), sha256="0" * 64).build()
    assert Aesthetic(path=str(folder), file=str(probe), sha256=digest).external().keys() == {"image", "head"}


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"weight": torch.ones(1, 7), "bias": torch.zeros(1)}, "takes vectors of 7 numbers"),
        ({"weight": torch.ones(2, WIDTH), "bias": torch.zeros(2)}, "do not lead from a vector to one"),
        ({"weight": torch.ones(1, WIDTH)}, "it has no bias"),
        ({"scale": torch.ones(1)}, "is no aesthetic head"),
    ],
)
def test_another_file_is_no_head(
    folder: Path, given: list[Subject], tmp_path: Path, tensors: dict[str, torch.Tensor], match: str
) -> None:
    save_file(tensors, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=match):
        Aesthetic(path=str(folder), file=str(tmp_path / "head.safetensors")).build().scores(given)


def test_an_image_is_embedded_once_and_company_changes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"weight": torch.ones(1, WIDTH), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    scorers = [
        Similarity(path=str(folder)).build(micro_batch=4),
        Aesthetic(path=str(folder), file=str(tmp_path / "head.safetensors")).build(micro_batch=4),
    ]
    seen = []
    encoder = clip.image_encoder(str(folder), 4, OpenClipImages(path=str(folder)).identity())
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda images: seen.append(len(images)) or encode(images))
    together = subjects()
    whole = [scorer.scores(together) for scorer in scorers]
    assert seen == [5]
    alone = subjects()
    assert [[scorer.scores([s])[0] for s in alone] for scorer in scorers] == whole
