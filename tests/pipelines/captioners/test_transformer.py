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
    return BertTokenizerFast(vocab=str(folder / "vocab.txt"), additional_special_tokens=list(more[:1]))


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


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "vit_gpt2": (vit_gpt2, ""),
    "blip": (blip, ""),
    "git": (git, "a red"),
    "llava": (llava, "a red fox"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, (make, _) in KINDS.items():
        made[name] = tmp_path_factory.mktemp(name)
        make(made[name])
    return made


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
            said = f"user : <image> {prompt} assistant :" if "llava" in str(folder) else prompt
            inputs = dict(processor(images=image(n), text=said, return_tensors="pt"))
            inputs.pop("token_type_ids", None)
        else:
            inputs = dict(AutoImageProcessor.from_pretrained(folder)(images=image(n), return_tensors="pt"))
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=12, num_beams=beams, do_sample=False)[0]
        start = inputs["input_ids"].shape[1] if prompt else 0
        found.append(" ".join(text.decode(tokens[start:], skip_special_tokens=True).split()))
    return found


@pytest.mark.parametrize(("name", "beams"), [*((name, 1) for name in KINDS), ("vit_gpt2", 3), ("llava", 3)])
def test_captions_are_what_the_library_says_of_each_image_alone(
    name: str, beams: int, folders: dict[str, Path], subjects: list[Subject]
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


def test_blip_continues_what_it_is_given(folders: dict[str, Path], subjects: list[Subject]) -> None:
    config = ImageToText(path=str(folders["blip"]), prompt="the house", max_tokens=5)
    assert all(a.captions[0].text.startswith("the house ") for a in config.build().answers(subjects))


def test_the_folders_contents_decide_and_not_its_place(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "elsewhere"
    shutil.copytree(folders["blip"], copy)
    one, two = ImageToText(path=str(folders["blip"])), ImageToText(path=str(copy))
    assert one.external() == two.external()
    assert one.external() != ImageToText(path=str(folders["git"])).external()
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert one.external() != two.external()


def test_no_code_and_no_pickle_of_a_folder_is_run(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    canary = tmp_path / "canary"
    folder = tmp_path / "hostile"
    shutil.copytree(folders["git"], folder)
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
