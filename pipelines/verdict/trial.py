"""One classifier from its first weights to its answers: everything random is f(seed, position)."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion import randomness
from diffusion.training import TrainingState, fit
from pipelines.embedders.embedding import batches
from pipelines.stream import TrainingStream
from pipelines.verdict.arms import Arm, log_prior, sample_weights
from pipelines.verdict.classifier import Classifier
from pipelines.verdict.examples import Examples

if TYPE_CHECKING:
    from pipelines.stages.judge import Judge


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images in [-1, 1], their classes, and what each counts."""

    images: Tensor
    labels: Tensor
    weights: Tensor


def trained(
    stage: Judge,
    arm: Arm,
    examples: Examples,
    *,
    classes: int,
    seed: int,
    lr: float | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A classifier after `stage.images_seen` images; of its weights the average over training.

    Arms with one seed start from one set of weights, and where they train on the same images they see them in
    the same order, flipped and shifted alike.

    Raises:
        ValueError: the loss was not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Classifier(classes=classes, width=stage.width, size=stage.size).to(device)
    optimization = dataclasses.replace(stage.optimization, lr=lr or stage.optimization.lr)
    prior = torch.from_numpy(log_prior(arm, examples.labels, classes=classes)).to(device)

    def losses(batch: Batch) -> Tensor:
        logits = module(batch.images) + prior
        return F.cross_entropy(logits, batch.labels, reduction="none") * batch.weights

    state = TrainingState.start(module, optimization)
    made = _batches(stage, arm, examples, classes=classes, seed=seed, device=device)
    for _ in fit(
        state, made, losses, optimization=optimization, batch=stage.batch, target_images=stage.images_seen
    ):
        pass
    if int(state.skipped):
        raise ValueError(
            f"{int(state.skipped)} steps of {arm.label} had no finite gradient: lower optimization.lr."
        )
    average = copy.deepcopy(module).eval()
    state.ema.copy_to(average)
    return average


@torch.inference_mode()
def answers(module: nn.Module, examples: Examples, *, micro_batch: int) -> np.ndarray:
    """The class that the classifier gives to each image, int64 [n]."""
    device = next(module.parameters()).device
    found = []
    for chosen, count in batches(range(len(examples)), micro_batch):
        images = _normalised(examples.images[np.array(chosen, np.int64)])
        found.append(module(images.to(device)).argmax(1)[:count].cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _batches(
    stage: Judge, arm: Arm, examples: Examples, *, classes: int, seed: int, device: torch.device | str
) -> Iterator[Batch]:
    weights = sample_weights(arm, examples.labels, examples.weights, classes=classes, beta=stage.beta)
    stream = TrainingStream(len(examples), seed=seed, batch=stage.batch)
    for positions, indices in itertools.islice(stream, -(-stage.images_seen // stage.batch)):
        images = varied(examples.images[indices], positions, seed=seed, flips=stage.flips, shift=stage.shift)
        yield Batch(
            images=_normalised(images).to(device),
            labels=torch.from_numpy(examples.labels[indices]).to(device),
            weights=torch.from_numpy(weights[indices]).to(device),
        )


def varied(images: np.ndarray, positions: np.ndarray, *, seed: int, flips: bool, shift: int) -> np.ndarray:
    """Mirrors half of the images and moves each by up to `shift` px, its edge continued; [b, h, w, 3]."""
    if not flips and not shift:
        return images
    u = np.stack([randomness.generator(seed, p, "judge").random(3) for p in positions.tolist()])
    if flips:
        images = np.where(u[:, 0, None, None, None] < 0.5, images[:, :, ::-1], images)
    if shift:
        size = images.shape[1]
        padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
        down, right = (u[:, 1:] * (2 * shift + 1)).astype(np.int64).T
        across = np.arange(size)
        rows, columns = down[:, None] + across, right[:, None] + across
        images = padded[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return images


def _normalised(images: np.ndarray) -> Tensor:
    """uint8 [b, h, w, 3] to [-1, 1], [b, 3, h, w]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 127.5 - 1
