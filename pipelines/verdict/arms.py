"""What the classifiers are trained on: the arms of the comparison, equal in everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Loss = Literal["plain", "class_balanced", "balanced_softmax"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training."""

    name: str
    label: str
    real: bool = True
    """Whether it trains on the real images."""
    generated: bool = False
    """Whether it trains on the generated ones."""
    loss: Loss = "plain"


ARMS = (
    Arm(name="real", label="real"),
    Arm(name="class_balanced", label="real, class-balanced loss", loss="class_balanced"),
    Arm(name="balanced_softmax", label="real, balanced softmax", loss="balanced_softmax"),
    Arm(name="augmented", label="real + generated", generated=True),
    Arm(name="generated", label="generated", real=False, generated=True),
)
"""In the order in which they are told."""

PLAIN = "real"
"""What training would be if nothing were done."""
WITHOUT = ("real", "class_balanced", "balanced_softmax")
"""The arms without generated images: to help is to beat each of them."""
WITH = "augmented"


def class_balanced(counts: np.ndarray, beta: float) -> np.ndarray:
    """Weight of each class: (1 - beta) / (1 - beta^n), the inverse of its effective number of images (Cui et
    al., 2019, equation 2). beta 0 weighs images alike; towards 1 it becomes the inverse frequency."""
    import numpy as np

    return (1 - beta) / (1 - beta ** np.maximum(counts, 1).astype(np.float64))


def sample_weights(arm: Arm, labels: np.ndarray, weights: np.ndarray, *, classes: int, beta: float):
    """What each training image counts, mean 1: so no arm takes larger steps than another. [n] float32."""
    import numpy as np

    total = weights.astype(np.float64)
    if arm.loss == "class_balanced":
        counts = np.bincount(labels, minlength=classes)
        total = total * class_balanced(counts, beta)[labels]
    return (total / total.mean()).astype(np.float32)


def log_prior(arm: Arm, labels: np.ndarray, *, classes: int) -> np.ndarray:
    """What is added to the logits in training: the log of the classes' frequencies under balanced softmax
    (Ren et al., 2020, equation 4), so that none is in what is learned; 0 otherwise. [classes] float32."""
    import numpy as np

    if arm.loss != "balanced_softmax":
        return np.zeros(classes, np.float32)
    counts = np.maximum(np.bincount(labels, minlength=classes), 1)
    return np.log(counts / counts.sum()).astype(np.float32)
