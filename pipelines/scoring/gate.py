"""Whether a candidate takes the champion's place: a rule as data, applied to figures with intervals."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from diffusion.metrics.estimate import Estimate


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a candidate must show."""

    min_gain: float
    """Share of the champion's distance that the lower end of the gain's interval must exceed."""
    max_loss: float
    """Share by which the held-out loss may surely rise."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Held-out losses of both on the same samples, noises and times."""

    candidate: float
    champion: float
    rise: Estimate
    """Of candidate less champion, paired by sample."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured. Distances are kernel distances to real images, times 1000: less is better."""

    name: str
    """Of the distance."""
    candidate: Estimate
    untrained: Estimate
    """Of the candidate's own network before training."""
    champion: Estimate | None = None
    gain: Estimate | None = None
    """Champion's distance less the candidate's, paired by drawing."""
    loss: Loss | None = None
    """None where the two cannot be compared, or nothing was measured."""
    finite: bool = True
    """Whether the candidate's losses are numbers."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    promoted: bool
    why: str
    """One sentence, without its full stop."""


def decide(figures: Figures, rule: Rule, *, champion: str = "the champion") -> Decision:
    """The candidate must be sound, then better than the champion beyond chance, and forget nothing.

    Args:
        champion: how the champion is called in the sentence.
    """
    own = f"{figures.name} x 1000 of {told(figures.candidate)}"
    numbers = (figures.candidate.value, figures.untrained.value)
    if not figures.finite or not all(map(math.isfinite, numbers)):
        return Decision(promoted=False, why="its losses or features are not finite numbers")
    if figures.candidate.high >= figures.untrained.low:
        against = f"no better than its network untrained, {told(figures.untrained)}"
        return Decision(promoted=False, why=f"{own}: {against}")
    if figures.champion is None or figures.gain is None:
        against = f"far from its network untrained, {told(figures.untrained)}"
        return Decision(promoted=True, why=f"the first: {own}, {against}")
    needed = rule.min_gain * max(figures.champion.value, 0.0)
    gain = f"{own} against {champion}'s {told(figures.champion)}: a gain of {told(figures.gain)}"
    if not figures.gain.low > needed:
        return Decision(promoted=False, why=f"{gain}, and its lower end must exceed {needed:.1f}")
    loss = figures.loss
    if loss is not None and loss.rise.low > rule.max_loss * loss.champion:
        rise = f"{loss.rise.value:.4f} ({loss.rise.low:.4f} to {loss.rise.high:.4f})"
        most = f"more than {rule.max_loss:.0%} of {loss.champion:.4f}"
        return Decision(promoted=False, why=f"{gain}, but its held-out loss rose by {rise}, {most}")
    return Decision(promoted=True, why=gain)


def told(estimate: Estimate) -> str:
    """83.1 (77.4 to 89.8)."""
    return f"{estimate.value:.1f} ({estimate.low:.1f} to {estimate.high:.1f})"


def values(figures: Figures) -> dict[str, float]:
    """The figures as one level of numbers."""
    found: dict[str, float] = {}
    for name, estimate in (
        ("kid", figures.candidate),
        ("kid_untrained", figures.untrained),
        ("kid_champion", figures.champion),
        ("kid_gain", figures.gain),
        ("loss_rise", figures.loss.rise if figures.loss else None),
    ):
        if estimate is not None:
            found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    if figures.loss is not None:
        found |= {"loss": figures.loss.candidate, "loss_champion": figures.loss.champion}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def plain(value: Any) -> Any:
    """The same with None where a number is none, for JSON knows no NaN."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def thousand(estimate: Estimate) -> Estimate:
    """Times 1000, as kernel distances are told."""
    return dataclasses.replace(
        estimate, **{name: 1000 * value for name, value in dataclasses.asdict(estimate).items()}
    )
