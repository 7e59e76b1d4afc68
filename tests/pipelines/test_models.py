from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.storage import Storage
from pipelines import embedders, models
from pipelines.models import Generator, SnapshotFolder
from tests.pipelines import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SnapshotFolder:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    return tiny.run(tiny.train(images_seen=160), tiny.session(folder, tiny.line(folder)))


@pytest.fixture
def model(trained: SnapshotFolder, monkeypatch: pytest.MonkeyPatch) -> Generator:
    monkeypatch.setattr(embedders, "load_text", lambda record: tiny.Embedder())
    return models.load(trained.storage.url, device="cpu")


def arrays(images: list[Any]) -> list[np.ndarray]:
    return [np.asarray(image) for image in images]


def test_equal_asks_give_equal_images_whatever_their_company(model: Generator) -> None:
    words = [
        "thing 1",
        "thing 2 in colour 1 and many more words than the others so that it is longer",
        "thing 3",
    ]
    together = arrays(model.generate(words, classes=["cross"], indices=[5, 6, 7], seed=3))

    for n, word in enumerate(words):
        alone = arrays(model.generate([word], classes=["cross"], indices=[5 + n], seed=3))
        np.testing.assert_array_equal(alone[0], together[n])


def test_seed_index_prompt_and_class_each_matter(model: Generator) -> None:
    def draw(prompt: str = "thing 1", label: str = "circle", index: int = 0, seed: int = 0) -> bytes:
        return arrays(model.generate([prompt], classes=[label], indices=[index], seed=seed, guidance=4))[
            0
        ].tobytes()

    drawn = [draw(), draw("thing 2"), draw(label="square"), draw(index=1), draw(seed=1)]
    assert len(set(drawn)) == 5


def test_prompts_are_put_into_the_template(model: Generator) -> None:
    short, full = model.generate(["thing 1", "a drawing of thing 1"], indices=[0, 0])
    np.testing.assert_array_equal(np.asarray(short), np.asarray(full))


def test_networks_weights_are_the_average_in_half_precision(trained: SnapshotFolder) -> None:
    """The generator's network is the trained one: its held-out loss is the one that training saw."""
    from pipelines.training.tasks.denoiser import DenoiserTask

    inputs = tiny.line(Path(trained.storage.url).parent / "copy")
    task = DenoiserTask(tiny.train(), inputs, device=torch.device("cpu"), workers=1)
    loss = task.evaluate(Generator(trained, device="cpu").model.denoiser.network)["validation_loss"]
    assert loss == pytest.approx(trained.record["curve"][-1][1]["validation_loss"], rel=2e-3)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"classes": ["sqare"]}, "Did you mean square"),
        ({"classes": [7]}, "ids go from 0 to 2"),
        ({"prompts": ["a", "b"], "classes": ["circle"] * 3}, "2 prompts and 3 classes"),
        ({"prompts": ["a"], "indices": [1, 2], "count": 3}, "3 images and 2 indices"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(model: Generator, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        model.generate(**asked)
    assert "\n" not in str(raised.value)


def test_moved_snapshot_is_the_same(trained: SnapshotFolder, model: Generator, tmp_path: Path) -> None:
    shutil.copytree(trained.storage.url, tmp_path / "moved")
    moved = models.find(tmp_path / "moved")

    assert moved.digest() == trained.digest()
    np.testing.assert_array_equal(
        arrays(models.load(tmp_path / "moved", device="cpu").generate(["thing 1"]))[0],
        arrays(model.generate(["thing 1"]))[0],
    )


def test_damaged_or_missing_weights_are_refused(trained: SnapshotFolder, tmp_path: Path) -> None:
    for name in ("denoiser.safetensors", "autoencoder.safetensors"):
        folder = tmp_path / name
        shutil.copytree(trained.storage.url, folder)
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)
        with pytest.raises(ValueError, match="other bytes"):
            models.load(folder)
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"lacks {name}"):
            models.load(folder)


def test_references_that_lead_nowhere(trained: SnapshotFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no snapshot 'emoji4d'"):
        models.load("emoji4d")
    with pytest.raises(ValueError, match="no finished snapshot"):
        models.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="not a registered model"):
        models.registered("models:/a/b/c")
    with pytest.raises(ValueError, match="autoencoder, which draws nothing"):
        models.load(tiny.autoencoder(tmp_path / "autoencoder").storage.url)
    with pytest.raises(ValueError, match="dataset, not a snapshot"):
        SnapshotFolder.open(tiny.images(tmp_path / "images").storage)


def test_registered_models_are_found_by_alias_and_version(
    trained: SnapshotFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("emoji")
    client.create_model_version("emoji", source=trained.storage.url)
    client.set_registered_model_alias("emoji", "champion", "1")

    for reference in ("models:/emoji@champion", "models:/emoji/1"):
        assert models.find(reference, store=tmp_path).digest() == trained.digest()
    for reference in ("models:/emoji@nobody", "models:/emoji/9", "models:/other/1"):
        with pytest.raises(ValueError, match="has no models:/") as raised:
            models.registered(reference, store=tmp_path)
        assert "\n" not in str(raised.value)


def test_digest_is_of_what_it_draws(trained: SnapshotFolder) -> None:
    def changed(**fields: Any) -> str:
        record = {**trained.record, **fields}
        return SnapshotFolder(Storage.at("/nowhere"), {"snapshot": record}).digest()

    assert changed(images_seen=1, curve=[], skipped=3) == trained.digest()
    assert changed(classes=["circle", "square"]) != trained.digest()
    assert changed(files={}) != trained.digest()
