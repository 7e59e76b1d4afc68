"""`latentmill apply`: a user's own images through one stage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.__main__ import main
from tests.pipelines import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("upscaler")
    stage = tiny.train_upscaler(images_seen=32)
    return tiny.run(stage, tiny.session(folder, tiny.pixels_line(folder))).storage.url


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTMILL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for n, name in enumerate(("a.png", "sub/b.png")):
        Image.fromarray(tiny.picture(n)).resize((12 + n, 9)).save(tmp_path / "in" / name)


def test_a_folder_keeps_its_names_and_counts_what_is_broken(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["apply", "upscale", "in", "out", "--model", model, "--steps", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["files"] == ["out/a.png", "out/sub/b.png"]
    assert list(said["rejected"].values()) == ["truncated"]
    assert [Image.open(file).size for file in said["files"]] == [(24, 18), (26, 18)]

    # again: nothing is made, and the same is written
    before = Path("out/a.png").read_bytes()
    Path("out/a.png").unlink()
    assert main(["apply", "upscale", "in", "out", "--model", model, "--steps", "1"]) == 0
    assert "2 images in out, 1 rejected" in capsys.readouterr().out
    assert Path("out/a.png").read_bytes() == before


def test_one_image(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Transparency shows white, as ingest's own ground does."""
    image = Image.new("RGBA", (10, 8), (0, 0, 0, 0))
    image.save("clear.png")
    assert main(["apply", "upscale", "clear.png", "large.png", "--model", model, "--steps", "1"]) == 0
    assert capsys.readouterr().out == "large.png\n"
    large = Image.open("large.png")
    assert large.size == (20, 16)
    assert np.asarray(large).mean() > 200
    assert main(["apply", "upscale", "clear.png", "folder", "--model", model, "--steps", "1"]) == 0
    assert Image.open("folder/clear.png").size == (20, 16)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere", "out"), "There is no nowhere"),
        (("in", "in/a.png"), "in/a.png is a file"),
        (("text.png", "out.png"), "text.png is not a JPEG, PNG or WebP"),
    ],
)
def test_mistakes_are_one_line(
    model: str, arguments: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.png").write_text("hello")
    assert main(["apply", "upscale", *arguments, "--model", model]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_a_shipped_upscaler_goes_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """On a folder as on one image: README's own command."""
    arguments = ["--model", "emoji3d_2x", "--steps", "1"]
    assert main(["apply", "upscale", "in", "out", *arguments]) == 0
    assert "2 images in out" in capsys.readouterr().out
    assert Image.open("out/a.png").size == (24, 18)
    assert main(["apply", "upscale", "in/a.png", "one.png", *arguments]) == 0
    # alone it has another place in the noise than in its folder
    assert Image.open("one.png").size == (24, 18)


@pytest.mark.parametrize("images", ["in", "in/a.png"])
def test_a_model_that_draws_is_refused(images: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", "upscale", images, "out", "--model", "emoji3d"]) == 2
    assert "is no upscaler" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("images", ["in", "in/a.png"])
def test_edits_of_a_shipped_model(images: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Images come to the model's size, and the parts that are known keep their pixels."""
    arguments = ["apply", "edit", images, "out", "--model", "emoji3d", "--steps", "2", "--seed", "1"]
    assert main([*arguments, "--part", "right", "--prompt", "a red heart"]) == 0
    capsys.readouterr()
    first = np.asarray(Image.open("out/a.png"))
    assert first.shape == (48, 48, 3)
    assert main([*arguments, "--part", "right", "--prompt", "a blue car"]) == 0
    other = np.asarray(Image.open("out/a.png"))
    assert np.array_equal(first[:, :24], other[:, :24])
    assert not np.array_equal(first[:, 24:], other[:, 24:])


def test_masks_lie_under_the_names_of_their_images(capsys: pytest.CaptureFixture[str]) -> None:
    Path("masks").mkdir()
    mask = np.zeros((9, 9), np.uint8)
    mask[:3] = 255
    Image.fromarray(mask).save("masks/a.png")
    arguments = ["--model", "emoji3d", "--steps", "2", "--json"]
    assert main(["apply", "edit", "in", "out", "--masks", "masks", *arguments]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["files"], list(said["rejected"].values())) == (["out/a.png"], ["no_mask"])
    assert main(["apply", "edit", "in/a.png", "one.png", "--masks", "masks/a.png", *arguments]) == 0
    assert Image.open("one.png").size == (48, 48)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "one of --masks PATH, --part PART, --noise .1 and --strength .5"),
        (("--noise", "0.1", "--strength", "0.5"), "one of --masks"),
        (("--noise", "0"), "must be above 0"),
        (("--masks", "nowhere"), "There is no nowhere"),
        (("--noise", "0.1", "--level", "0.2"), "--level is for `apply upscale`"),
        (("--noise", "0.1", "--model", "emoji3d_2x"), "does not draw by itself"),
    ],
)
def test_mistakes_of_an_edit(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["apply", "edit", "in", "out", "--model", "emoji3d", *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not Path("out").exists()
