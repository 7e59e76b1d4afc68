"""How far a training's drawings are from held-out samples, by the features that `evaluate` uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.scoring.features import EfficientNetFeatures

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from diffusion.autoencoders.autoencoder import Autoencoder
    from diffusion.config import GuidanceConfig, SamplerConfig
    from pipelines.sampling import Drawing, LatentModel
    from pipelines.stage import Inputs

FEWEST = 8
"""Held-out samples that it takes."""
ENOUGH = 200
"""Resamples for the standard errors of what is only watched."""
BATCH = 16
SCALE = 1000.0
"""KID is told times a thousand."""


class Kid:
    """Compares drawings with as many held-out samples, whose conditions they are given.

    The held-out ones are decoded from their latents' means: the best that the model's autoencoder can show.
    """

    def __init__(
        self,
        moments: Sequence[np.ndarray],
        drawings: Sequence[Drawing],
        autoencoder: Autoencoder,
        *,
        device: torch.device,
    ) -> None:
        """`moments`: of the held-out samples, [2c, h, w] each; `drawings`: with their conditions."""
        self._drawings = drawings
        self._extract = EfficientNetFeatures().build()
        self._real = self._features(
            image for moment in moments for image in _decoded(moment, autoencoder, device=device)
        )

    def __call__(
        self, model: LatentModel, *, seed: int, sampler: SamplerConfig, guidance: GuidanceConfig
    ) -> dict[str, float]:
        from pipelines import sampling

        drawn = sampling.draw(
            model, self._drawings, seed=seed, sampler=sampler, guidance=guidance, micro_batch=BATCH
        )
        value, _ = _distance(self._real, self._features(drawn))
        return {"kid": value}

    def about(self) -> dict[str, Any]:
        """What it is measured with, on how many, and what real samples get: one half against the other."""
        half = len(self._real) // 2
        floor, stderr = _distance(self._real[:half], self._real[half:])
        label = EfficientNetFeatures().label
        return {"name": f"KID-{label}", "n": len(self._real), "floor": floor, "floor_stderr": stderr}

    def _features(self, images: Any) -> np.ndarray:
        from PIL import Image

        pictures = [Image.fromarray(image) for image in images]
        runs = [pictures[n : n + BATCH] for n in range(0, len(pictures), BATCH)]
        return np.concatenate([self._extract(run) for run in runs])


def told(about: Mapping[str, Any]) -> str:
    """The figure's small print, once."""
    return (
        f"kid is {about['name']} x 1000 of {about['n']} drawings against as many held-out samples; one half "
        f"of these against the other has {about['floor']:.2g} +- {about['floor_stderr']:.2g}."
    )


def check_judge(inputs: Inputs) -> None:
    """A network that a training learned from cannot judge it.

    Raises:
        ValueError: the judge's network was in the autoencoder's loss, in an alignment or in a filter.
    """
    judge = EfficientNetFeatures()
    known = {judge.identity()}
    where = []
    loss = inputs["autoencoder"].record.get("loss") or {}
    if "efficientnet-lite0" in (loss.get("networks") or ()):
        where.append("the autoencoder's loss")
    features = inputs.get("features")
    said = features.manifest.get("statistics", {}).get("features", {}) if features is not None else {}
    if said.get("kind") == judge.kind:
        where.append("the alignment's features")
    keep = inputs.get("keep")
    scorers = keep.manifest.get("statistics", {}).get("scorers", []) if keep is not None else []
    if any(known & set(scorer.get("digests", {}).values()) for scorer in scorers):
        where.append("the filter's scores")
    if where:
        raise ValueError(
            f"`kid_every` judges by {judge.kind}, which is in {' and '.join(where)}: leave it out, and let "
            "evaluate judge."
        )


def _distance(real: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """And its standard error."""
    import torch

    from diffusion.metrics.kernel import kernel_distance

    found = kernel_distance(torch.from_numpy(real), torch.from_numpy(other), resamples=ENOUGH)
    return SCALE * found.value, SCALE * found.stderr


def _decoded(moments: np.ndarray, autoencoder: Autoencoder, *, device: torch.device) -> np.ndarray:
    """uint8 [1, h, w, 3] of the moments' mean: one at a time, so that company changes nothing."""
    import torch

    from pipelines.sampling import to_pixels

    mean: Tensor = torch.from_numpy(moments[None]).float().chunk(2, dim=1)[0]
    with torch.no_grad():
        return to_pixels(autoencoder.decode(mean.to(device)))
