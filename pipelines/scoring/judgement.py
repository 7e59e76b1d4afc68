"""What features say of generated images: distances with their floor, coverage, copies; and what losses say.

Everything here is arithmetic on arrays that were measured elsewhere (`pipelines.scoring.measure`), so that it
can be checked against sets whose answers are known.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

ENOUGH_FOR_FRECHET = 5000
"""Images below which a Fréchet distance is too biased to be quoted."""
NEIGHBOUR = 3
"""k of precision and recall."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Compares sets of features, [n, d] each, with the training images."""

    bootstrap: int = 1000
    """Resamples of every interval."""
    seed: int = 0

    def row(
        self,
        name: str,
        label: str,
        features: np.ndarray,
        training: np.ndarray,
        *,
        role: str = "plain",
        coverage: bool = False,
        frechet: bool = False,
    ) -> dict[str, Any]:
        """Kernel distance of a set to the training images, in JSON types.

        Args:
            coverage: also precision and recall, of as many training images as there are features.
            frechet: also the Fréchet distance.
        """
        import torch

        from diffusion.metrics.frechet import frechet_estimate
        from diffusion.metrics.kernel import kernel_distance
        from diffusion.metrics.precision_recall import precision_recall

        real, fake = torch.from_numpy(training), torch.from_numpy(features)
        kid = kernel_distance(real, fake, resamples=self.bootstrap, seed=self.seed)
        row: dict[str, Any] = {"name": name, "label": label, "role": role, "n": [len(fake), len(real)]}
        row["kid"] = asdict(kid)
        if frechet:
            distance = frechet_estimate(real, fake, groups=5)
            enough = min(len(real), len(fake)) >= ENOUGH_FOR_FRECHET
            row["frechet"] = {**asdict(distance), "biased": not enough}
        count = min(len(real), len(fake))
        if coverage and count > NEIGHBOUR:
            found = precision_recall(real[:count], fake[:count], k=NEIGHBOUR)
            row |= {"precision": found.precision, "recall": found.recall, "coverage_n": count}
        return row

    def copies(self, generated: np.ndarray, held_out: np.ndarray, training: np.ndarray) -> Copies:
        """How near generated images come to training images, beside held-out real ones.

        All are thumbnails, [n, d] in [0, 1]. Where a model drew the generated images, the real ones must have
        passed through its autoencoder: what that smooths away would else set a copy apart from its original.
        A model that copies has more than 1 % of its images below the 1 % quantile of the held-out ones.
        """
        import numpy as np

        near, index = _nearest(generated, training)
        real, _ = _nearest(held_out, training)
        threshold = float(np.quantile(real, 0.01))
        draws = np.random.default_rng(self.seed)
        shares = []
        for _ in range(self.bootstrap):
            limit = np.quantile(real[draws.integers(len(real), size=len(real))], 0.01)
            shares.append(np.mean(near[draws.integers(len(near), size=len(near))] < limit))
        low, high = np.quantile(shares, [0.025, 0.975]).tolist()
        closer = {"value": float(np.mean(near < threshold)), "low": low, "high": high}
        said = {
            "distance": "RMS difference of pixels, at 32 px, from 0 to 1",
            "threshold": threshold,
            "generated": _spread(near),
            "held_out": _spread(real),
            "closer": closer,
        }
        return Copies(said=said, distance=near, index=index)

    def paired(self, true: np.ndarray, shuffled: np.ndarray) -> dict[str, Any]:
        """Mean losses [n] with the true and with others' conditions, and the interval of their difference.

        Paired by image: both were taken with the same noise and times.
        """
        import numpy as np

        difference = shuffled - true
        draws = np.random.default_rng(self.seed)
        means = [
            float(difference[draws.integers(len(difference), size=len(difference))].mean())
            for _ in range(self.bootstrap)
        ]
        low, high = np.quantile(means, [0.025, 0.975]).tolist()
        return {
            "true": float(true.mean()),
            "shuffled": float(shuffled.mean()),
            "difference": float(difference.mean()),
            "low": low,
            "high": high,
            "n": len(true),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Copies:
    """Of each generated image, its nearest training image."""

    said: dict[str, Any]
    """In JSON types."""
    distance: np.ndarray
    """[n]."""
    index: np.ndarray
    """[n], into the training images."""


def _nearest(query: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import torch

    from diffusion.metrics.neighbours import nearest

    found = nearest(torch.from_numpy(query), torch.from_numpy(reference))
    return found.distance.numpy() / query.shape[1] ** 0.5, found.index.numpy()


def _spread(values: np.ndarray) -> dict[str, Any]:
    import numpy as np

    q05, median, q95 = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
    return {"n": len(values), "q05": q05, "median": median, "q95": q95}
