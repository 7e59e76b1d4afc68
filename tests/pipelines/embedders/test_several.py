from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.embedders import MiniLM, Several, Transformer, load_text
from pipelines.embedders.several import joined
from tests.pipelines.embedders import folders

PROMPTS = ["a red fox in the snow", "snow"]


def clip_tokenizer(folder: Path) -> Any:
    """Of letters, as CLIP's begins."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    made = CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=77)
    made.save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Text encoders of SDXL and Stable Diffusion 3, tiny and random, as diffusers lays them out."""
    folder, parts = tmp_path_factory.mktemp("sd3"), dict[str, Any]()
    settings = {"vocab_size": 54, "max_position_embeddings": 77, "bos_token_id": 52, "eos_token_id": 53}
    for name, kind, changes in (
        ("text_encoder", "CLIPTextModelWithProjection", {"hidden_size": 16, "projection_dim": 10}),
        ("text_encoder_2", "CLIPTextModelWithProjection", {"hidden_size": 24, "projection_dim": 14}),
        ("text_encoder_3", "T5EncoderModel", {"d_model": 48}),
    ):
        if kind.startswith("CLIP"):
            changes = {**settings, **changes}
        parts[name] = folders.model(folder / name, kind, seed=len(parts), scale=3.0, **changes)
    for name in ("tokenizer", "tokenizer_2"):
        parts[name] = clip_tokenizer(folder / name)
    folders.tokenizer(folder / "tokenizer_3")
    from transformers import AutoTokenizer

    parts["tokenizer_3"] = AutoTokenizer.from_pretrained(folder / "tokenizer_3")
    return folder, parts


def encoders(folder: Path) -> tuple[Transformer, ...]:
    given = [
        {
            "path": str(folder / f"text_encoder{n}"),
            "tokenizer": str(folder / f"tokenizer{n}"),
            "max_tokens": 77,
        }
        for n in ("", "_2", "_3")
    ]
    clips = [Transformer(**one, layer=-2, pooled="own") for one in given[:2]]
    return (*clips, Transformer(**given[2]))


def test_as_sdxl_has_them(diffusers_folder: tuple[Path, dict[str, Any]]) -> None:
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
    from transformers import CLIPTextModel

    folder, parts = diffusers_folder
    names = ("text_encoder_2", "tokenizer", "tokenizer_2")
    make: Any = StableDiffusionXLPipeline
    pipeline = make(
        **{n: parts[n] for n in names},
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        vae=None,
        unet=None,
        scheduler=None,
        add_watermarker=False,
    )
    embedder = Several(encoders=encoders(folder)[:2], join="channels").build(micro_batch=2)
    assert (embedder.width, embedder.pooled_width) == (40, 14)
    for prompt, found in zip(PROMPTS, embedder.encode(PROMPTS), strict=True):
        with torch.inference_mode():
            states, _, pooled, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
        # Theirs goes on with padding, which a causal encoder's tokens do not see.
        np.testing.assert_allclose(found.states, states[0, : len(found.states)], rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(found.pooled, pooled[0], rtol=2e-3, atol=2e-3)
        assert len(found.states) == 2 + len(prompt.replace(" ", ""))


def test_as_stable_diffusion_3_has_them(diffusers_folder: tuple[Path, dict[str, Any]]) -> None:
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

    folder, parts = diffusers_folder
    make: Any = StableDiffusion3Pipeline
    pipeline = make(**parts, vae=None, transformer=None, scheduler=None)
    embedder = Several(encoders=encoders(folder), join="tokens").build(micro_batch=2)
    assert (embedder.width, embedder.pooled_width) == (48, 24)
    for prompt, found in zip(PROMPTS, embedder.encode(PROMPTS), strict=True):
        t5 = 2 + len(prompt.split())
        clip = len(found.states) - t5
        with torch.inference_mode():
            # Their T5 sees its padding, so it is given none.
            states, _, pooled, _ = pipeline.encode_prompt(
                prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=t5
            )
        theirs = torch.cat([states[0, :clip], states[0, 77:]])
        np.testing.assert_allclose(found.states, theirs, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(found.pooled, pooled[0], rtol=2e-3, atol=2e-3)


def test_the_last_ones_states_and_the_others_vectors(diffusers_folder: tuple[Path, dict[str, Any]]) -> None:
    """As FLUX: the pooled vector of CLIP, the states of T5."""
    clip, _, t5 = encoders(diffusers_folder[0])
    (found,) = Several(encoders=(clip, t5), join="last").build(micro_batch=2).encode(PROMPTS[:1])
    assert found.states.tobytes() == t5.build(micro_batch=2).encode(PROMPTS[:1])[0].states.tobytes()
    assert found.pooled.tobytes() == clip.build(micro_batch=2).encode(PROMPTS[:1])[0].pooled.tobytes()
    assert found.parts == ()


def test_states_of_unequal_lengths_are_filled_with_zeros() -> None:
    a, b = np.ones((2, 3), np.float16), np.full((4, 2), 2, np.float16)
    side = joined([a, b], "channels")
    assert side.tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, 2, 2], [0, 0, 0, 2, 2], [0, 0, 0, 2, 2]]
    behind = joined([b, a], "tokens")
    assert behind.tolist() == [[2, 2, 0]] * 4 + [[1, 1, 1]] * 2


def test_a_record_names_them_all(diffusers_folder: tuple[Path, dict[str, Any]]) -> None:
    import dataclasses

    config = Several(encoders=(MiniLM(), *encoders(diffusers_folder[0])[:1]))
    record = {**dataclasses.asdict(config), "digest": config.identity(), "micro_batch": 2}
    assert load_text(record).identity == config.identity()
    swapped = Several(encoders=config.encoders[::-1])
    assert swapped.identity() != config.identity() != dataclasses.replace(config, join="last").identity()


def test_what_cannot_be_joined_is_said() -> None:
    with pytest.raises(ValueError, match="two encoders or more"):
        Several(encoders=(MiniLM(),))
    with pytest.raises(ValueError, match="put the widest last"):
        Several(encoders=(MiniLM(), MiniLM(), MiniLM()), join="tokens").build()
