"""`latentmill init`: what it finds in a folder, and that the recipe it writes is one that `run` takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import config
from pipelines.__main__ import main
from pipelines.commands.init import recipe_name
from pipelines.recipe import starter
from pipelines.recipe.machine import Machine
from pipelines.recipe.survey import Survey, survey
from pipelines.sources import FolderSource, IdxSource

LAPTOP = Machine(cores=2, memory=8 * 2**30)
WEIGHTS = {"efficientnet-lite0", "minilm", "open-nsfw"}
CURATION = {"quality", "copies", "kept"}


def draw(path: Path, *, width: int = 40, height: int = 40, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes, one caption, a stray file, and three kinds of broken images."""
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "My Photos"
    for n in range(6):
        draw(folder / "cat" / f"{n}.png", width=40 + n, seed=n)
    for n in range(4):
        draw(folder / "dog" / f"{n}.jpg", height=60, seed=10 + n)
    (folder / "cat" / "0.txt").write_text("a cat on a mat")
    (folder / "notes.md").write_text("not a picture")
    (folder / "dog" / "empty.jpg").write_bytes(b"")
    (folder / "dog" / "page.png").write_text("<html>")
    whole = (folder / "cat" / "1.png").read_bytes()
    (folder / "cat" / "half.png").write_bytes(whole[: len(whole) // 2])
    return folder


def test_a_folder_is_counted_and_what_is_broken_is_found(photos: Path) -> None:
    found = survey(FolderSource(path=photos))
    assert (found.images, found.texts, found.looked) == (13, 1, 10), "three are broken by their header"
    assert (found.exact, found.read, found.usable) == (True, 13, 10)
    assert found.labels == {"cat": 7, "dog": 6}
    assert found.kinds == {"png": 6, "jpg": 4}
    assert sorted(found.sides) == sorted([(40 + n, 40) for n in range(6)] + [(40, 60)] * 4)
    assert found.broken == (
        ("cat/half.png", "truncated"),
        ("dog/empty.jpg", "empty"),
        ("dog/page.png", "not_an_image"),
    )
    assert found.short_side(0.5) == 40


def test_what_the_time_does_not_allow_is_not_looked_at(photos: Path) -> None:
    found = survey(FolderSource(path=photos), seconds=0.0)
    assert (found.images, found.looked, found.sides) == (13, 0, ())
    assert len(found.broken) == 3, "headers are read all the same"


def test_a_pile_of_which_nothing_can_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.png").write_text("<html>")
    (tmp_path / "c.png").write_text("<html>")
    with pytest.raises(ValueError, match="none of 3 images .* 2 are 'begins like no image', as b.png"):
        survey(FolderSource(path=tmp_path))


def test_init_writes_a_recipe_and_says_what_it_found(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(photos)]) == 0
    out = capsys.readouterr().out
    assert "13 images in" in out
    assert "labels     2 on 13 images: cat 7, dog 6" in out
    assert "broken     3; they end as rejects:" in out
    assert "cat/half.png: ends before its picture does" in out
    assert "latentmill run my-photos.yaml" in out
    recipe = config.load("my-photos.yaml")
    assert recipe.stages["images"].source.path == photos  # pyright: ignore
    assert main(["init", str(photos)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["init", str(photos), "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == {"cat": 7, "dog": 6}


def found(**changes: object) -> Survey:
    survey = {
        "source": FolderSource(path=Path("photos")),
        "images": 2000,
        "ignored": 0,
        "texts": 2000,
        "looked": 2000,
        "sides": ((640, 480),) * 2000,
    }
    return Survey(**(survey | changes))  # pyright: ignore


def uncommented(text: str) -> str:
    """With the stages that choose among images, and `keep` in those that heed them."""
    stages = text[text.index("  # quality:") :].partition("\n\n")[0]
    alive = "\n".join(line.replace("  # ", "  ", 1) for line in stages.splitlines())
    return text.replace(stages, alive).replace("    # keep: kept\n", "    keep: kept\n")


def gpu(gigabytes: int) -> Machine:
    return Machine(cores=16, memory=2**37, gpus=("a GPU",), gpu_memory=gigabytes * 2**30)


@pytest.mark.parametrize("machine", [LAPTOP, Machine(cores=32, memory=2**36), gpu(8), gpu(24), gpu(80)])
@pytest.mark.parametrize(
    ("changes", "weights", "stages"),
    [
        ({}, WEIGHTS, "images captions text autoencoder latents model generated scores"),
        (
            {"texts": 0, "labels": Counter(cat=1500, dog=500)},
            WEIGHTS,
            "images captions text autoencoder latents model generated augmented scores",
        ),
        ({"texts": 0}, WEIGHTS, "images captions text autoencoder latents model generated scores"),
        ({"texts": 0}, set(), "images autoencoder latents model generated"),
        ({"splits": Counter(train=1500, test=500), "sides": ((28, 28),) * 3}, WEIGHTS, None),
        ({"images": 12, "texts": 12, "sides": ((4000, 300),) * 12}, WEIGHTS, None),
        ({"sides": ((640, 480), (480, 640), (500, 500)) * 600}, set(), None),
    ],
)
def test_every_recipe_it_can_write_is_accepted_and_fits_together(
    changes: dict[str, object], weights: set[str], stages: str | None, machine: Machine
) -> None:
    text = starter.recipe(
        found(**changes), machine, name="no", command="latentmill run no.yaml", folder=Path(), weights=weights
    )
    curated = config.parse(uncommented(text), name="no.yaml", folder=Path())
    assert set(curated.stages) - set(config.parse(text, name="no.yaml", folder=Path()).stages) == CURATION
    assert {s for s, stage in curated.stages.items() if getattr(stage, "keep", None) == "kept"} == {
        *("captions", "autoencoder", "latents", "augmented", "scores")
    } & set(curated.stages)
    recipe = config.parse(text, name="no.yaml", folder=Path())
    assert recipe.name == "no"
    if stages is not None:
        assert set(recipe.stages) == set(stages.split())
    images, autoencoder, model = (recipe.stages[n] for n in ("images", "autoencoder", "model"))
    sized = images.buckets.sizes() if images.buckets else [(images.size, images.size)]  # pyright: ignore
    for side in {side for size in sized for side in size}:
        latents = side / autoencoder.autoencoder.factor  # pyright: ignore
        assert latents == int(latents)
        assert latents % model.network.patch == 0  # pyright: ignore
    assert model.network.width % model.network.heads == 0  # pyright: ignore


@pytest.mark.parametrize(
    ("images", "sides", "line"),
    [
        (2000, ((640, 480),) * 6, "    buckets: {area: 48, step: 12}"),
        (900, ((640, 480),) * 6, "    # buckets: {area: 48, step: 12}"),
        (2000, ((640, 480), (500, 500), (500, 540)), None),
    ],
)
def test_shapes_are_kept_where_few_are_square_and_each_has_enough(
    images: int, sides: tuple[tuple[int, int], ...], line: str | None
) -> None:
    text = written(images=images, texts=images, sides=sides)
    assert [one for one in text.splitlines() if "buckets:" in one] == ([line] if line else [])
    recipe = config.parse(text.replace("# buckets", "buckets"), name="no.yaml", folder=Path())
    assert bool(recipe.stages["images"].buckets) == bool(line)  # pyright: ignore


def test_a_run_is_not_stopped_by_what_was_broken_before(tmp_path: Path) -> None:
    for broken, limit in ((0, 0.05), (60, 0.05), (200, 0.15), (1000, 0.75), (1500, 1.0)):
        text = written(broken=(("a.jpg", "download_failed"),) * broken, read=2000)
        images = config.parse(text, name="no.yaml", folder=tmp_path).stages["images"]
        assert images.max_rejects == pytest.approx(limit), broken  # pyright: ignore


def test_what_is_not_installed_is_not_asked_for() -> None:
    assert "nsfw" not in written(weights=())
    assert "by: {kind: perceptual}" in written(weights=())
    assert "nsfw: {max: 0.5}" in written(weights=WEIGHTS)
    numbers = written(weights=WEIGHTS, source=IdxSource(path=Path("mnist"), names=("0", "1")))
    assert "by: {kind: exact}" in numbers
    assert "shorter" not in numbers
    assert 'names: ["0", "1"]' in numbers


def test_labels_that_nearly_each_image_has_alone_are_no_classes() -> None:
    assert "augmented:" in written(labels=Counter({str(n): 100 for n in range(20)}))
    assert "augmented:" not in written(labels=Counter({str(n): 1 for n in range(2000)}))


def written(*, weights: Container[str] = WEIGHTS, **changes: object) -> str:
    return starter.recipe(found(**changes), LAPTOP, name="no", command="run", folder=Path(), weights=weights)


def test_more_machine_means_a_larger_model_and_small_images_stay_small() -> None:
    sizes = [starter.choose(found(), machine) for machine in (LAPTOP, gpu(8), gpu(24), gpu(80))]
    assert [c.size for c in sizes] == [48, 64, 128, 256]
    assert sizes[0].width < sizes[1].width < sizes[3].width
    assert starter.choose(found(sides=((28, 28),)), gpu(80)).size == 32
    assert starter.choose(found(images=50), gpu(80)).network_images <= 50 * starter.MOST_EPOCHS


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        *(("~/My Photos", "my-photos"), ("x/set.zip", "set"), ("/data/2024", "images"), ("a_b.c", "a_b-c")),
        *(("x/birds/**/*.jpg", "birds"), ("s3://bucket/shards/{00..99}.tar", "shards"), ("a/b.jsonl", "b")),
    ],
)
def test_a_recipe_is_named_after_its_folder(folder: str, name: str) -> None:
    assert recipe_name(Path(folder)) == name
