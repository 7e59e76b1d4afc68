"""A first recipe for someone's images on someone's machine: what `latentmill init` writes.

Every choice stands in it with its reason, so that it reads as the place to go on from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from pipelines.recipe.curation import KEEP, curation
from pipelines.recipe.machine import Machine
from pipelines.recipe.source_lines import source_lines
from pipelines.recipe.survey import Survey

RESOLUTIONS = (32, 48, 64, 96, 128, 256)
MINUTES = 40
"""Training that a first recipe asks for."""
CORE_FLOPS = 3e10
GPU_FLOPS = 2e13
"""What small networks get out of a core and a GPU, a second; measured low, so that the time told is kept."""
AUTOENCODER_SHARE = 0.2
"""Of the training time."""
MOST_EPOCHS = 400
"""More passes over the same images than this only learn them by heart."""
CAPTIONED = 0.9
"""Share of images that must have a text for it to be their caption."""
LABELLED = 0.9
SQUARE = 2 / 3
"""Share of images that must be about square for one square size to do."""
REJECTED = 0.04
"""Share of images that end as rejects from which on a stage's usual limit of 0.05 is too close."""
BUCKETED = 1000
"""Images from which on several shapes have enough each."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The sizes that fit images and machine."""

    size: int
    """px."""
    stem: int
    multipliers: tuple[int, ...]
    channels: int
    latent_channels: int
    width: int
    depth: int
    heads: int
    patch: int
    batch: int
    autoencoder_images: int
    network_images: int
    minutes: int
    why_size: str

    @property
    def factor(self) -> int:
        return self.stem * 2 ** (len(self.multipliers) - 1)

    @property
    def step(self) -> int:
        """px of a patch of latents: sides of buckets are multiples of it."""
        return self.factor * self.patch


def choose(found: Survey, machine: Machine) -> Choice:
    """The largest sizes that the images have and that the machine trains in about `MINUTES`."""
    gigabytes = machine.gpu_memory / 2**30
    limit = (48 if machine.cores < 8 else 64) if not machine.gpus else (64 if gigabytes < 12 else 128)
    if gigabytes > 36:
        limit = 256
    side = found.short_side(0.25)
    size = max((r for r in RESOLUTIONS if r <= min(limit, max(side, 32))), default=RESOLUTIONS[0])
    what = "a machine without a GPU" if not machine.gpus else f"a GPU with {gigabytes:.0f} GB"
    why = f"as much as {what} trains well" if size == limit else f"most images have {side} px or more"
    large = size > 96
    width, depth, heads = (512, 12, 8) if machine.gpus else (192, 6, 3)
    if gigabytes > 36:
        width, depth, heads = 768, 12, 12
    latents = size // (8 if large else 4)
    # 16 tokens without a GPU: in a short training more and cheaper steps beat more tokens
    patch = 2 if machine.gpus else latents // 4
    parameters = 20 * width**2 * depth
    flops = len(machine.gpus[:1]) * GPU_FLOPS or machine.cores * CORE_FLOPS
    seconds = 60 * MINUTES
    network = 6 * parameters * (latents // patch) ** 2
    channels = 64 if machine.gpus else 32
    autoencoder = 200 * channels**2 * (2 if large else 1) * size**2
    most = MOST_EPOCHS * max(1, found.usable)
    network_images = _round(min((1 - AUTOENCODER_SHARE) * seconds * flops / network, most))
    autoencoder_images = _round(min(AUTOENCODER_SHARE * seconds * flops / autoencoder, most))
    spent = (network_images * network + autoencoder_images * autoencoder) / flops
    return Choice(
        size=size,
        stem=2,
        multipliers=(1, 2, 4) if large else (1, 2),
        channels=channels,
        latent_channels=8 if large else 4,
        width=width,
        depth=depth,
        heads=heads,
        patch=patch,
        batch=256 if machine.gpus else 32,
        autoencoder_images=autoencoder_images,
        network_images=network_images,
        minutes=max(1, round(spent / 60)),
        why_size=why,
    )


def recipe(
    found: Survey, machine: Machine, *, name: str, command: str, folder: Path, weights: Container[str]
) -> str:
    """The recipe as YAML with comments; `folder` is where it will stand, `weights` those installed."""
    choice = choose(found, machine)
    captioner = _captioner(found, "efficientnet-lite0" in weights) if "minilm" in weights else ""
    conditions = ["classes"] * bool(found.classes) + ["text"] * bool(captioner)
    said = " and ".join(conditions) or "nothing: it is unconditional"
    minutes = "a minute" if choice.minutes == 1 else f"{choice.minutes} minutes"
    counted = f"{'' if found.exact else 'About '}{found.images:,} images"
    parts = [
        f"# {command}",
        f"# {counted}; about {minutes} of training on {_machine(machine)}.",
        f"# The model is conditioned on {said}. Written by `latentmill init`; change what you like.",
        f"name: {json.dumps(name)}",
        "stages:",
        _images(found, choice, folder),
        curation(found, size=choice.size, weights=weights),
    ]
    if captioner:
        parts += [captioner, _TEXT]
    parts += [_autoencoder(choice, machine), _LATENTS, _model(found, choice, machine, bool(captioner))]
    parts += _after(found, machine, bool(captioner), "efficientnet-lite0" in weights)
    return "\n".join(parts).rstrip() + "\n"


def _images(found: Survey, choice: Choice, folder: Path) -> str:
    held_out = 0.05 if found.images >= 1000 else 0.1
    split = (
        "    # The split that the source states is kept."
        if found.splits
        else "    # Held out for the loss curve and for the scores; near-duplicates stay on one side.\n"
        f"    split: {{validation: {held_out}, test: {held_out}}}"
    )
    return f"""\
  images:
    stage: ingest
{source_lines(found, folder)}\
{_shape(found, choice)}\
{split}
{_rejects(found)}\
"""


def _rejects(found: Survey) -> str:
    """A limit that the broken ones stay below, where the usual one would stop the run."""
    share = 1 - found.usable / max(1, found.images)
    if share < REJECTED:
        return ""
    limit = min(1.0, math.ceil(30 * share) / 20)
    return f"    max_rejects: {limit:g}   # {100 * share:.0f} % of what was looked at cannot be used\n"


def _shape(found: Survey, choice: Choice) -> str:
    """What size and shape the images are brought to."""
    wide = _spread(found)
    resize = "crop" if wide < 1.8 else "fit"
    why = "the middle square is kept" if resize == "crop" else "shapes differ much: fitted, with white around"
    square = f"    size: {choice.size}   # px; {choice.why_size}\n    resize: {resize}   # {why}\n"
    if found.square >= SQUARE:
        return square
    told = f"{100 * (1 - found.square):.0f} % of the images are not square"
    sized = f"buckets: {{area: {choice.size}, step: {choice.step}}}"
    if found.usable >= BUCKETED:
        return f"""\
    # {told}: each keeps its shape, about, at the area of {choice.size} x {choice.size} px
    # ({choice.why_size}). One square for all would be `size: {choice.size}`.
    {sized}
    resize: crop   # the little that the shapes differ by
"""
    return f"""\
{square}\
    # {told}. This line would keep their shapes, about, at the same area (with
    # `resize: crop`); of so few images some shapes have too few to learn from.
    # {sized}
"""


def _captioner(found: Survey, tags: bool) -> str:
    if found.texts >= CAPTIONED * found.images:
        why, what = "the captions that came with the images", '{kind: template, text: "{text}"}'
    elif sum(found.labels.values()) >= LABELLED * found.images:
        why, what = (
            "no captions came along: a sentence from the label",
            '{kind: template, text: "a photo of {label}"}',
        )
    elif tags:
        why = "neither captions nor labels came along: what an ImageNet classifier sees"
        what = "{kind: tags, top: 3}"
    else:
        return ""
    return f"""\
  captions:
    stage: caption
    images: images
{KEEP}\
    captioners:   # {why}
      - {what}
"""


_TEXT = """\
  text: {stage: embed, captions: captions}
"""

_LATENTS = f"""\
  latents:
    stage: encode
    images: images
{KEEP}\
    autoencoder: autoencoder
"""


def _autoencoder(choice: Choice, machine: Machine) -> str:
    side = choice.size // choice.factor
    batch = min(64, choice.batch // 2)
    return f"""\
  autoencoder:   # {choice.size} px to {side} x {side} latents of {choice.latent_channels} channels
    stage: train_autoencoder
    images: images
{KEEP}\
    autoencoder:
      kind: kl
      latent_channels: {choice.latent_channels}
      channels: {choice.channels}
      stem: {choice.stem}
      multipliers: {list(choice.multipliers)}
    images_seen: {choice.autoencoder_images:_}
    batch: {batch}
    optimization: {_pace(choice.autoencoder_images, batch, machine)}
    {_precision(machine)}
"""


def _model(found: Survey, choice: Choice, machine: Machine, text: bool) -> str:
    epochs = choice.network_images / max(1, found.usable)
    inputs = "    images: images   # its classes\n" * bool(found.classes) + "    text: text\n" * text
    return f"""\
  model:
    stage: train
    latents: latents
{inputs}\
    autoencoder: autoencoder
    network:
      kind: dit
      width: {choice.width}
      depth: {choice.depth}
      heads: {choice.heads}
      patch: {choice.patch}
    images_seen: {choice.network_images:_}   # each image {epochs:,.0f} times; a larger number goes on
    batch: {choice.batch}
    optimization: {_pace(choice.network_images, choice.batch, machine)}
    {_precision(machine)}
{_drawing(machine)}
"""


def _pace(images: int, batch: int, machine: Machine) -> str:
    """A learning rate that rises over the first twentieth and falls over the last two fifths."""
    lr = "5e-4" if machine.gpus else "2e-3"  # what larger networks bear, and what short trainings want
    pace = f"warmup: {max(batch, images // 20):_}, cooldown: {images * 2 // 5:_}"
    return f"{{lr: {lr}, weight_decay: 0.01, {pace}}}"


def _drawing(machine: Machine) -> str:
    return f"""\
    sampler: {{kind: heun, steps: {18 if machine.gpus else 12}}}
    guidance: {{scale: 3.0}}   # higher follows the text more and varies less"""


def _precision(machine: Machine) -> str:
    return "precision: " + ("bfloat16" if machine.gpus else "float32")


def _after(found: Survey, machine: Machine, text: bool, judged: bool) -> list[str]:
    count = max(64, min(2000, found.images // 2))
    inputs = "    images: images\n" * bool(found.classes) + "    captions: captions\n" * text
    why = "   # captions and classes as often as in the images" if inputs else ""
    generated = f"""\
  generated:{why}
    stage: generate
    model: model
{inputs}\
    count: {count}
{_drawing(machine)}
"""
    augmented = f"""\
  augmented:
    stage: augment
    real: images
{KEEP}\
    generated: generated
"""
    texts = "    text: text\n" if text else ""
    scores = f"""\
  scores:
    stage: evaluate
    images: images
{KEEP}\
    generated: generated
    model: model
    latents: latents
{texts}"""
    return [generated] + [augmented] * bool(found.classes) + [scores] * judged


def _spread(found: Survey) -> float:
    """How long the images are for their width: the upper quartile of long side over short side."""
    ratios = sorted(max(side) / min(side) for side in found.sides)
    return ratios[3 * len(ratios) // 4] if ratios else 1.0


def _machine(machine: Machine) -> str:
    if machine.gpus:
        return f"one {machine.gpus[0]}"
    return f"{machine.cores} cores" if machine.cores > 1 else "one core"


def _round(images: float) -> int:
    """Two leading digits."""
    whole = max(1000, int(images))
    step = 10 ** (len(str(whole)) - 2)
    return whole // step * step
