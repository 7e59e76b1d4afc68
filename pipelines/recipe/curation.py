"""The part of a first recipe that chooses among the images: written as comments, to be uncommented."""

from __future__ import annotations

from collections.abc import Container

from pipelines.recipe.survey import Survey

KEEP = "    # keep: kept\n"
"""In the stages that pass over what is not kept."""
_INTRO = """\
  # To leave out copies and what is not worth learning from, uncomment these three stages, and each line
  # `keep: kept` below. Scores are made once; the limits of `kept` can be changed as often as wanted.
"""


def curation(found: Survey, *, size: int, weights: Container[str]) -> str:
    """Comments that are stages without their `# `; what is not installed is not in them."""
    pictures = found.source.pictures
    judged = pictures and "open-nsfw" in weights
    scorers = ["size"] * pictures + ["sharpness"] + ["nsfw"] * judged
    by = "semantic" if "efficientnet-lite0" in weights else "perceptual"
    limits = []
    if pictures:
        limits.append(
            f"shorter: {{min: {size}}}   # px of the shorter side: smaller ones are blurred by ingest"
        )
    limits.append("sharpness: {top: 0.95}   # without the most blurred twentieth")
    if judged:
        limits.append("nsfw: {max: 0.5}   # what is taken for not safe for work, by Yahoo's open_nsfw")
    lines = [
        "quality:",
        "  stage: score",
        "  images: images",
        f"  scorers: [{', '.join(f'{{kind: {name}}}' for name in scorers)}]",
        "copies:",
        "  stage: deduplicate",
        "  images: images",
        f"  by: {{kind: {by if pictures else 'exact'}}}   # exact, perceptual or semantic: each finds more",
        "kept:",
        "  stage: filter",
        "  scores: [quality, copies]",
        "  images: images",
        "  keep:",
        *(f"    {limit}" for limit in limits),
    ]
    return _INTRO + "".join(f"  # {line}\n" for line in lines)
