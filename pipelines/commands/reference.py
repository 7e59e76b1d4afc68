"""How a command names what a recipe made: RECIPE:STAGE, as in quickstart:augmented or photos.yaml:model."""

from __future__ import annotations

import re

RECIPE_STAGE = re.compile(r"(?P<recipe>[\w.-]+|[^:]*\.ya?ml):(?P<stage>[a-z][a-z0-9_]*)")


def resolve(reference: str, store: str | None) -> str:
    """The URL of a finished stage's folder; any other reference is returned as it is.

    Raises `ValueError` if the recipe or the stage does not exist or is not finished.
    """
    match = RECIPE_STAGE.fullmatch(reference)
    if not match:
        return reference
    from pipelines import config
    from pipelines.commands.console import store as open_store
    from pipelines.recipe.spelling import near
    from pipelines.runner.plan import plan

    recipe = config.load(match["recipe"])
    if match["stage"] not in recipe.stages:
        raise ValueError(
            f"{match['recipe']} has no stage {match['stage']!r}{near(match['stage'], recipe.stages)}"
        )
    planned = plan(recipe, open_store(store), until=match["stage"])[match["stage"]]
    if planned.state != "done" or planned.folder is None:
        raise ValueError(f"{reference} is not finished; `latentmill run {match['recipe']}` makes it.")
    return planned.folder.url
