"""The stages a recipe can name. Adding one is one file and one line here."""

from __future__ import annotations

import difflib
import importlib

STAGES: dict[str, str] = {
    "ingest": "pipelines.stages.ingest:Ingest",
    "score": "pipelines.stages.score:Score",
    "filter": "pipelines.stages.filter:Filter",
    "deduplicate": "pipelines.stages.deduplicate:Deduplicate",
    "caption": "pipelines.stages.caption:Caption",
    "train_autoencoder": "pipelines.stages.train_autoencoder:TrainAutoencoder",
    "train_captioner": "pipelines.stages.train_captioner:TrainCaptioner",
    "encode": "pipelines.stages.encode:Encode",
    "train_clip": "pipelines.stages.train_clip:TrainClip",
    "evaluate_clip": "pipelines.stages.evaluate_clip:EvaluateClip",
    "embed": "pipelines.stages.embed:Embed",
    "extract": "pipelines.stages.extract:Extract",
    "train": "pipelines.stages.train:Train",
    "generate": "pipelines.stages.generate:Generate",
    "upscale": "pipelines.stages.upscale:Upscale",
    "edit": "pipelines.stages.edit:Edit",
    "detect": "pipelines.stages.detect:Detect",
    "augment": "pipelines.stages.augment:Augment",
    "evaluate": "pipelines.stages.evaluate:Evaluate",
    "evaluate_upscaler": "pipelines.stages.evaluate_upscaler:EvaluateUpscaler",
    "evaluate_autoencoder": "pipelines.stages.evaluate_autoencoder:EvaluateAutoencoder",
    "promote": "pipelines.stages.promote:Promote",
    "judge": "pipelines.stages.judge:Judge",
}
"""Stage name -> "module:Class"; a module is imported when its stage is named."""


def load(name: str) -> type:
    """The stage's class.

    Raises:
        ValueError: no stage has this name.
    """
    if name not in STAGES:
        near = difflib.get_close_matches(name, STAGES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(STAGES)}."
        raise ValueError(f"There is no stage called {name!r}; {hint}")
    module, _, attribute = STAGES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
