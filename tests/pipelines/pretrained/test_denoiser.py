"""What diffusers' own model and scheduler make of the same noise is the truth."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.config import LogitNormalConfig, UniformConfig
from diffusion.denoiser import Denoiser
from diffusion.guidance import ClassifierFree
from diffusion.losses import Output, denoising
from diffusion.samplers.euler import Euler
from diffusion.samplers.spacing import Even
from pipelines.pretrained.config import LoRAConfig
from pipelines.pretrained.denoiser import DiffusersNetwork
from pipelines.pretrained.lora import inject
from tests.pipelines.pretrained.tiny_denoisers import SHAPES, conditions, model, network, scheduler

ROWS = 2
CHAINED = ("sd1", "sd2", "sdxl", "plain", "clean", "dit")
FLOWS = ("sd3", "flux", "flux-dev")


def theirs(shape: str, made: Any, x: Tensor, timestep: Tensor, given: Conditioning) -> Tensor:
    """The raw output as diffusers' pipeline of this shape asks for it."""
    with torch.no_grad():
        match shape:
            case "plain" | "clean":
                return made(x, timestep).sample
            case "dit":
                assert given.label is not None
                labels = torch.where(given.label == given.classes, 1000, given.label)
                return made(x, timestep=timestep.expand(len(x)), class_labels=labels).sample[:, :4]
            case "sd1" | "sd2":
                return made(x, timestep, encoder_hidden_states=given.text).sample
            case "sdxl":
                ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).expand(len(x), 6)
                added = {"text_embeds": given.pooled, "time_ids": ids}
                return made(x, timestep, encoder_hidden_states=given.text, added_cond_kwargs=added).sample
            case "sd3":
                return made(
                    hidden_states=x,
                    timestep=timestep.expand(len(x)),
                    encoder_hidden_states=given.text,
                    pooled_projections=given.pooled,
                ).sample
            case _:
                from diffusers import FluxPipeline

                b, c, h, w = x.shape
                assert given.text is not None
                packed = FluxPipeline._pack_latents(x, b, c, h, w)
                ids = FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, x.device, x.dtype)
                output = made(
                    hidden_states=packed,
                    timestep=timestep.expand(len(x)) / 1000,
                    guidance=torch.full((len(x),), 3.5) if shape == "flux-dev" else None,
                    encoder_hidden_states=given.text,
                    pooled_projections=given.pooled,
                    txt_ids=torch.zeros(given.text.shape[1], 3),
                    img_ids=ids,
                ).sample
                return FluxPipeline._unpack_latents(output, h * 8, w * 8, 8)


def ours(shape: str, made: Any) -> Denoiser:
    config = network(shape, made)
    return config.denoiser(config.around(made))


def noise(seed: int = 3) -> Tensor:
    return torch.randn(ROWS, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", CHAINED)
def test_a_chains_clean_estimate_is_that_of_diffusers_scheduler(shape: str):
    made, given, x = model(shape), conditions(shape, ROWS), noise()
    alphas = scheduler(shape).alphas_cumprod.double()
    predicted = SHAPES[shape][3].get("prediction_type", "epsilon")
    for n in (0, 1, 250, 777, 998):
        output = theirs(shape, made, x, torch.tensor(n), given).double()
        alpha, sigma = alphas[n].sqrt(), (1 - alphas[n]).sqrt()
        expected = {
            "epsilon": (x - sigma * output) / alpha,
            "v_prediction": alpha * x - sigma * output,
            "sample": output,
        }[predicted]
        with torch.no_grad():
            for t in ((n + 1) / 1000, torch.full((ROWS,), (n + 1) / 1000)):
                found = ours(shape, made)(x, t, given).double()
                torch.testing.assert_close(
                    found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
                )


@pytest.mark.parametrize("shape", FLOWS)
def test_a_flows_clean_estimate_is_that_of_diffusers(shape: str):
    made, given, x = model(shape), conditions(shape, ROWS), noise()
    for t in (0.01, 0.25, 0.8, 1.0):
        expected = x - t * theirs(shape, made, x, torch.tensor(1000 * t), given)
        with torch.no_grad():
            found = ours(shape, made)(x, t, given)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [*CHAINED, *FLOWS])
def test_a_sampling_loop_ends_where_diffusers_does(shape: str):
    made, given, steps = model(shape), conditions(shape, ROWS), 5
    denoiser = ours(shape, made)
    if shape in FLOWS:
        import numpy as np

        # As FLUX's pipeline, and SD3's where it is given them.
        clock = scheduler(shape)
        clock.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps).tolist())
        shift = SHAPES[shape][3]["shift"]
    else:
        import diffusers

        clock = diffusers.DDIMScheduler.from_config(
            scheduler(shape).config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
        )
        clock.set_timesteps(steps)
        shift = 1.0
    _, sigma = denoiser.schedule.at(1.0)
    x = sigma * noise()
    for t in clock.timesteps:
        x = clock.step(theirs(shape, made, x, t, given), t, x).prev_sample
    found = Euler(steps=steps, spacing=Even(shift=shift))(denoiser, noise(), given)
    torch.testing.assert_close(found, x, rtol=2e-3, atol=2e-3 * float(x.abs().max()))


@pytest.mark.parametrize("shape", ["sd1", "dit", "sd3"])
def test_guidance_is_theirs(shape: str):
    made, given, x, scale = model(shape), conditions(shape, ROWS), noise(), 4.0
    absent = Conditioning(label=torch.full((ROWS,), 10), classes=10)
    if shape != "dit":
        assert given.text is not None
        assert given.pooled is not None
        zeros, none = torch.zeros_like(given.text), torch.zeros_like(given.pooled)
        absent = Conditioning(text=zeros, mask=torch.zeros(ROWS, 5, dtype=torch.bool), pooled=none)
    denoiser = ours(shape, made)
    timestep = torch.tensor(499) if shape != "sd3" else torch.tensor(500.0)
    better, worse = (theirs(shape, made, x, timestep, one) for one in (given, absent))
    output = worse + scale * (better - worse)
    alpha, sigma = denoiser.schedule.at(0.5)
    expected = x - 0.5 * output if shape == "sd3" else (x - sigma * output) / alpha
    with torch.no_grad():
        found = ClassifierFree(denoiser, scale)(x, 0.5, given)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", CHAINED)
def test_the_loss_is_the_mean_square_of_what_the_network_predicts(shape: str):
    import diffusers

    made, given, clean, z = model(shape), conditions(shape, ROWS), noise(1), noise(2)
    clock, n = diffusers.DDPMScheduler.from_config(scheduler(shape).config), torch.tensor([20, 640])
    x = clock.add_noise(clean, z, n)
    predicted = SHAPES[shape][3].get("prediction_type", "epsilon")
    target = {"epsilon": z, "sample": clean}.get(predicted)
    if target is None:
        target = clock.get_velocity(clean, z, n)
    expected = (theirs(shape, made, x, n, given) - target).square().flatten(1).mean(1)
    denoiser = ours(shape, made)
    with torch.no_grad():
        found = denoising(denoiser, clean, z, (n + 1) / 1000, given, Output(denoiser.preconditioning))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_chains_times_are_its_timesteps_each_as_often():
    config = network("sd1", model("sd1"))
    u = (torch.arange(4000) + 0.5) / 4000
    times = config.times(LogitNormalConfig())(u)
    counted = torch.bincount((times * 1000).round().long(), minlength=1001)
    assert counted[0] == 0
    assert (counted[1:] == 4).all()
    torch.testing.assert_close(times * 1000, (times * 1000).round(), rtol=0, atol=1e-3)
    assert config.times(UniformConfig(shift=3.0))(u).mean() > 0.6
    assert network("sd3", model("sd3")).times(LogitNormalConfig())(torch.tensor([0.5])) == 0.5


def test_captions_of_fewer_tokens_are_masked():
    made, x = model("sd1"), noise()
    given = conditions("sd1", ROWS)
    assert given.text is not None
    config = network("sd1", made, tokens=None)
    short = theirs(
        "sd1", made, x, torch.tensor(499), Conditioning(text=given.text[:, :3], mask=torch.ones(2, 3).bool())
    )
    long = Conditioning(
        text=given.text, mask=torch.tensor([[True, True, True, False, False]] * ROWS), pooled=given.pooled
    )
    with torch.no_grad():
        found = config.around(made)(x, torch.full((ROWS,), 0.5), long)
    torch.testing.assert_close(found, short, rtol=1e-5, atol=1e-5)


def test_in_training_nothing_is_dropped_by_the_network_itself():
    config = network("dit", model("dit"))
    module = config.around(model("dit")).train()
    given, x, t = conditions("dit", ROWS), noise(), torch.full((ROWS,), 0.5)
    with torch.no_grad():
        assert all(torch.equal(module(x, t, given), module(x, t, given)) for _ in range(20))


@pytest.mark.parametrize(
    ("shape", "given", "said"),
    [
        ("sd1", {"text_width": None}, "reads token states of 8, and there are none: embed with its CLIP's"),
        ("sdxl", {"text_width": 8, "pooled_width": 5}, "and pooled vectors of 8, and these have 8 and 5"),
        ("sd3", {"text_width": 9, "pooled_width": 8}, "its two CLIPs' and its T5's"),
        ("plain", {"text_width": 8}, "reads no captions: leave `text` out"),
        ("plain", {"classes": 3}, "knows no classes"),
        ("dit", {"channels": 16}, "latents of 4 channels, and these have 16"),
        ("dit", {"size": 9}, "a multiple of 2"),
    ],
)
def test_data_that_do_not_fit_are_refused_in_one_line(shape: str, given: dict[str, Any], said: str):
    fields = {"channels": 4, "size": 8, "classes": 0, "text_width": None, "pooled_width": None}
    with pytest.raises(ValueError, match=said) as told:
        network(shape, model(shape)).build(**fields | given)
    assert "\n" not in str(told.value)


def test_without_a_scheduler_a_chain_cannot_be_told():
    with pytest.raises(ValueError, match="name the whole pipeline's folder"):
        DiffusersNetwork(settings={"_class_name": "UNet2DModel"})
    with pytest.raises(ValueError, match="class Other is not supported"):
        DiffusersNetwork(settings={"_class_name": "Other"})


def test_without_the_libraries_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch):
    made = model("dit")
    config = network("dit", made)
    for name, call in (("diffusers", config.module), ("peft", lambda: inject(made, LoRAConfig()))):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ValueError, match=r"pip install 'latentmill\[diffusers\]'"):
            call()
