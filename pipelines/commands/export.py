"""`latentmill export`: a dataset, an autoencoder or a pretrained denoiser, in another tool's form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction

from pipelines.commands.arguments import StorePath, Switch, shown_as
from pipelines.commands.console import console, say_json
from pipelines.commands.reference import RECIPE_STAGE, resolve

if TYPE_CHECKING:
    from pipelines.dataset import Dataset
    from pipelines.export.pipeline import Exported


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a dataset as an image folder, as WebDataset tars or as Parquet that other tools read; or, as a
    folder for diffusers, a snapshot: the pipeline of a pretrained denoiser, else its autoencoder.

    Both are named as a folder or URL, or as RECIPE:STAGE of this store; where DATASET is a RECIPE:STAGE,
    other stages of that recipe by STAGE alone.
    """

    dataset: Annotated[Positional[str], shown_as("DATASET")]
    """Images: a dataset's folder or URL, or RECIPE:STAGE. For diffusers, a snapshot."""
    out: Annotated[Positional[Path], shown_as("OUT")]
    """A folder that is not there yet, or is empty."""
    form: Literal["folder", "webdataset", "parquet", "diffusers"] = "folder"
    """Class folders with metadata; tars with every column joined, as open_clip trains on; Parquet with images
    inside, as HuggingFace datasets takes it; config.json and safetensors, as diffusers loads autoencoders."""
    captions: Annotated[str | None, shown_as("DATASET")] = None
    """A caption stage's dataset, for the text of each image, if not what the images came with."""
    keep: Annotated[str | None, shown_as("DATASET")] = None
    """A filter's or deduplicate's dataset: only what it keeps is written."""
    columns: Annotated[UseAppendAction[tuple[str, ...]], shown_as("DATASET:COLUMN")] = ()
    """A further column of the same images, as latents:moments.npy; may be repeated."""
    store: StorePath = None
    """Where RECIPE:STAGE is looked up."""
    json: Switch = False
    """Print JSON."""

    def __call__(self, flags: Sequence[str]) -> int:
        if self.form == "diffusers":
            return self._model()
        from pipelines.export import export

        columns = []
        for one in self.columns:
            reference, separator, column = one.rpartition(":")
            if not separator or not reference or "/" in column:
                raise ValueError(f'--columns is "{one}"; write DATASET:COLUMN, as latents:moments.npy.')
            columns.append((self._opened(reference), column))
        done = export(
            self._opened(self.dataset),
            self.out,
            form=self.form,
            captions=self._opened(self.captions) if self.captions else None,
            keep=self._opened(self.keep) if self.keep else None,
            columns=columns,
        )
        if self.json:
            said = {"out": str(self.out), "form": self.form, "samples": done.total}
            say_json(said | {"splits": done.samples, "files": done.files, "left_out": done.left_out})
            return 0
        screen = console()
        screen.print(f"{done.total:,} samples in {self.out}", markup=False, soft_wrap=True)
        for split, count in done.samples.items():
            screen.print(f"{split:12} {count:9,}  {done.files[split]}", markup=False, soft_wrap=True)
        for why, count in done.left_out.items():
            screen.print(f"left out     {count:9,}  {why}", markup=False, soft_wrap=True)
        return 0

    def _model(self) -> int:
        from cluster.storage import Storage
        from pipelines.export import pipeline
        from pipelines.export.diffusers import write
        from pipelines.models import SnapshotFolder

        if self.captions or self.keep or self.columns:
            raise ValueError("--captions, --keep and --columns are of datasets; diffusers takes a snapshot.")
        snapshot = SnapshotFolder.open(Storage.at(resolve(self.dataset, self.store)))
        if pipeline.exportable(snapshot):
            return self._pipeline(pipeline.write(snapshot, self.out))
        settings = write(snapshot, self.out)
        if self.json:
            say_json({"out": str(self.out), "form": self.form, "config": settings})
            return 0
        screen, name = console(), settings["_class_name"]
        screen.print(f"an {name} in {self.out}", markup=False, soft_wrap=True)
        screen.print(f'diffusers.{name}.from_pretrained("{self.out}")', markup=False, soft_wrap=True)
        return 0

    def _pipeline(self, made: Exported) -> int:
        if self.json:
            say_json({"out": str(self.out), "form": self.form, "pipeline": dict(made.settings)})
            return 0
        screen = console()
        screen.print(f"a {made.pipeline} in {self.out}", markup=False, soft_wrap=True)
        if made.lacking:
            told = f"without {', '.join(made.lacking)}, not at hand: add them, or give it prompt embeddings"
            screen.print(told, markup=False, soft_wrap=True)
        absent = "".join(f", {part}=None" for part in made.lacking)
        loaded = f'diffusers.{made.pipeline}.from_pretrained("{self.out}"{absent})'
        screen.print(loaded, markup=False, soft_wrap=True)
        return 0

    def _opened(self, reference: str) -> Dataset:
        from cluster.storage import Storage
        from pipelines.dataset import Dataset

        match = RECIPE_STAGE.fullmatch(self.dataset)
        if match and "/" not in reference and ":" not in reference:
            reference = f"{match['recipe']}:{reference}"
        return Dataset.open(Storage.at(resolve(reference, self.store)))
