"""The train stage as recipes shard it: on one worker or several, stopped and resumed in any layout."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cluster.resources import Resources
from diffusion.config import OptimizationConfig
from pipelines.training.config import DDPConfig, FSDPConfig
from tests import fresh
from tests.pipelines import tiny
from tests.pipelines.training.test_trainer import gang, import_all

OPTIMIZATION = OptimizationConfig(lr=3e-3, warmup=16, clip=0.5, ema=0.1, ema_others=(0.05,))
FSDP, HYBRID = FSDPConfig(), FSDPConfig(replicas=2)


def snapshot(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "output" / "denoiser.safetensors")


def test_the_stage_shards_on_one_worker_without_a_group(tmp_path: Path) -> None:
    """To the same bits, and from the same checkpoints."""
    line = tiny.line(tmp_path / "line")
    half: dict[str, Any] = {"images_seen": 32, "validate_every": 32, "samples_every": 32}
    tiny.run(tiny.train(**half, parallel=FSDP, recompute=True), tiny.session(tmp_path / "fsdp", line))
    tiny.run(tiny.train(**half), tiny.session(tmp_path / "ddp", line))
    one, two = snapshot(tmp_path / "fsdp"), snapshot(tmp_path / "ddp")
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())

    longer = {**half, "images_seen": 64}
    session = tiny.session(tmp_path / "fsdp", line, lease=2)
    tiny.run(tiny.train(**longer), session)
    assert "Continues from 32 images." in [e["text"] for e in session.events if e["kind"] == "note"]
    tiny.run(tiny.train(**longer, parallel=FSDP), tiny.session(tmp_path / "ddp", line, lease=2))
    one, two = snapshot(tmp_path / "fsdp"), snapshot(tmp_path / "ddp")
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def stages(folder: str) -> None:
    torch.set_num_threads(1)
    import_all()
    importlib.import_module("torch.distributed.fsdp")
    line, top = tiny.line(Path(folder) / "line"), Path(folder)
    said: dict[str, Any] = {"images_seen": 64, "checkpoint_every": 16, "optimization": OPTIMIZATION}
    ddp, fsdp = tiny.train(**said), tiny.train(**said, parallel=FSDP)
    hybrid = tiny.train(**said, parallel=HYBRID)
    gang(2, top / "ddp", line, ddp)
    gang(2, top / "fsdp", line, fsdp)
    for name, again, world in (("broken", fsdp, 2), ("fewer", ddp, 1), ("more", hybrid, 4)):
        gang(2, top / name, line, fsdp, dies_at=32)
        gang(world, top / name, line, again)


@pytest.mark.slow
def test_sharded_stages_stop_and_go_on_in_any_layout(tmp_path: Path) -> None:
    """On as many workers to the same bits; on fewer that do not shard, or on more, to the same result."""
    fresh.run(stages, str(tmp_path), timeout=500)
    unbroken = snapshot(tmp_path / "fsdp")
    assert all(torch.equal(tensor, unbroken[n]) for n, tensor in snapshot(tmp_path / "broken").items())
    for name in ("ddp", "fewer", "more"):
        for key, tensor in snapshot(tmp_path / name).items():
            torch.testing.assert_close(tensor.float(), unbroken[key].float(), rtol=2e-2, atol=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_shards_in_bfloat16_what_it_learns_whole(tmp_path: Path, compiled: bool) -> None:
    """Blocks gathered in bf16 beside autocast's own; pinned shares; NCCL's group of one."""
    line = tiny.line(tmp_path / "line")
    said: dict[str, Any] = {"precision": "bfloat16", "compile": compiled, "images_seen": 64}
    for name, config in (("ddp", DDPConfig()), ("fsdp", FSDP)):
        place = tiny.session(tmp_path / name, line, resources=Resources(cpus=1, gpus=1))
        tiny.run(tiny.train(**said, parallel=config, recompute=name == "fsdp"), place)
    one, two = snapshot(tmp_path / "ddp"), snapshot(tmp_path / "fsdp")
    for key, tensor in one.items():
        torch.testing.assert_close(two[key].float(), tensor.float(), rtol=5e-2, atol=1e-2)
