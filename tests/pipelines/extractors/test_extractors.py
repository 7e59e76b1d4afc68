from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.extractors import EfficientNetMaps, OpenClipMaps, OwnNetwork, TransformerMaps


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_efficientnets_maps_shrink_with_depth(images: torch.Tensor) -> None:
    layers = {"half": (16, 112), "quarter": (24, 56), "eighth": (40, 28), "sixteenth": (112, 14)}
    for layer, (channels, side) in layers.items():
        found = EfficientNetMaps(layer=layer).build()(images)  # type: ignore[arg-type]
        assert found.shape == (3, channels, side, side)
    assert EfficientNetMaps(layer="pooled").build()(images).shape == (3, 1280)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["vit", "dinov2", "convnext", "siglip"])
def test_transformers_give_a_vector_for_each_patch(kind: str, images: torch.Tensor, tmp_path: Path) -> None:
    import transformers

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    if kind == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**small, image_size=32, patch_size=8))
    elif kind == "dinov2":
        settings = transformers.Dinov2WithRegistersConfig(**small, image_size=32, patch_size=8)
        model = transformers.Dinov2WithRegistersModel(settings)
    elif kind == "siglip":
        model = transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(**small, image_size=32, patch_size=8)
        )
    else:
        settings = transformers.ConvNextConfig(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], image_size=64)
        model = transformers.ConvNextModel(settings)
    model.eval().save_pretrained(tmp_path)
    config = TransformerMaps(path=str(tmp_path))
    found = config.build()(images)
    side = 2 if kind == "convnext" else 4
    assert found.shape == (3, 16, side, side)
    # the last patch of the map is the last token of the network itself
    from diffusion.metrics.features import resize

    size = 64 if kind == "convnext" else 32
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    seen = (resize(images, size) - mean[:, None, None]) / std[:, None, None]
    states = model(pixel_values=seen).last_hidden_state
    last = states[..., -1, -1] if states.ndim == 4 else states[:, -1]
    torch.testing.assert_close(found[..., -1, -1], last, rtol=1e-4, atol=1e-5)
    pooled = TransformerMaps(path=str(tmp_path), layer="pooled").build()(images)
    assert pooled.shape == (3, 16)
    assert TransformerMaps(path=str(tmp_path), layer="pooled").identity() == config.identity()


@torch.inference_mode()
def test_open_clips_tower_gives_its_patches(images: torch.Tensor, tmp_path: Path) -> None:
    import json

    import open_clip
    from safetensors.torch import save_file

    settings = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    model = open_clip.CustomTextCLIP(**settings).eval()  # type: ignore[arg-type]
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    assert OpenClipMaps(path=str(tmp_path)).build()(images).shape == (3, 32, 4, 4)
    assert OpenClipMaps(path=str(tmp_path), layer="pooled").build()(images).shape == (3, 16)
    with pytest.raises(ValueError, match="name a `path`"):
        OpenClipMaps().identity()


@torch.inference_mode()
def test_a_users_own_network(images: torch.Tensor, tmp_path: Path) -> None:
    source = tmp_path / "own_networks_here.py"
    source.write_text(
        "import torch\n"
        "def pool():\n    return torch.nn.AvgPool2d(8)\n"
        "def flat():\n    return torch.nn.Flatten(0)\n"
        "def broken():\n    raise OSError('no weights')\n"
    )
    config = OwnNetwork(function="own_networks_here:pool", path=str(tmp_path))
    assert torch.equal(config.build()(images), torch.nn.functional.avg_pool2d(images, 8))
    before = config.identity()
    source.write_text(source.read_text() + "# changed\n")
    assert config.identity() != before
    with pytest.raises(ValueError, match="must give"):
        OwnNetwork(function="own_networks_here:flat", path=str(tmp_path)).build()(images)
    with pytest.raises(ValueError, match="OSError: no weights"):
        OwnNetwork(function="own_networks_here:broken", path=str(tmp_path)).build()
    with pytest.raises(ValueError, match="there is no module nowhere"):
        OwnNetwork(function="nowhere:pool", path=str(tmp_path)).identity()
    with pytest.raises(ValueError, match="package.module:name"):
        OwnNetwork(function="nowhere")
