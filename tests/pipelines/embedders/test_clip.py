from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.embedders import OpenClipImages, OpenClipTexts

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CAPTIONS = ["a red fox", "!", "a photo of a fox in the snow, looking back"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as open_clip writes it, of a tiny architecture with random weights."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    return folder


def reference(folder: Path) -> tuple[Any, Any, Any]:
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}")


def test_texts_agree_with_open_clip(folder: Path) -> None:
    model, _, tokenizer = reference(folder)
    with torch.inference_mode():
        truth = model.encode_text(tokenizer(CAPTIONS), normalize=True)
    embedder = OpenClipTexts(path=f"local-dir:{folder}").build(micro_batch=4)
    found = embedder.encode(CAPTIONS)
    assert (embedder.width, embedder.pooled_width) == (16, 32)
    np.testing.assert_allclose(np.stack([e.pooled for e in found]), truth, atol=2e-3)
    # Start, the tokens, end: the exclamation mark is a token, though its number is that of padding.
    assert [len(e.states) for e in found] == [5, 3, 13]
    # The last state, projected, is the pooled vector.
    projected = found[0].states[-1].astype(np.float32) @ model.text_projection.detach().numpy()
    np.testing.assert_allclose(projected / np.linalg.norm(projected), truth[0], atol=5e-3)
    assert embedder.encode(CAPTIONS[2:])[0].states.tobytes() == found[2].states.tobytes()


def test_images_agree_with_open_clip(folder: Path) -> None:
    model, preprocess, _ = reference(folder)
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (40, 48, 3), np.uint8)) for _ in range(3)]
    with torch.inference_mode():
        truth = model.encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
    embedder = OpenClipImages(path=str(folder)).build(micro_batch=2)
    found = embedder.encode(images)
    assert found.dtype == np.float16
    assert embedder.width == 32
    np.testing.assert_allclose(found, truth, atol=2e-3)
    assert embedder.encode(images[2:]).tobytes() == found[2:].tobytes()
    assert embedder.encode([]).shape == (0, 32)


def test_any_names_do_for_one_config_and_one_checkpoint(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    (tmp_path / "epoch_7.safetensors").write_bytes((folder / "open_clip_model.safetensors").read_bytes())
    found = OpenClipTexts(path=str(tmp_path)).build(micro_batch=4).encode(CAPTIONS)
    truth = OpenClipTexts(path=str(folder)).build(micro_batch=4).encode(CAPTIONS)
    assert [e.states.tobytes() for e in found] == [e.states.tobytes() for e in truth]
    (tmp_path / "epoch_8.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="2 safetensors files"):
        OpenClipTexts(path=str(tmp_path)).build()


def test_a_torchvision_that_does_not_load_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "open_clip":
            raise RuntimeError("operator torchvision::nms\ndoes not exist")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="torchvision from the same place as torch") as error:
        OpenClipImages(path=str(folder)).build()
    assert "\n" not in str(error.value)
