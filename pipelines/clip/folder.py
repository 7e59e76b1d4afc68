"""open_clip's folders: where their parts lie, and one half of the model without the other."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pipelines.embedders.folder import local_folder

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
_OLD_TEXT = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
"""Beginnings of the text half's names in checkpoints that do not keep it as a part of its own."""


def open_clip() -> Any:
    """The library; nothing is asked of a hub by it.

    Raises:
        ValueError: it does not import.
    """
    # A config may name a tokenizer on a hub: asking there would hang where none can be reached.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"open_clip does not import ({reason}): it needs a torchvision from the same place as torch."
        ) from error
    return open_clip


@contextlib.contextmanager
def standard(path: str) -> Iterator[str]:
    """A `local-dir:` name of the folder that open_clip's functions take, while the block lasts.

    Raises:
        ValueError: there is not one config and one file of weights.
    """
    folder = local_folder(path)
    with tempfile.TemporaryDirectory(prefix="open-clip-") as target:
        yield f"local-dir:{_standard(folder, Path(target))}"


def settings_of(name: str) -> dict[str, Any]:
    """What the config of a `local-dir:` says: `model_cfg` and `preprocess_cfg`."""
    return json.loads((_place(name) / CONFIG).read_text(encoding="utf-8"))


def load(path: str) -> tuple[Any, Any]:
    """The whole model, in evaluation mode on the CPU, and the images' preprocessing."""
    library = open_clip()
    with standard(path) as name, _text_tower_at_hand(path):
        model, _, preprocess = library.create_model_and_transforms(name, force_custom_text=True)
    return model.eval(), preprocess


def load_half(path: str, half: Literal["visual", "text"]) -> Any:
    """The images' or the texts' half, in evaluation mode on the CPU; the other is neither built nor read."""
    open_clip()
    from open_clip.model import _build_text_tower, _build_vision_tower

    with standard(path) as name, _text_tower_at_hand(path):
        settings = settings_of(name)["model_cfg"]
        tensors = _tensors(_place(name) / WEIGHTS, half)
        if "multimodal_cfg" not in settings and tensors:
            config = dict(settings["vision_cfg" if half == "visual" else "text_cfg"])
            build: Any = _build_vision_tower if half == "visual" else _build_text_tower
            pretrained = "timm_model_pretrained" if half == "visual" else "hf_model_pretrained"
            tower = build(
                settings["embed_dim"], {**config, pretrained: False}, settings.get("quick_gelu", False)
            )
            expected = {key: tensor.shape for key, tensor in tower.state_dict().items()}
            if expected == {key: tensor.shape for key, tensor in tensors.items()}:
                tower.load_state_dict(tensors)
                return tower.eval()
    # Old or foreign names, other image sizes, captioning models: what open_clip itself makes of them.
    return getattr(load(path)[0], half)


def load_preprocess(path: str, size: Any) -> Any:
    """What open_clip does to an image before a network that takes `size` px, without building the network."""
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    with standard(path) as name:
        settings = settings_of(name)
    stated = merge_preprocess_dict(PreprocessCfg(), settings.get("preprocess_cfg", {}))
    return image_transform_v2(PreprocessCfg(**{**stated, "size": size}), is_train=False)


def load_tokenizer(path: str) -> Any:
    library = open_clip()
    with standard(path) as name:
        return library.get_tokenizer(name)


def batched(preprocess: Any) -> tuple[Any, Any]:
    """`preprocess` as what is done to each image, to uint8 [3, h, w], and what is then done to a batch of
    them; the identity where it does not end in the usual two steps. Their order of operations stays."""
    import torch
    from torchvision.transforms import Normalize

    steps: Sequence[Any] = getattr(preprocess, "transforms", ())
    if len(steps) < 2 or type(steps[-2]).__name__ not in ("MaybeToTensor", "ToTensor"):
        return preprocess, lambda pixels: pixels
    last = steps[-1]
    if not isinstance(last, Normalize):
        return preprocess, lambda pixels: pixels

    def single(image: Any) -> Any:
        import numpy as np

        for step in steps[:-2]:
            image = step(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    return single, lambda pixels: last(pixels.float().div(255))


def _place(name: str) -> Path:
    return Path(name.removeprefix("local-dir:"))


def _tensors(file: Path, half: str) -> dict[str, Any]:
    """The half's tensors under their own names, in fp32."""
    from safetensors import safe_open

    found = {}
    with safe_open(file, framework="pt") as weights:
        names = list(weights.keys())
        apart = any(name.startswith("text.") for name in names)
        for name in names:
            if name.startswith(f"{half}."):
                own = name.removeprefix(f"{half}.")
            elif half == "text" and not apart and name.startswith(_OLD_TEXT):
                own = name
            else:
                continue
            tensor = weights.get_tensor(name)
            found[own] = tensor.float() if tensor.is_floating_point() else tensor
    return found


def _standard(folder: Path, target: Path) -> Path:
    """The folder in open_clip's own layout: itself, or links in `target` to its files."""
    config = folder / CONFIG
    if not config.is_file():
        found = [f for f in sorted(folder.glob("*.json")) if "vision_cfg" in f.read_text(encoding="utf-8")]
        if len(found) != 1:
            raise ValueError(f"{folder} needs {CONFIG}, or one model config as JSON beside the safetensors.")
        config = found[0]
    weights = sorted(folder.glob("*.safetensors"))
    if (folder / WEIGHTS).is_file():
        weights = [folder / WEIGHTS]
    if len(weights) != 1:
        raise ValueError(f"{folder} has {len(weights)} safetensors files and none is called {WEIGHTS}.")

    settings = json.loads(config.read_text(encoding="utf-8"))
    settings = settings if "model_cfg" in settings else {"model_cfg": settings}
    text = settings["model_cfg"].get("text_cfg", {})
    tower = text_tower(folder, str(text.get("hf_model_name") or ""))
    if config.name == CONFIG and weights[0].name == WEIGHTS and tower is None:
        return folder

    for file in folder.iterdir():
        (target / file.name).symlink_to(file.resolve())
    if tower is not None:
        text["hf_model_name"] = str(tower.resolve())
    (target / CONFIG).unlink(missing_ok=True)
    (target / CONFIG).write_text(json.dumps(settings), encoding="utf-8")
    if weights[0].name != WEIGHTS:
        (target / WEIGHTS).symlink_to(weights[0].resolve())
        (target / weights[0].name).unlink()
    return target


def text_tower(folder: Path, name: str) -> Path | None:
    """Where in the folder the config of a text tower of the transformers library lies, if it is there.

    open_clip takes its name as a path from wherever the process happens to be, or else as one on a hub.
    """
    for place in (folder / name, folder) if name and not Path(name).is_absolute() else ():
        config = place / "config.json"
        if config.is_file() and "model_type" in json.loads(config.read_text(encoding="utf-8")):
            return place
    return None


@contextlib.contextmanager
def _text_tower_at_hand(path: str) -> Iterator[None]:
    """`ValueError` in place of the many lines that transformers says where a text tower is on no disk."""
    try:
        yield
    except OSError as error:
        folder = local_folder(path)
        raise ValueError(
            f"{folder} names a text tower that is not in it: put the tower's config.json in "
            f"{folder}/<its hf_model_name> ({str(error).splitlines()[0]})."
        ) from error
