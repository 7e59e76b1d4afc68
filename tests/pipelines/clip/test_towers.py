"""Frozen towers with trained projections, against open_clip itself on the folder that they make."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from PIL import Image

from diffusion.config import OptimizationConfig
from diffusion.metrics.features import EfficientNetLite0
from pipelines import weights
from pipelines.clip.config import Towers
from pipelines.clip.towers import FrozenTowers, network_input
from pipelines.embedders import OpenClipImages, OpenClipTexts
from pipelines.models import SnapshotFolder
from pipelines.scoring import retrieval
from pipelines.stages.train_clip import TrainClip
from tests.pipelines import tiny

CAPTIONS = ["a red fox", "!", "Two  foxes\tin the snow, looking back at whoever takes their picture"]
OPTIMIZATION = OptimizationConfig(lr=1e-3, warmup=0, weight_decay=0.1, decayed="matrices")


def stage(**fields: Any) -> TrainClip:
    settings: dict[str, Any] = {
        "images": "images",
        "captions": "captions",
        "images_seen": 48,
        "batch": 12,
        "optimization": OPTIMIZATION,
        "checkpoint_seconds": None,
    }
    return TrainClip(**{**settings, **fields})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("line")
    return {"images": tiny.images(folder / "images"), "captions": tiny.captions(folder / "captions")}


@pytest.fixture(scope="module")
def snapshot(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> SnapshotFolder:
    return tiny.run(
        stage(model=Towers(width=48, image_head="mlp", text_head="mlp"), loss="sigmoid"),
        tiny.session(tmp_path_factory.mktemp("run"), inputs),
    )


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    sides = ((40, 48), (300, 231), (224, 224))
    return [Image.fromarray(random.integers(0, 255, (h, w, 3), np.uint8)) for h, w in sides]


def theirs(folder: Path) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """What open_clip makes of the pictures and the captions, from within the folder (no hub is asked), and
    how many tokens the captions have."""
    import open_clip as library

    open_clip: Any = library

    with contextlib.chdir(folder):
        model, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")
        tokenizer = open_clip.get_tokenizer("local-dir:.")
    with torch.inference_mode():
        images = model.eval().encode_image(torch.stack([preprocess(p) for p in pictures()]), normalize=True)
        tokens = tokenizer(CAPTIONS)
        return images, model.encode_text(tokens, normalize=True), (tokens != 0).sum(1).tolist()


def test_open_clip_opens_the_folder_wherever_it_lies(snapshot: SnapshotFolder, tmp_path: Path) -> None:
    shutil.copytree(snapshot.local(), tmp_path / "elsewhere")
    images, texts, lengths = theirs(tmp_path / "elsewhere")
    path = str(tmp_path / "elsewhere")
    ours = OpenClipImages(path=path).build(micro_batch=2).encode(pictures())
    said = OpenClipTexts(path=path).build(micro_batch=2).encode(CAPTIONS)
    # fp16 rounds a vector of length 1 by up to 2.5e-4 an element.
    np.testing.assert_allclose(ours, images, atol=5e-4)
    np.testing.assert_allclose(np.stack([one.pooled for one in said]), texts, atol=5e-4)
    assert [len(one.states) for one in said] == lengths


def test_what_is_trained_is_what_the_folder_gives(
    snapshot: SnapshotFolder, inputs: dict[str, Any], tmp_path: Path
) -> None:
    """The curve's last figures, from the features kept in training, are those of the folder's own vectors."""
    images, captions = [], []
    for name in ("00002",):
        for record in inputs["images"].read(name, columns=("image",)):
            images.append(Image.fromarray(tiny.picture(int(record.key[1:]))))
            captions.append(tiny.wordings(int(record.key[1:]))[0]["text"])
    path = str(snapshot.local())
    seen = OpenClipImages(path=path).build().encode(images)
    said = np.stack([one.pooled for one in OpenClipTexts(path=path).build().encode(captions)])
    last = snapshot.record["curve"][-1][1]
    found = retrieval.figures(seen, said, captions)
    assert {name: last[f"validation_{name}"] for name in found} == pytest.approx(found, abs=0.02)
    assert snapshot.record["held_out"] == {"split": "validation", "count": 6}


@pytest.mark.parametrize("config", [Towers(), Towers(width=24, text_head="linear"), Towers(image_head="mlp")])
def test_folded_projections_are_the_trained_ones(config: Towers) -> None:
    """Standardising before the first layer, or within it."""
    torch.manual_seed(0)
    towers = FrozenTowers(config, torch.device("cpu"), loss="softmax", temperature=0.07, seed=0)
    module = towers.module.eval()
    module.mean.copy_(torch.rand(1280))
    module.std.copy_(torch.rand(1280) + 0.5)
    module.text_scale.fill_(0.3)
    features, texts = torch.rand(3, 1280), torch.randn(3, 384)
    state = towers.weights(module)
    with torch.no_grad():
        images, said, *_ = module((features - module.mean) / module.std, texts)
    if config.image_head == "linear":
        found = features @ state["visual.head.proj.weight"].T + state["visual.head.proj.bias"]
    else:
        fc1, fc2 = (
            {k: state[f"visual.head.mlp.{name}.{k}"] for k in ("weight", "bias")} for name in ("fc1", "fc2")
        )
        hidden = torch.nn.functional.gelu(features @ fc1["weight"].T + fc1["bias"])
        found = hidden @ fc2["weight"].T + fc2["bias"]
    torch.testing.assert_close(torch.nn.functional.normalize(found, dim=-1), images, atol=1e-5, rtol=0)
    plain = texts @ state["text.proj.weight"].T if config.text_head == "linear" else texts
    torch.testing.assert_close(torch.nn.functional.normalize(plain, dim=-1), said, atol=1e-5, rtol=0)


def test_timms_network_is_ours() -> None:
    import timm

    from pipelines.clip.towers import MEAN, STD, timm_state

    state = weights.load("efficientnet-lite0")
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    network.load_state_dict(timm_state(state))
    pixels = torch.stack([network_input(picture) for picture in pictures()[:2]])
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
    with torch.inference_mode():
        truth, found = network((pixels - mean) / std), EfficientNetLite0(state).features(pixels)
    torch.testing.assert_close(found, truth, atol=1e-4, rtol=1e-4)
    assert truth.std() > 0.1


class Means:
    """In place of the network: cheap features that tell images apart."""

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3)).repeat(1, 427)[:, :1280]


def towers() -> FrozenTowers:
    made = FrozenTowers.__new__(FrozenTowers)
    made.device, made._network = torch.device("cpu"), Means()  # pyright: ignore[reportAttributeAccessIssue]
    return made


def decode(number: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8))


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    torch.save(towers()._features(decode, 11, flip=False), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_share_out_the_features(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_rank, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    alone = towers()._features(decode, 11, flip=False)
    assert alone.shape == (11, 1280)
    assert alone[:, 0].tolist() == pytest.approx([20 * n / 255 for n in range(11)])
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone)


def test_a_width_that_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="384"):
        Towers(width=128, text_head="none")
    with pytest.raises(ValueError, match="dropout"):
        Towers(dropout=1.0)
