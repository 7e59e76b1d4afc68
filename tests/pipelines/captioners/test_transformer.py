from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.captioners import ImageToText, Subject

WORDS = ["a", "red", "fox", "runs", "over", "the", "hill", "and", "blue", "sky", "with", "cat", "house"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
CHAT = (
    "{% for m in messages %}user : {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %} {{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    " assistant :"
)


def tokenizer(folder: Path, *more: str) -> Any:
    from transformers import BertTokenizerFast

    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS, *more]))
    return BertTokenizerFast(
        vocab=str(folder / "vocab.txt"), additional_special_tokens=[word for word in more if "<" in word]
    )


def saved(model: Any, folder: Path, *, seed: int, scale: float) -> None:
    """Random, but far from zero, and of seeds with which what is seen decides what is said."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(0, scale)
    model.save_pretrained(folder)


def vit_gpt2(folder: Path) -> None:
    from transformers import (
        GenerationConfig,
        GPT2Config,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    decoder = GPT2Config(
        vocab_size=len(SPECIAL + WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=2,
        eos_token_id=3, add_cross_attention=True, is_decoder=True,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VISION), decoder)
    model = VisionEncoderDecoderModel(config)
    # As a folder on a hub may say: sampled, hot. What it says of chance does not count.
    model.generation_config = GenerationConfig(
        decoder_start_token_id=2, pad_token_id=0, eos_token_id=3, bos_token_id=2, do_sample=True,
        temperature=5.0, top_k=7,
    )  # fmt: skip
    saved(model, folder, seed=9, scale=0.6)
    tokenizer(folder).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def blip(folder: Path) -> None:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    text = {
        "vocab_size": len(SPECIAL + WORDS), "hidden_size": 16, "encoder_hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3,
        "pad_token_id": 0,
    }  # fmt: skip
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=VISION))
    saved(model, folder, seed=27, scale=1.0)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(images, tokenizer(folder)).save_pretrained(folder)


def git(folder: Path) -> None:
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    config = GitConfig(
        vision_config=VISION, vocab_size=len(SPECIAL + WORDS), hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=64, bos_token_id=2,
        eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    saved(GitForCausalLM(config), folder, seed=27, scale=1.0)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    GitProcessor(images, tokenizer(folder)).save_pretrained(folder)


def llava(folder: Path) -> None:
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    words = tokenizer(folder, "<image>", "user", "assistant", ":")
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    place = words.convert_tokens_to_ids("<image>")
    vision = CLIPVisionConfig(**VISION, projection_dim=16)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=place)
    saved(LlavaForConditionalGeneration(config), folder, seed=34, scale=1.0)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)  # fmt: skip


def qwen2_vl(folder: Path) -> None:
    """Of as many tokens as an image is large: images of several sizes do not fit into one batch."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    pads = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    words = tokenizer(folder, *pads, "user", "assistant", ":")
    text = {
        "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    patches = {"patch_size": 4, "temporal_patch_size": 2}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, **patches}
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    places = dict(zip(names, words.convert_tokens_to_ids(pads), strict=True))
    config = Qwen2VLConfig(text_config=text, vision_config={**vision, "spatial_merge_size": 2}, **places)
    saved(Qwen2VLForConditionalGeneration(config), folder, seed=3, scale=0.8)
    images = Qwen2VLImageProcessor(**patches, merge_size=2, min_pixels=64, max_pixels=4096)
    videos = Qwen2VLVideoProcessor(**patches, merge_size=2)
    chat = CHAT.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    Qwen2VLProcessor(images, words, videos, chat_template=chat).save_pretrained(folder)


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "vit_gpt2": (vit_gpt2, ""),
    "blip": (blip, ""),
    "git": (git, "a red"),
    "llava": (llava, "a red fox"),
    "qwen2_vl": (qwen2_vl, "a red fox"),
}


class Folders(dict[str, Path]):
    """Of each kind, saved when it is first asked for."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __missing__(self, name: str) -> Path:
        self[name] = self.place / name
        self[name].mkdir()
        KINDS[name][0](self[name])
        return self[name]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("models"))


def image(n: int) -> Image.Image:
    generator = np.random.default_rng(n)
    # Of large plain fields: noise looks alike to any network.
    fields = generator.integers(0, 255, (2 + n % 3, 3, 3), np.uint8)
    return Image.fromarray(fields).resize((32 + 8 * (n % 3), 40), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    found = []
    for n in range(9):
        buffer = io.BytesIO()
        image(n).save(buffer, "PNG")
        found.append(Subject(fields={}, image=buffer.getvalue()))
    return found


def reference(folder: Path, prompt: str, beams: int) -> list[str]:
    """transformers itself, an image at a time."""
    from transformers import (
        AutoImageProcessor,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
    )

    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    text, found = AutoTokenizer.from_pretrained(folder), []
    for n in range(9):
        if prompt:
            processor = AutoProcessor.from_pretrained(folder)
            place = {"llava": "<image>", "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>"}
            said = f"user : {place[folder.name]} {prompt} assistant :" if folder.name in place else prompt
            inputs = dict(processor(images=image(n), text=said, return_tensors="pt"))
            inputs.pop("token_type_ids", None)
        else:
            inputs = dict(AutoImageProcessor.from_pretrained(folder)(images=image(n), return_tensors="pt"))
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=12, num_beams=beams, do_sample=False)[0]
        start = inputs["input_ids"].shape[1] if prompt else 0
        found.append(" ".join(text.decode(tokens[start:], skip_special_tokens=True).split()))
    return found


@pytest.mark.parametrize(
    ("name", "beams"),
    [
        ("vit_gpt2", 3),
        ("qwen2_vl", 1),
        pytest.param("vit_gpt2", 1, marks=pytest.mark.slow),
        pytest.param("blip", 1, marks=pytest.mark.slow),
        pytest.param("git", 1, marks=pytest.mark.slow),
        pytest.param("llava", 1, marks=pytest.mark.slow),
        pytest.param("llava", 3, marks=pytest.mark.slow),
    ],
)
def test_captions_are_what_the_library_says_of_each_image_alone(
    name: str, beams: int, folders: Folders, subjects: list[Subject]
) -> None:
    prompt = KINDS[name][1]
    config = ImageToText(
        path=str(folders[name]), prompt=prompt, max_tokens=12, beams=beams, micro_batch=2, weight=2.0
    )
    captioner = config.build()
    answers = captioner.answers(subjects)
    truth = reference(folders[name], prompt, beams)
    for answer, words in zip(answers, truth, strict=True):
        (caption,) = answer.captions
        assert (caption.weight, caption.source) == (2.0, "transformers")
        assert " ".join(caption.text.split()) == words
    assert len(set(truth)) > 2  # else nothing would be shown
    assert [captioner.answers([subject])[0] for subject in subjects] == answers
    broken = Subject(fields={}, image=b"no image")
    assert captioner.answers([broken, *subjects[::-1]])[1:] == answers[::-1]
    assert captioner.answers([broken])[0].reject == "unreadable"


@pytest.mark.slow
def test_blip_continues_what_it_is_given(folders: Folders, subjects: list[Subject]) -> None:
    config = ImageToText(path=str(folders["blip"]), prompt="the house", max_tokens=5)
    assert all(a.captions[0].text.startswith("the house ") for a in config.build().answers(subjects))


def test_the_folders_contents_decide_and_not_its_place(folders: Folders, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "elsewhere"
    shutil.copytree(folders["vit_gpt2"], copy)
    one, two = ImageToText(path=str(folders["vit_gpt2"])), ImageToText(path=str(copy))
    assert one.external() == two.external()
    assert one.external() != ImageToText(path=str(folders["qwen2_vl"])).external()
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert one.external() != two.external()


def test_no_code_and_no_pickle_of_a_folder_is_run(folders: Folders, tmp_path: Path) -> None:
    import shutil

    canary = tmp_path / "canary"
    folder = tmp_path / "hostile"
    shutil.copytree(folders["vit_gpt2"], folder)
    (folder / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    settings = json.loads((folder / "config.json").read_text())
    evil = dict.fromkeys(("AutoConfig", "AutoModelForImageTextToText"), "modeling_evil.Evil")
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "evil", "auto_map": evil}))
    with pytest.raises(ValueError, match="does not load as an image-to-text model") as error:
        ImageToText(path=str(folder)).build()
    assert "\n" not in str(error.value)
    assert not canary.exists()
    for file in folder.glob("*.safetensors"):
        file.rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickles are not read"):
        ImageToText(path=str(folder)).build()


def test_settings_are_checked() -> None:
    for wrong in ({"max_tokens": 0}, {"beams": 0}, {"micro_batch": 0}, {"weight": 0.0}):
        with pytest.raises(ValueError, match=re.escape("at least 1")):
            ImageToText(path="x", **wrong)
