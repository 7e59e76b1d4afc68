"""What images are judged by before training: numbers, to which a `filter` sets thresholds.

Each scorer is a config here, told apart by `kind`: `reads` (columns of the images), `pixels` (whether it
looks at them), `guarded` (whether it has a process of its own), `names` (of its scores; None where they show
only later), `external()` (digests of weights and sources) and `build()`, which loads what it needs.
"""

from __future__ import annotations

from pipelines.scorers.aesthetic import Aesthetic
from pipelines.scorers.function import Function
from pipelines.scorers.nsfw import Nsfw
from pipelines.scorers.scorer import Scorer, Scores, Subject, Unscored
from pipelines.scorers.sharpness import Sharpness
from pipelines.scorers.similarity import Similarity
from pipelines.scorers.size import Size

ScorerConfig = Size | Sharpness | Similarity | Aesthetic | Nsfw | Function

__all__ = [
    "Aesthetic",
    "Function",
    "Nsfw",
    "Scorer",
    "ScorerConfig",
    "Scores",
    "Sharpness",
    "Similarity",
    "Size",
    "Subject",
    "Unscored",
]
