"""A dataset in a form that other tools read, with columns of its line joined to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pipelines.dataset import Dataset

Form = Literal["folder", "webdataset", "parquet"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What came of an export."""

    samples: Mapping[str, int]
    """By split."""
    files: Mapping[str, str]
    """Split -> pattern of its files, as the tools take it."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Samples that were left out, by why: not kept, or lacking a column."""

    @property
    def total(self) -> int:
        return sum(self.samples.values())


def export(
    dataset: Dataset,
    out: Path,
    *,
    form: Form = "folder",
    captions: Dataset | None = None,
    keep: Dataset | None = None,
    columns: Sequence[tuple[Dataset, str]] = (),
) -> Exported:
    """Writes every sample that has an image to the folder `out`, each split by itself.

    folder: `<split>/<class>/<key>.<suffix>`, and in each split a metadata.csv (HuggingFace's ImageFolder:
    file_name, text, label, and weight where the dataset has weights). webdataset: `<split>/00000.tar` and so
    on without a gap, of image, txt, cls, json and the joined columns, each split a dataset of its own.
    parquet: `data/<split>-00000-of-00001.parquet`, as HuggingFace `datasets` reads it. Weights are stated
    (metadata.csv, json, a column), not applied.

    Args:
        dataset: images; a view's rows are read from where they lie.
        out: must not exist, or be empty.
        captions: of the same images, for their `txt`; without it the text that the source states is taken.
        keep: of the same images, with a column `keep` that those to be exported have.
        columns: further columns of datasets of the same images; a sample that lacks one is left out.

    Raises:
        ValueError: `out` is in use, the dataset has no images, or another one is not of its line.
    """
    from pipelines.export.joined import Line

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty; name a folder that is not there yet.")
    if "image" not in dataset.columns:
        raise ValueError(
            f"{dataset.storage.url} has no images: its columns are {', '.join(dataset.columns)}."
        )
    line = Line(dataset, captions=captions, keep=keep, columns=columns)
    line.check(form)
    out.mkdir(parents=True, exist_ok=True)
    if form == "folder":
        from pipelines.export.folder import write
    elif form == "webdataset":
        from pipelines.export.tars import write
    else:
        from pipelines.export.parquet import write
    samples, files = write(line, out)
    return Exported(samples=samples, files=files, left_out=dict(line.left_out))


__all__ = ["Exported", "Form", "export"]
