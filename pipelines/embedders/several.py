"""Several text encoders side by side, as SDXL, Stable Diffusion 3 and FLUX have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipelines.embedders.clip import OpenClipTexts
from pipelines.embedders.embedding import TextEmbedding, settings_digest
from pipelines.embedders.minilm import MiniLM
from pipelines.embedders.transformer import Transformer

if TYPE_CHECKING:
    import numpy as np

Join = Literal["channels", "tokens", "last"]


@dataclass(frozen=True, kw_only=True)
class Several:
    """Two encoders or more, whose states of a caption are stored once and unpadded, and joined on load."""

    kind: Literal["several"] = "several"
    encoders: tuple[MiniLM | Transformer | OpenClipTexts, ...]
    join: Join = "channels"
    """`channels`: states side by side, and the last one's pooled vector (Podell et al., 2023, "SDXL", section
    2.1). `tokens`: all but the last side by side, widened with zeros, before the last one's tokens, and the
    pooled vectors of all but the last (Esser et al., 2024, "Stable Diffusion 3", section 4). `last`: the
    last one's states, and the pooled vectors of all but the last (FLUX)."""

    def __post_init__(self) -> None:
        if len(self.encoders) < 2:
            raise ValueError("`kind: several` takes two encoders or more; name one as `text` itself.")

    def identity(self) -> str:
        return settings_digest("several", self.join, *(encoder.identity() for encoder in self.encoders))

    def build(self, *, micro_batch: int = 16) -> SeveralEmbedder:
        return SeveralEmbedder(self, micro_batch)


class SeveralEmbedder:
    def __init__(self, config: Several, micro_batch: int) -> None:
        self.identity = config.identity()
        self._join: Join = config.join
        self._encoders: list[Any] = [encoder.build(micro_batch=micro_batch) for encoder in config.encoders]
        widths = [encoder.width for encoder in self._encoders]
        self.width = sum(widths) if config.join == "channels" else widths[-1]
        if config.join == "tokens" and sum(widths[:-1]) > widths[-1]:
            raise ValueError(
                f"Side by side the first encoders have {sum(widths[:-1])} channels and the last one "
                f"{widths[-1]}: put the widest last."
            )
        pooling = self._encoders[-1:] if config.join == "channels" else self._encoders[:-1]
        self.pooled_width = sum(encoder.pooled_width for encoder in pooling)

    def encode(self, texts: Sequence[str]) -> list[TextEmbedding]:
        import numpy as np

        found = []
        for parts in zip(*(encoder.encode(texts) for encoder in self._encoders), strict=True):
            pooling = parts[-1:] if self._join == "channels" else parts[:-1]
            states = tuple(part.states for part in parts)
            found.append(
                TextEmbedding(
                    joined(states, self._join),
                    np.concatenate([part.pooled for part in pooling]),
                    any(part.retried for part in parts),
                    states if self._join != "last" else (),
                )
            )
        return found


def joined(states: Sequence[np.ndarray], join: Join) -> np.ndarray:
    """Token states [tokens, width] of each encoder as those of one; where they differ in tokens, the shorter
    are filled with zeros."""
    import numpy as np

    if join == "last":
        return states[-1]
    side = states if join == "channels" else states[:-1]
    longest = max(map(len, side))
    wide = np.concatenate([_grown(part, longest, part.shape[1]) for part in side], axis=1)
    if join == "channels":
        return wide
    return np.concatenate([_grown(wide, longest, states[-1].shape[1]), states[-1]])


def _grown(states: np.ndarray, tokens: int, width: int) -> np.ndarray:
    import numpy as np

    return np.pad(states, ((0, tokens - states.shape[0]), (0, width - states.shape[1])))
