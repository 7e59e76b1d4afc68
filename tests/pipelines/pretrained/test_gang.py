"""Adapters of a pretrained denoiser, trained by several workers, stopped and resumed by fewer."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffusion.config import OptimizationConfig
from pipelines.pretrained.config import DiffusersConfig, LoRAConfig
from pipelines.pretrained.lora import FILE
from pipelines.training.config import FSDPConfig
from tests.pipelines.pretrained.pretrained_line import line, train
from tests.pipelines.training.test_trainer import gang, import_all

FAST = OptimizationConfig(lr=1e-2, warmup=8, cooldown=0, ema=0.28)
LORA = DiffusersConfig(path="/somewhere/pipeline", lora=LoRAConfig(rank=2))


def stage(shape: str, **changes: Any) -> Any:
    fields = {"denoiser": LORA, "images_seen": 48, "checkpoint_every": 16, "optimization": FAST}
    return train(shape, **{"validate_every": 48, "samples_every": 48, **fields, **changes})


def trainings(folder: str, shape: str, kinds: str) -> None:
    """All that forks, in a fresh process: autograd may not be forked once it has been used."""
    torch.set_num_threads(1)
    import_all()
    sharded = ["torch.distributed.fsdp"] if "fsdp" in kinds else []
    for name in ("pydantic", "peft", f"diffusers.models.transformers.transformer_{shape}", *sharded):
        importlib.import_module(name)
    top = Path(folder)
    given = line(shape, top / "line")
    gang(1, top / "one", given, stage(shape))
    for kind in kinds.split(","):
        changed: dict[str, Any] = {
            "ddp": {},
            "half": {"precision": "bfloat16"},
            "fsdp": {"parallel": FSDPConfig(), "precision": "bfloat16", "recompute": True},
        }[kind]
        gang(2, top / kind, given, stage(shape, **changed))
        gang(2, top / f"{kind}-fewer", given, stage(shape, **changed), dies_at=32)
        gang(1, top / f"{kind}-fewer", given, stage(shape, **changed))


def ran(folder: Path, shape: str, kinds: str) -> None:
    code = f"from tests.pipelines.pretrained import test_gang as t; t.trainings{(str(folder), shape, kinds)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]


def same(folder: Path, one: str, other: str, *, atol: float = 1e-5) -> None:
    wanted, found = (load_file(folder / name / "output" / FILE) for name in (one, other))
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name].float(), tensor.float(), rtol=2e-3, atol=atol)
    assert max(float(t.abs().max()) for n, t in wanted.items() if "lora_B" in n) > 0.02


def test_two_workers_learn_what_one_does_and_go_on_as_one(tmp_path: Path):
    ran(tmp_path, "sd3", "ddp")
    same(tmp_path, "one", "ddp")
    same(tmp_path, "one", "ddp-fewer")


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["sd3", "flux"])
def test_sharded_and_in_half_precision_it_is_the_same(shape: str, tmp_path: Path):
    ran(tmp_path, shape, "half,fsdp")
    same(tmp_path, "half", "fsdp", atol=5e-3)
    for kind in ("half", "fsdp"):
        same(tmp_path, kind, f"{kind}-fewer", atol=5e-3)
