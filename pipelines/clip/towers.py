"""Frozen towers with trained projections, which open_clip knows as one of its models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion import randomness
from diffusion.metrics.features import SIZE, EfficientNetLite0
from pipelines import weights
from pipelines.clip.trainable import BIAS, MAX_SCALE, Images
from pipelines.embedders.embedding import by_length
from pipelines.embedders.minilm import bert
from pipelines.shards import canonical

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipelines.clip.config import Towers

IMAGE_WIDTH, TEXT_WIDTH = 1280, 384
MICRO_BATCH = 8
"""Images a forward call of their tower, which the last is padded to."""
TEXTS = 32
"""Texts a forward call of theirs."""
CONTEXT = 77
"""Tokens of a text; what is longer is cut."""
TEXT_TOWER = "sentence-transformers/all-MiniLM-L6-v2"
"""Its name on the hub, and the folder of its config in the snapshot: open_clip finds it by either."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Projections(nn.Module):
    """Both heads. Image features are brought to mean 0 and deviation 1, texts to a length of about 1, by
    constants that are folded into the first layers in the end."""

    mean: Tensor
    std: Tensor
    text_scale: Tensor

    def __init__(self, config: Towers, *, loss: str, temperature: float) -> None:
        super().__init__()
        width = config.width
        if config.image_head == "linear":
            self.image = nn.Sequential(nn.Linear(IMAGE_WIDTH, width))
        else:
            self.image = nn.Sequential(
                nn.Linear(IMAGE_WIDTH, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
            )
        hidden = (TEXT_WIDTH + width) // 2
        linear = [nn.Linear(TEXT_WIDTH, width, bias=False)]
        two = [nn.Linear(TEXT_WIDTH, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width, bias=False)]
        self.text = nn.Sequential(*{"none": [], "linear": linear, "mlp": two}[config.text_head])
        self.logit_scale = nn.Parameter(torch.tensor(1 / temperature).log())
        self.logit_bias = nn.Parameter(torch.tensor(BIAS)) if loss == "sigmoid" else None
        self.register_buffer("mean", torch.zeros(IMAGE_WIDTH))
        self.register_buffer("std", torch.ones(IMAGE_WIDTH))
        self.register_buffer("text_scale", torch.ones(()))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Features, the images' standardised already, for these may lack some (dropout)."""
        scale = self.logit_scale.exp().clamp(max=MAX_SCALE)
        one, other = self.image(images), self.text(texts * self.text_scale)
        return F.normalize(one, dim=-1), F.normalize(other, dim=-1), scale, self.logit_bias


class FrozenTowers:
    """A `Trainable`."""

    def __init__(
        self, config: Towers, device: torch.device, *, loss: str, temperature: float, seed: int
    ) -> None:
        self.config, self.device, self._seed = config, device, seed
        # As the snapshot will have them: what is trained on is what will be seen.
        self._vision, self._language = (
            {k: t.half().float() for k, t in weights.load(name).items()}
            for name in ("efficientnet-lite0", "minilm")
        )
        self._network = EfficientNetLite0(self._vision).to(device)
        self._on_device = {k: t.to(device) for k, t in self._language.items()}
        self.module = Projections(config, loss=loss, temperature=temperature).to(device)
        self._known = False

    def images(self, decode: Callable[[int], Image], count: int, *, flips: bool) -> Images:
        """Their features, and the mirrored ones', computed at once; the first call's set the scale."""
        table = torch.stack([self._features(decode, count, flip) for flip in ((False, True)[: 1 + flips])])
        if not self._known:
            self.module.mean.copy_(table[0].mean(0))
            self.module.std.copy_(table[0].std(0, correction=0).clamp(min=1e-4))
            self._known = True
        table = (table - self.module.mean.cpu()) / self.module.std.cpu()

        def take(positions: np.ndarray, rows: np.ndarray, mirrored: np.ndarray) -> Tensor:
            found = table[torch.from_numpy(mirrored.astype(np.int64)), torch.from_numpy(rows)]
            if len(positions) and self.config.dropout:
                kept = [
                    randomness.generator(self._seed, p, "features").random(IMAGE_WIDTH, np.float32)
                    for p in positions.tolist()
                ]
                mask = torch.from_numpy(np.stack(kept)) >= self.config.dropout
                found = found * mask / (1 - self.config.dropout)
            return found

        return take

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Means over MiniLM's last states."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(weights.packaged("minilm") / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(CONTEXT)
        tokens = [encoding.ids for encoding in tokenizer.encode_batch([_clean(text) for text in texts])]
        found = torch.empty(len(texts), TEXT_WIDTH)
        for length, rows in by_length([len(t) for t in tokens], CONTEXT).items():
            for start in range(0, len(rows), TEXTS):
                run = rows[start : start + TEXTS]
                ids = torch.zeros(TEXTS, length, dtype=torch.int64)
                for n, row in enumerate([*run, *run[-1:] * (TEXTS - len(run))]):
                    ids[n, : len(tokens[row])] = torch.tensor(tokens[row])
                ids = ids.to(self.device)
                with torch.no_grad():
                    states = bert(self._on_device, ids, ids != 0, heads=12)
                    weight = (ids != 0).unsqueeze(-1).to(states.dtype)
                    means = (states * weight).sum(1) / weight.sum(1)
                found[run] = means[: len(run)].cpu()
        if self.module.text_scale == 1:
            self.module.text_scale.copy_(1 / found.square().sum(1).mean().sqrt())
        return found

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        assert isinstance(module, Projections)
        found = {f"visual.trunk.{name}": t for name, t in timm_state(self._vision).items()}
        found |= {
            f"text.transformer.{name}": t
            for name, t in self._language.items()
            if not name.startswith("pooler.") and not name.endswith("position_ids")
        }
        found["logit_scale"] = module.logit_scale.detach()
        if module.logit_bias is not None:
            found["logit_bias"] = module.logit_bias.detach()
        return found | self._heads(module)

    def files(self) -> dict[str, bytes]:
        place = weights.packaged("minilm")
        settings = {"model_cfg": self._settings(), "preprocess_cfg": {"mean": MEAN, "std": STD}}
        return {
            "open_clip_config.json": canonical(settings),
            f"{TEXT_TOWER}/config.json": (place / "config.json").read_bytes(),
            "tokenizer.json": (place / "tokenizer.json").read_bytes(),
            "tokenizer_config.json": (place / "tokenizer_config.json").read_bytes(),
        }

    def _settings(self) -> dict[str, Any]:
        heads = {"linear": {"timm_proj": "linear", "timm_proj_bias": True}}
        heads["mlp"] = {"timm_proj": "mlp", "timm_proj_bias": True}
        text: dict[str, Any] = {
            "hf_model_name": TEXT_TOWER,
            "hf_tokenizer_name": TEXT_TOWER,
            "hf_model_pretrained": False,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": None if self.config.text_head == "none" else self.config.text_head,
            "context_length": CONTEXT,
        }
        vision = {"timm_model_name": "tf_efficientnet_lite0", "timm_model_pretrained": False}
        vision |= {"timm_pool": "avg", "image_size": SIZE, **heads[self.config.image_head]}
        bias = {"init_logit_bias": BIAS} if self.module.logit_bias is not None else {}
        return {"embed_dim": self.config.width, "vision_cfg": vision, "text_cfg": text, **bias}

    def _heads(self, module: Projections) -> dict[str, Tensor]:
        """The projections under open_clip's names, with the constants folded in."""
        state = {k: t.detach().cpu() for k, t in module.state_dict().items()}
        weight = state["image.0.weight"] / state["std"]
        folded = {"weight": weight, "bias": state["image.0.bias"] - weight @ state["mean"]}
        if self.config.image_head == "linear":
            found = {f"visual.head.proj.{name}": t for name, t in folded.items()}
        else:
            found = {f"visual.head.mlp.fc1.{name}": t for name, t in folded.items()}
            found |= {f"visual.head.mlp.fc2.{name}": state[f"image.2.{name}"] for name in ("weight", "bias")}
        if self.config.text_head != "none":
            name = "text.proj.weight" if self.config.text_head == "linear" else "text.proj.0.weight"
            found[name] = state["text.0.weight"] * state["text_scale"]
        if self.config.text_head == "mlp":
            found["text.proj.2.weight"] = state["text.2.weight"]
        return found

    def _features(self, decode: Callable[[int], Image], count: int, flip: bool) -> Tensor:
        """fp32 [count, 1280]; each rank makes a part of them."""
        rank, world = _place()
        size = -(-count // world)
        mine = range(min(count, rank * size), min(count, (rank + 1) * size))
        found = torch.zeros(size, IMAGE_WIDTH)
        for start in range(mine.start, mine.stop, MICRO_BATCH):
            rows = list(range(start, min(start + MICRO_BATCH, mine.stop)))
            padded = [*rows, *rows[-1:] * (MICRO_BATCH - len(rows))]
            pixels = torch.stack([network_input(decode(row)) for row in padded]).to(self.device)
            with torch.no_grad():
                made = self._network.features(pixels.flip(-1) if flip else pixels)
            found[start - mine.start : start - mine.start + len(rows)] = made[: len(rows)].cpu()
        if world == 1:
            return found[:count]
        import torch.distributed as dist

        found = found.to(self.device) if dist.get_backend() == "nccl" else found
        parts = [torch.empty_like(found) for _ in range(world)]
        dist.all_gather(parts, found)
        return torch.cat(parts)[:count].cpu()


def network_input(image: Image) -> Tensor:
    """As open_clip prepares it, before mean and deviation: the shorter side to 224 px, the middle of it;
    [3, 224, 224] in [0, 1]."""
    from PIL import Image as Pillow

    width, height = image.size
    if (width, height) != (SIZE, SIZE):
        across = SIZE if width <= height else int(SIZE * width / height)
        down = SIZE if height <= width else int(SIZE * height / width)
        image = image.resize((across, down), Pillow.Resampling.BICUBIC)
        left, top = round((across - SIZE) / 2), round((down - SIZE) / 2)
        image = image.crop((left, top, left + SIZE, top + SIZE))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def timm_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of `efficientnet-lite-pytorch`'s Lite0 under timm's names (`tf_efficientnet_lite0`),
    without the classifier."""
    places = _timm_places()
    norms = {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
    convolutions = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("_fc.") or name.endswith("num_batches_tracked"):
            continue
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if match is None:
            layer, _, parameter = name.partition(".")
            target = top[layer]
        else:
            number, layer, parameter = int(match[1]), match[2], match[3]
            target = f"blocks.{places[number]}."
            if number == 0:  # the only one that does not expand: its layers are one fewer
                target += {
                    "_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"
                }[layer]  # fmt: skip
            else:
                target += norms.get(layer) or convolutions[layer]
        found[f"{target}.{parameter}"] = tensor
        if parameter == "running_var":
            found[f"{target}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    return found


def _timm_places() -> list[str]:
    """Block number -> timm's "stage.block"."""
    repeats = (1, 2, 2, 3, 3, 4, 1)
    return [f"{stage}.{n}" for stage, count in enumerate(repeats) for n in range(count)]


def _clean(text: str) -> str:
    """As open_clip's tokenizer does before its words are cut."""
    return " ".join(text.split())


def _place() -> tuple[int, int]:
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()
