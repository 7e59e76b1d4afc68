from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cluster.storage import Storage
from pipelines.__main__ import main
from pipelines.dataset import write_manifest
from tests.pipelines.inspection.test_summary import HOSTILE, made


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dataset_with_its_sheet_and_page(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(here / "images")]) == 0
    out = capsys.readouterr().out
    assert ["train", "9", "3", "0", "1"] in [line.split() for line in out.splitlines()]
    assert "       2 truncated" in out
    sheet, page = (line.split(None, 1)[1] for line in out.splitlines()[-2:])
    assert Path(sheet) == here / "show/images/sheet.png"
    assert Image.open(io.BytesIO(Path(sheet).read_bytes())).width > 800
    assert "<script" not in Path(page).read_text()
    assert main(["show", str(here / "images"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rejects"]["truncated"]["count"] == 2
    assert said["files"] == []
    assert main(["show", str(here / "images"), "--json", "--out", str(here / "o"), "--pictures", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [str(here / "o/page.html")]


def test_rejects_of_one_reason_and_one_sample(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "./captions", "--reason", "truncated"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 2
    assert "a/1<script>alert(1)</script>" in out
    assert "\x1b" not in out
    assert main(["show", "./captions", "--key", "k05", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["txt"] == f"{HOSTILE} 05"
    assert main(["show", "./captions", "--key", "none"]) == 2
    assert main(["show", "./captions", "--lineage", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"][0]["stage"] == "ingest"


def test_snapshots_and_reports_say_what_they_are(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"task": "denoiser", "resolution": 48, "files": {"w.safetensors": "0"}, "images_seen": 4096}
    write_manifest(
        Storage.at(here / "model"), {"stage": "train", "version": 2, "snapshot": record}, "snapshot"
    )
    assert main(["show", "./model"]) == 0
    out = capsys.readouterr().out
    assert "./model: a snapshot by train version 2" in out
    assert "images seen: 4096" in out
    assert (here / "show/model/page.html").exists()
    assert main(["show", "./nothing"]) == 2
    assert "There is no dataset, snapshot or report at ./nothing" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, pipelines.__main__ as m\n"
        "for c in ('show', 'gc', 'export'):\n"
        "    try: m.main([c, '--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = ('torch', 'ray', 'mlflow', 'pydantic', 'pyarrow', 'fsspec', 'PIL', 'numpy', 'webdataset')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
