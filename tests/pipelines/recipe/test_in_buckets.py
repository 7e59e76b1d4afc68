"""`latentmill init` on addresses of buckets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.storage import Storage
from pipelines import config
from pipelines.__main__ import main
from tests import s3
from tests.pipelines.sources.hostile_tars import plain, png


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3.serving() as url:
        yield url


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("photos", "folder"),
        ("photos/**/*.png", "glob"),
        ("shards", "webdataset"),
        ("shards/a.tar", "webdataset"),
    ],
)
def test_a_recipe_for_what_lies_in_a_bucket(
    place: str,
    kind: str,
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in s3.credentials(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    bucket = f"s3://{s3.new_bucket()}"
    for n in range(12):
        Storage.at(f"{bucket}/photos/{'ab'[n % 2]}").put_if_absent(f"{n}.png", png(n))
    tar = plain({f"{n}.png": png(n) for n in range(12)})
    Storage.at(f"{bucket}/shards").put_if_absent("a.tar", tar)
    assert main(["init", f"{bucket}/{place}", "--out", "found.yaml"]) == 0
    assert f"12 images in {bucket}/{place}\nsource     {kind}" in capsys.readouterr().out
    source = config.load("found.yaml").stages["images"].source  # pyright: ignore
    assert source.kind == kind
    assert f'path: "{bucket}/{place}"' in Path("found.yaml").read_text()
    assert str(source.path) == f"{bucket}/{place}".replace("//", "/")
    assert main(["init", f"{bucket}/nothing"]) == 2
    assert "There is nothing at s3://" in capsys.readouterr().err
