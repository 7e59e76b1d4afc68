"""`latentmill export`: a dataset in another tool's form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from pipelines.commands.arguments import StorePath, Switch, shown_as
from pipelines.commands.console import console, say_json
from pipelines.commands.reference import resolve


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a dataset as an image folder or a WebDataset that other tools read."""

    dataset: Annotated[Positional[str], shown_as("DATASET")]
    """A dataset's folder or URL, or RECIPE:STAGE of this store."""
    out: Annotated[Positional[Path], shown_as("OUT")]
    """A folder that is not there yet, or is empty."""
    form: Literal["folder", "webdataset"] = "folder"
    """Class folders with metadata, or tars with every column joined."""
    captions: Annotated[str | None, shown_as("DATASET")] = None
    """A caption stage's dataset, for the text of each image, if not what the images came with."""
    store: StorePath = None
    """Where RECIPE:STAGE is looked up."""
    json: Switch = False
    """Print JSON."""

    def __call__(self, flags: Sequence[str]) -> int:
        from cluster.storage import Storage
        from pipelines.dataset import Dataset
        from pipelines.export import export

        def opened(reference: str) -> Dataset:
            return Dataset.open(Storage.at(resolve(reference, self.store)))

        captions = opened(self.captions) if self.captions else None
        count = export(opened(self.dataset), self.out, form=self.form, captions=captions)
        if self.json:
            say_json({"out": str(self.out), "form": self.form, "samples": count})
        else:
            console().print(f"{count:,} samples in {self.out}", markup=False, soft_wrap=True)
        return 0
