from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.metrics.features import EfficientNetLite0
from diffusion.metrics.lpips import LPIPSHED, LPIPSLoss
from pipelines import weights
from pipelines.training.perceptual import (
    EfficientNetPerceptual,
    HedPerceptual,
    LpipsPerceptual,
    PerceptualConfig,
    TransformersPerceptual,
)


def picture(size: int = 32) -> Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([x, y, (3 * x + y) % size]).float()[None] / (size - 1) * 2 - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vision transformer as transformers saves one."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("vit")
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    ViTModel(ViTConfig(image_size=16, patch_size=4, **sizes), add_pooling_layer=False).save_pretrained(made)
    told = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (made / "preprocessor_config.json").write_text(json.dumps(told))
    return made


def configs(folder: Path) -> list[PerceptualConfig]:
    own = TransformersPerceptual(path=str(folder))
    return [HedPerceptual(blocks=1), LpipsPerceptual(), EfficientNetPerceptual(), own]


def test_each_is_zero_for_equals_grows_with_distortion_and_can_be_descended(folder: Path) -> None:
    image = picture()
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    for config in configs(folder):
        network = config.build()
        with torch.no_grad():
            found = [network(image + scale * noise, image).item() for scale in (0.0, 0.1, 0.8)]
        assert found[0] == pytest.approx(0, abs=1e-5), config
        assert found == sorted(found), config
        assert found[2] > 3 * found[1], config
        # black images have features of nothing, whose direction has no derivative
        black = torch.full_like(image, -1.0).requires_grad_()
        network(black, image).sum().backward()
        assert black.grad is not None
        assert black.grad.isfinite().all(), config
        assert black.grad.abs().sum() > 0, config
        assert all(p.grad is None for p in network.parameters()), config


def test_lpips_trains_by_what_it_measures() -> None:
    given = weights.load("hed"), weights.load("lpips-heads")
    image = picture()
    other = (image + 0.2 * image.flip(3)).clamp(-1, 1)
    torch.testing.assert_close(LPIPSLoss(*given)(other, image), LPIPSHED(*given)(other, image))


def test_maps_of_efficientnet_lead_to_its_features() -> None:
    """Each is the output of a block, at the side that it says, and depends on nothing behind it."""
    network = EfficientNetLite0()
    maps = network.maps(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4)]


def test_a_network_of_ones_own_sees_what_it_was_trained_on(folder: Path) -> None:
    """Beside transformers itself: resized, scaled by the folder's mean and deviation, hidden states."""
    from transformers import ViTModel

    features: Any = TransformersPerceptual(path=str(folder)).build().features
    image = picture(16)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    scaled = ((image + 1) / 2 - mean.reshape(1, 3, 1, 1)) / std.reshape(1, 3, 1, 1)
    model = ViTModel.from_pretrained(folder, add_pooling_layer=False)
    with torch.no_grad():
        states = model(pixel_values=scaled, output_hidden_states=True).hidden_states
        found = features(image)
    assert len(found) == 4
    for n, one in enumerate(found, 1):
        torch.testing.assert_close(one[..., 0].transpose(1, 2), states[n])
    assert [tuple(m.shape) for m in features(picture(48))] == [tuple(m.shape) for m in found]


def test_what_was_in_a_loss_has_a_name_and_a_digest(folder: Path) -> None:
    named = [sorted(config.networks()) for config in configs(folder)]
    assert named == [["hed"], ["hed", "lpips-heads"], ["efficientnet-lite0"], ["transformers"]]
    before = TransformersPerceptual(path=str(folder)).networks()
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0, 0, 0]}))
    assert TransformersPerceptual(path=str(folder)).networks() != before
