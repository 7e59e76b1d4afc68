from __future__ import annotations

import subprocess
import sys

import diffusion


def test_every_name_can_be_had():
    for name in diffusion.__all__:
        assert getattr(diffusion, name) is not None
    assert len(set(diffusion.__all__)) == len(diffusion.__all__)


def test_an_unknown_name_is_an_ordinary_mistake():
    assert not hasattr(diffusion, "Eular")


def test_it_works_with_torch_numpy_and_jaxtyping_alone():
    code = """
import importlib, importlib.abc, pkgutil, sys

ALLOWED = {"torch", "numpy", "jaxtyping", "diffusion"}

class Only(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        caller = sys._getframe(1)
        while "importlib" in caller.f_code.co_filename:
            caller = caller.f_back
        ours = caller.f_globals.get("__name__", "").partition(".")[0] == "diffusion"
        root = name.partition(".")[0]
        if root in REFUSED or (ours and root not in ALLOWED | sys.stdlib_module_names):
            raise ModuleNotFoundError(f"{name} is not to be imported here")

REFUSED = {"ray", "mlflow", "pydantic", "PIL", "yaml", "tyro", "rich", "webdataset", "pyarrow", "fsspec",
           "transformers", "open_clip", "torchvision", "safetensors", "beartype", "scipy", "cluster",
           "pipelines"}
sys.meta_path.insert(0, Only())

import diffusion, torch
for module in pkgutil.walk_packages(diffusion.__path__, "diffusion."):
    importlib.import_module(module.name)

torch.set_num_threads(1)
network = diffusion.DiTConfig(width=16, depth=1, heads=2).build(channels=2, size=4, classes=3)
optimization = diffusion.OptimizationConfig()
state = diffusion.TrainingState.start(network, optimization)
denoiser = diffusion.Denoiser(network)
conditioning = diffusion.Conditioning(label=torch.arange(3), classes=3)
x, z, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.rand(3)

def loss(share):
    return diffusion.flow_matching(denoiser, x, z, t, conditioning)

for progress in diffusion.fit(state, [0, 1], loss, optimization=optimization, batch=3, target_images=6):
    assert progress.loss.isfinite()
guided = diffusion.ClassifierFree(denoiser, scale=2.0)
assert diffusion.Heun(steps=2)(guided, z, conditioning).shape == z.shape
"""
    subprocess.run([sys.executable, "-c", code], check=True)
