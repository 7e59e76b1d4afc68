"""A tiny line through every stage on 64 emoji: unbroken, killed at every kind of place, and changed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cluster.storage import Storage
from pipelines import config, pipeline
from tests import fresh
from tests.driver import Death, drive

ROOT = Path(__file__).parents[1]
EMOJI = ROOT / "pipelines" / "data" / "emoji3d.zip"
RECIPE = """
name: tiny
stages:
  images: {stage: ingest, source: {kind: folder, path: emoji}, size: 16, samples_per_shard: 16,
    split: {validation: 0.2, test: 0.1}}
  captions: {stage: caption, images: images, captioners: [{kind: template, text: "a 3D emoji of {text}"}]}
  vae: {stage: train_autoencoder, images: images, images_seen: 64, batch: 8,
    autoencoder: {kind: kl, channels: 8, multipliers: [1, 2], latent_channels: 2},
    optimization: {warmup: 8, cooldown: 16}, checkpoint_every: 16, validate_every: 64, samples_every: 64,
    resources: {cpus: 1}}
  latents: {stage: encode, images: images, autoencoder: vae, micro_batch: 8}
  text: {stage: embed, captions: captions}
  model: {stage: train, latents: latents, text: text, images: images, autoencoder: vae, images_seen: 96,
    batch: 8, network: {kind: dit, width: 32, depth: 2, heads: 2, patch: 1},
    optimization: {warmup: 8, cooldown: 16}, checkpoint_every: 16, samples_every: 96, validate_every: 96,
    validation_samples: 8, sampler: {kind: euler, steps: 2}, resources: {cpus: 1}}
  drawn: {stage: generate, model: model, images: images, captions: captions, count: 24,
    samples_per_shard: 12, sampler: {kind: euler, steps: 2}}
  more: {stage: augment, real: images, generated: drawn}
  verdict: {stage: evaluate, images: images, generated: drawn, model: model, latents: latents, text: text,
    count: 16, bootstrap: 10, untrained: 0, losses: 8, draws: 1, shown: 2, resources: {cpus: 1}}
"""
STAGES = ["images", "captions", "vae", "latents", "text", "model", "drawn", "more", "verdict"]
DEATHS = {
    "inside a tar": Death(file="ingest/*/00002.tar", moment="within"),
    "between tar and parquet": Death(file="caption/*/00001.parquet"),
    "in a checkpoint": Death(file="checkpoints/*.safetensors", moment="within"),
    "between a checkpoint's files": Death(file="checkpoints/*-000002.json"),
    "in a step of the autoencoder": Death(step=("autoencoder.safetensors", 40)),
    "in a training step": Death(step=("denoiser.safetensors", 56)),
    "before a manifest": Death(file="generate/*/manifest.json"),
    "after a manifest": Death(file="evaluate/*/manifest.json", moment="after"),
}

pytestmark = pytest.mark.timeout(900)  # on a machine with much else to do


def emoji(folder: Path, rows: slice) -> None:
    """Some of the project's emoji as a folder with metadata.csv."""
    with zipfile.ZipFile(EMOJI) as archive:
        with archive.open("metadata.csv") as file:
            chosen = list(csv.DictReader(io.TextIOWrapper(file, "utf-8")))[rows]
        for row in chosen:
            path = folder / row["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(row["file_name"]))
    known: list[dict[str, str]] = []
    if (folder / "metadata.csv").exists():
        with (folder / "metadata.csv").open(newline="") as file:
            known = list(csv.DictReader(file))
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, chosen[0].keys())
        writer.writeheader()
        writer.writerows(known + chosen)


def attempt(place: Path, death: Death | None = None, *flags: str, until: str | None = None) -> int:
    """Exit code of a driver: 0, or minus the signal that ended it."""
    arguments = (str(place / "tiny.yaml"), str(place / "store"), list(flags), death, until)
    driver = fresh.start(drive, *arguments)
    driver.join(240)
    assert driver.exitcode is not None
    return driver.exitcode


def outputs(store: Path) -> dict[str, str]:
    """sha256 of every shard and weight, by its place in the store."""
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.suffix in (".tar", ".parquet", ".safetensors")
        and path.relative_to(store).parts[0] not in ("checkpoints", "cache")
    }


def committed(store: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in store.rglob("*.parquet")}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("line")
    os.environ["LATENTMILL_CACHE"] = str(place / "cache")
    emoji(place / "emoji", slice(0, 1600, 25))
    (place / "tiny.yaml").write_text(RECIPE)
    return place


@pytest.fixture(scope="module")
def unbroken(ground: Path) -> Path:
    assert attempt(ground) == 0
    return ground


def test_a_line_killed_at_every_kind_of_place_gives_the_bytes_of_the_unbroken_one(
    unbroken: Path, tmp_path: Path
):
    shutil.copytree(unbroken / "emoji", tmp_path / "emoji")
    shutil.copy(unbroken / "tiny.yaml", tmp_path)
    store = tmp_path / "store"
    for where, death in DEATHS.items():
        before = committed(store)
        assert attempt(tmp_path, death) == -signal.SIGKILL, f"{where}: the driver was to die there"
        now = committed(store)
        assert {path: now.get(path) for path in before} == before, "a finished shard is not written again"
    assert attempt(tmp_path) == 0
    assert outputs(store) == outputs(unbroken / "store")
    kinds = {name.split("/")[0] for name in outputs(store)}
    assert len(kinds) == 8, "all but the report"


def test_finished_it_runs_nothing_and_imports_nothing_heavy(unbroken: Path):
    script = (
        "import sys\n"
        "from pipelines.__main__ import main\n"
        f"place = {str(unbroken)!r}\n"
        "sys.argv = ['latentmill', 'run', f'{place}/tiny.yaml', '--store', f'{place}/store']\n"
        "code = main()\n"
        "heavy = {'torch', 'ray', 'mlflow', 'webdataset', 'transformers', 'open_clip'} & sys.modules.keys()\n"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)\n"
    )
    before, used = outputs(unbroken / "store"), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime < 3.0
    assert outputs(unbroken / "store") == before


CLOSURE = [
    ([], [], []),
    (["--images.max_rejects", "0.1", "--latents.resources.workers", "3"], [], []),
    (["--model.checkpoint_every", "8", "--model.samples_every", "16"], [], []),
    (["--images.size", "24"], ["images"], STAGES[1:]),
    (["--text.micro_batch", "8"], ["text"], ["model", "drawn", "more", "verdict"]),
    (["--vae.seed", "1"], ["vae"], ["latents", "model", "drawn", "more", "verdict"]),
    (["--latents.flips", "true"], ["latents"], ["model", "drawn", "more", "verdict"]),
    (["--model.images_seen", "128"], ["model"], ["drawn", "more", "verdict"]),
    (["--drawn.seed", "1"], ["drawn"], ["more", "verdict"]),
    (
        ["--drawn.guidance.scale", "3.0", "--text.micro_batch", "8"],
        ["text"],
        ["model", "drawn", "more", "verdict"],
    ),
    (["--verdict.bootstrap", "20"], ["verdict"], []),
]


def planned(recipe: Path, store: Path, *flags: str) -> tuple[list[str], list[str]]:
    """Stages that would run now, and those that wait for them."""
    stages = pipeline.plan(config.load(recipe, list(flags)), Storage.at(store)).stages
    return [s.name for s in stages if s.state == "run"], [s.name for s in stages if s.state == "after"]


@pytest.mark.parametrize(
    ("flags", "run", "after"), CLOSURE, ids=[" ".join(c[0]) or "nothing" for c in CLOSURE]
)
def test_a_change_runs_exactly_what_depends_on_it(
    unbroken: Path, flags: list[str], run: list[str], after: list[str]
):
    ran, waits = planned(unbroken / "tiny.yaml", unbroken / "store", *flags)
    assert (sorted(ran), sorted(waits)) == (sorted(run), sorted(after))


def test_touched_moved_and_reordered_runs_nothing(unbroken: Path, tmp_path: Path):
    shutil.copytree(unbroken / "emoji", tmp_path / "emoji")
    for path in (tmp_path / "emoji").rglob("*.webp"):
        os.utime(path, (1, 1))
    shutil.copytree(unbroken / "store", tmp_path / "elsewhere")
    head, *lines = RECIPE.replace("\n    ", " ").strip().split("\n  ")
    (tmp_path / "tiny.yaml").write_text("\n  ".join([head, *reversed(lines)]))
    assert planned(tmp_path / "tiny.yaml", tmp_path / "elsewhere") == ([], [])


def test_ten_more_images_encode_ten(unbroken: Path, tmp_path: Path):
    """With the autoencoder given: one that is trained on the images is trained again, and encodes all."""
    shutil.copytree(unbroken / "emoji", tmp_path / "emoji")
    shutil.copytree(unbroken / "store", tmp_path / "store")
    shutil.copy(unbroken / "tiny.yaml", tmp_path)
    recipe = config.load(tmp_path / "tiny.yaml", [])
    vae = pipeline.plan(recipe, Storage.at(tmp_path / "store"))["vae"].folder
    assert vae is not None
    emoji(tmp_path / "emoji", slice(1, 251, 25))
    assert attempt(tmp_path, None, "--latents.autoencoder", vae.url, until="latents") == 0
    lines = (tmp_path / "store" / "runs" / "tiny" / "events.jsonl").read_text().splitlines()
    told = {e["stage"]: e for e in map(json.loads, lines) if e["kind"] == "rejects"}
    for stage in ("images", "latents"):
        assert (told[stage]["inputs"], told[stage]["copied"]) == (74, 64)
