"""What makes a folder in open_clip's format of a CoCa's weights, and a CoCa to begin training with."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.clip import folder as clip
from pipelines.coca.config import NamedCoCa, SmallCoCa, TrainedCoCa
from pipelines.coca.loading import Words, load, load_tokenizer, model_config
from pipelines.embedders.folder import local_folder
from pipelines.shards import canonical

SPECIAL = ("<pad>", "<start>", "<end>")
_HALVES = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
_TOKENIZERS = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "spiece", "sentencepiece")
"""Beginnings of the names of tokenizers' files."""


def files_of(config: SmallCoCa | NamedCoCa | TrainedCoCa, captions: Iterable[str]) -> dict[str, bytes]:
    """All of the folder but the weights.

    Args:
        captions: what `small` makes its word pieces of; others ask for none.

    Raises:
        ValueError: there is no such config, or it is not a CoCa's.
    """
    if isinstance(config, TrainedCoCa):
        folder = local_folder(config.path)
        settings: dict[str, Any] = {"model_cfg": model_config(folder)}
        with contextlib.suppress(FileNotFoundError):
            found = json.loads((folder / clip.CONFIG).read_text(encoding="utf-8"))
            settings = {**settings, "preprocess_cfg": found.get("preprocess_cfg", {})}
        tokenizer = [f for f in sorted(folder.iterdir()) if f.is_file() and f.name.startswith(_TOKENIZERS)]
        return {clip.CONFIG: canonical(settings), **{file.name: file.read_bytes() for file in tokenizer}}
    model = config.settings()
    if isinstance(config, NamedCoCa):
        if model.get("text_cfg", {}).get("hf_model_name"):
            raise ValueError(
                f"{config.summary} has a text tower of the transformers library, which does not write: "
                "take a CoCa whose text tower is open_clip's own, such as coca_ViT-B-32."
            )
        return {clip.CONFIG: canonical({"model_cfg": model, "preprocess_cfg": {}})}
    tokenizer_files, count = word_pieces(captions, config.pieces)
    for part in ("text_cfg", "multimodal_cfg"):
        model[part]["vocab_size"] = count
    return {clip.CONFIG: canonical({"model_cfg": model, "preprocess_cfg": _HALVES}), **tokenizer_files}


def word_pieces(captions: Iterable[str], most: int) -> tuple[dict[str, bytes], int]:
    """A tokenizer's files and the number of its pieces: in lower case, from single bytes up, so that every
    text has pieces. Equal captions, in any order, give equal bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=most,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    made.train_from_iterator(sorted(captions), trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<start>",
        "eos_token": "<end>",
        "clean_up_tokenization_spaces": False,
    }
    files = {"tokenizer.json": made.to_str().encode(), "tokenizer_config.json": canonical(settings)}
    return files, made.get_vocab_size()


def begun(
    config: SmallCoCa | NamedCoCa | TrainedCoCa, files: Mapping[str, bytes]
) -> tuple[nn.Module, Any, Words]:
    """The model before its first step on the CPU, in training mode, what it does to an image first, and its
    words. Random weights are torch's: seed it."""
    if isinstance(config, TrainedCoCa):
        model, preprocess, words = load(config.path)
        return model.train(), preprocess, words
    library = clip.open_clip()
    settings = json.loads(files[clip.CONFIG])
    model = library.CoCa(**{k: v for k, v in settings["model_cfg"].items() if k != "custom_text"})
    _initialise(model.text_decoder)
    with written(files) as folder:
        tokenizer = load_tokenizer_of(folder, settings["model_cfg"])
    words = Words(
        tokenizer,
        context=int(model.context_length),
        vocabulary=int(model.text_decoder.text_projection.shape[1]),
        where=config.summary,
    )
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    stated = merge_preprocess_dict(PreprocessCfg(), settings["preprocess_cfg"])
    size = settings["model_cfg"]["vision_cfg"]["image_size"]
    preprocess = image_transform_v2(PreprocessCfg(**{**stated, "size": size}), is_train=False)
    return model.train(), preprocess, words


def load_tokenizer_of(folder: Path, settings: Mapping[str, Any]) -> Any:
    """open_clip's tokenizer for a folder that need not have weights."""
    if not (folder / clip.WEIGHTS).exists():
        return clip.open_clip().get_tokenizer(f"local-dir:{folder}")
    return load_tokenizer(str(folder), dict(settings))


@contextlib.contextmanager
def written(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A folder with these files, while the block lasts."""
    with tempfile.TemporaryDirectory(prefix="coca-") as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        yield Path(folder)


def _initialise(decoder: Any) -> None:
    """As open_clip's `MultimodalTransformer.init_parameters` means to: it is never called, fails where it is,
    and leaves the projection onto words as memory happened to be."""
    width, layers = decoder.width, decoder.layers
    for block in (*decoder.resblocks, *decoder.cross_attn):
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
    with torch.no_grad():
        nn.init.normal_(decoder.text_projection, std=width**-0.5)
