"""The gate against pornography: open_nsfw, run in a process of its own, so that nothing passes unseen."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pipelines import weights
from pipelines.scorers.guarded import Fault, Guarded
from pipelines.scorers.scorer import Scores, Subject, Unscored, rounded

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_MEAN = (104, 117, 123)
"""Blue, green, red."""


@dataclass(frozen=True, kw_only=True)
class Nsfw:
    """`nsfw`, a probability (Mahadeokar and Pesavento, 2016): below 0.2 is most likely safe, above 0.8 not.

    It knows pornography in photographs. It is blind to drawings, violence and what else may offend, and a
    threshold does not take the place of someone who looks.
    """

    kind: Literal["nsfw"] = "nsfw"
    name: str = "nsfw"
    seconds: float = field(default=30.0, metadata={"execution": True})
    """One image may take so long; then it counts as unscored."""

    reads: ClassVar[tuple[str, ...]] = ("image",)
    pixels: ClassVar[bool] = True
    guarded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise ValueError(f"nsfw: seconds is {self.seconds}; it must be above 0.")

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def external(self) -> dict[str, str]:
        return {"open-nsfw": weights.digest("open-nsfw")}

    def build(self, *, micro_batch: int = 16) -> NsfwScorer:
        return NsfwScorer(self)


class NsfwScorer:
    def __init__(self, config: Nsfw) -> None:
        # Told here, before the first image: what the child lacks would be its own end only.
        weights.packaged("open-nsfw")
        self._name = config.name
        self._guarded = Guarded(open_gate, {}, seconds=config.seconds, what="The NSFW gate")

    def scores(self, subjects: Sequence[Subject]) -> list[Scores | Unscored]:
        answers = self._guarded([{"image": subject.data} for subject in subjects])
        return [a if isinstance(a, Unscored) else {self._name: a["nsfw"]} for a in answers]


def open_gate(settings: dict[str, Any]) -> Callable[[dict[str, Any]], Scores]:
    """Called in the child: one image a call, in one thread, so that a score depends on its image alone."""
    try:
        import onnxruntime
    except ImportError as error:
        raise Fault(
            f"onnxruntime does not import ({error}); run: pip install 'latentmill[filters]'"
        ) from None
    import numpy as np

    from pipelines import pictures

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        weights.packaged("open-nsfw"), sess_options=options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def score(item: dict[str, Any]) -> Scores:
        (shares,) = session.run(None, {name: network_input(pictures.decode(item["image"]))[None]})
        safe, unsafe = map(float, np.asarray(shares)[0])
        if not abs(safe + unsafe - 1) < 1e-3:
            raise ArithmeticError(f"the two probabilities are {safe} and {unsafe}")
        return {"nsfw": rounded(unsafe)}

    return score


def network_input(image: Image) -> np.ndarray:
    """float32 [224, 224, 3], as Yahoo's own code prepares an image: squeezed to a square, cut, saved as JPEG
    once (the network was trained on files that were), blue first, less the mean."""
    import numpy as np
    from PIL import Image as Images

    square = image.convert("RGB").resize((256, 256), Images.Resampling.BILINEAR).crop((16, 16, 240, 240))
    buffer = io.BytesIO()
    square.save(buffer, "JPEG")
    with Images.open(buffer) as saved:
        levels = np.asarray(saved, dtype=np.float32)
    return np.ascontiguousarray(levels[:, :, ::-1] - np.array(_MEAN, dtype=np.float32))
