"""What a recipe names on this machine, and that the store's copy of it is the same to a stage."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from cluster.storage import LocalStorage, Storage
from pipelines import config
from pipelines.places import PACKAGE, at_hand, in_package
from pipelines.sources.folder import FolderSource
from pipelines.uploads import Named, named, upload


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos"
    for n in range(6):
        path = folder / ("cats" if n % 2 else "dogs") / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (40 * n, 90, 10)).save(path)
    (folder / "dogs" / "0.txt").write_text("a dog")
    return folder


def a_folder(path: Path) -> Named:
    return Named(place=("images", "source", "path"), path=path, archive=True)


def test_every_path_of_a_recipe_is_found_and_nothing_else(tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("a fox\n")
    text = """
name: tiny
stages:
  images: {stage: ingest, source: {kind: folder, path: photos}}
  digits: {stage: ingest, source: {kind: idx}}
  bucket: {stage: ingest, source: {kind: zip, path: "s3://bucket/photos.zip"}}
  text: {stage: embed, captions: words, text: {kind: open_clip, path: "local-dir:/models/clip"}}
  words: {stage: caption, images: images, captioners: [{kind: template, text: "a/b"}]}
  pictures: {stage: generate, model: ./snapshots/a, file: prompts.txt}
  more: {stage: generate, model: "models:/base@champion", classes: [a/c]}
"""
    recipe = config.parse(text, name="tiny", folder=tmp_path)
    found = {one.field: one.path for one in named(recipe.stages)}
    assert found == {
        "images.source.path": tmp_path / "photos",
        "digits.source.path": Path("/usr/share/datasets/fashion-mnist"),
        "text.text.path": Path("/models/clip"),
        "pictures.model": tmp_path / "snapshots" / "a",
        "pictures.file": tmp_path / "prompts.txt",
    }


def test_a_folder_goes_up_once_and_is_the_same_source(photos: Path, tmp_path: Path):
    store = LocalStorage(tmp_path / "store")
    url, copied = upload(store, a_folder(photos))
    assert copied > sum(path.stat().st_size for path in photos.rglob("*.png"))
    assert Path(url).name == "my-photos.zip"
    there, here = FolderSource(path=Path(url)).listing(), FolderSource(path=photos).listing()
    assert there.digest == here.digest
    assert there.classes == ["cats", "dogs"]
    assert upload(store, a_folder(photos)) == (url, 0)
    (photos / "dogs" / "0.txt").write_text("a wolf")
    assert upload(store, a_folder(photos))[0] != url


def test_a_file_and_a_plain_folder_keep_their_names(photos: Path, tmp_path: Path):
    store = LocalStorage(tmp_path / "store")
    single = Named(place=("pictures", "file"), path=photos / "dogs" / "0.txt", archive=False)
    url, copied = upload(store, single)
    assert (Path(url).name, Path(url).read_text(), copied) == ("0.txt", "a dog", 5)
    url, _ = upload(store, Named(place=("pictures", "model"), path=photos / "dogs", archive=False))
    assert {path.name for path in Path(url).iterdir()} == {"0.png", "0.txt", "2.png", "4.png"}
    with pytest.raises(ValueError, match=r"^pictures\.file: /none is not there\.$"):
        upload(store, Named(place=("pictures", "file"), path=Path("/none"), archive=False))


def test_what_the_project_ships_has_a_name_that_holds_everywhere():
    shipped = config.load("quickstart").stages["images"].source.path
    name = in_package(shipped)
    assert name == f"{PACKAGE}data/emoji3d.zip"
    assert at_hand(name) == shipped.resolve()
    assert in_package(Path("/etc/hosts")) is None


def test_what_lies_in_a_bucket_is_copied_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A path's one slash is the URL's two; a file and a folder each come whole."""
    bucket = LocalStorage(tmp_path / "bucket")
    bucket.put_if_absent("a/photos.zip", b"zip")
    bucket.put_if_absent("model/config.json", b"{}")
    bucket.put_if_absent("model/parts/one", b"1")
    opened = Storage.at

    def at(url: str | Path) -> Storage:
        text = str(url)
        return LocalStorage(tmp_path / text.removeprefix("s3://")) if text.startswith("s3:") else opened(url)

    monkeypatch.setattr(Storage, "at", staticmethod(at))
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    assert at_hand(Path("s3://bucket/a/photos.zip")).read_bytes() == b"zip"
    for _ in range(2):
        folder = at_hand(Path("s3://bucket/model"))
        assert (folder / "parts" / "one").read_bytes() == b"1"
    assert folder.is_relative_to(tmp_path / "cache")
    with pytest.raises(ValueError, match="There is nothing at"):
        at_hand("s3://bucket/none")
    assert at_hand("file:///etc/hosts") == Path("/etc/hosts")
