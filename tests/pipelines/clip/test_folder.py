"""One half of a checkpoint against the whole model that open_clip builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines.clip import folder

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def checkpoint(place: Path, model: Any, config: dict[str, Any]) -> str:
    from safetensors.torch import save_file

    place.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, place / folder.WEIGHTS)
    (place / folder.CONFIG).write_text(json.dumps(config))
    return str(place)


@pytest.mark.parametrize("apart", [True, False])
def test_a_half_is_that_of_the_whole(apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the text half's names apart, as new checkpoints have them, or among the others."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**TINY) if apart else open_clip.CLIP(**TINY)
    stated = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bilinear", "size": 99}
    path = checkpoint(tmp_path / "it", model, {"model_cfg": TINY, "preprocess_cfg": stated})
    whole, preprocess = folder.load(path)
    monkeypatch.setattr(folder, "load", lambda path: pytest.fail("the whole model was built"))
    visual, text = folder.load_half(path, "visual"), folder.load_half(path, "text")
    picture = Image.radial_gradient("L").resize((50, 40))
    tokens = folder.load_tokenizer(path)(["a fox"])
    single, batch = folder.batched(folder.load_preprocess(path, visual.image_size))
    with torch.inference_mode():
        expected = preprocess(picture)[None]
        assert torch.equal(batch(single(picture)[None]), expected)
        assert single(picture).dtype == torch.uint8
        assert torch.equal(visual(expected), whole.encode_image(expected))
        assert torch.equal(text(tokens), whole.encode_text(tokens))


def test_a_text_tower_that_is_on_no_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    text = {"hf_model_name": "nobody/nothing", "context_length": 8}
    config = {"model_cfg": {**TINY, "text_cfg": text}}
    path = checkpoint(tmp_path / "it", open_clip.CLIP(**TINY), config)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"config\.json") as error:
        folder.load_half(path, "text")
    assert "\n" not in str(error.value)
