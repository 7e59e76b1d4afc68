"""`latentmill apply`: one stage on your own images, without a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional

from pipelines.commands.arguments import StorePath, Switch, shown_as
from pipelines.commands.console import console, say_json, store
from pipelines.commands.reference import resolve

if TYPE_CHECKING:
    from cluster.storage import Storage
    from pipelines.dataset import Dataset

IMAGES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, kw_only=True)
class Apply:
    """Apply one stage to a folder of images (or to one image) and write what comes out as files.

    What is finished is kept in the store: the same command again goes on, or has nothing to do.
    """

    stage: Annotated[Positional[Literal["upscale"]], shown_as("upscale")]
    """What to do: `upscale` draws each image larger."""
    images: Annotated[Positional[Path], shown_as("IN")]
    """A folder, a zip archive, or one image."""
    out: Annotated[Positional[Path], shown_as("OUT")]
    """A folder for the results, under the names of their images; or a .png file for one image."""
    model: Annotated[str, shown_as("MODEL")]
    """An upscaler: a snapshot's folder or URL, RECIPE:STAGE of this store, or models:/NAME@ALIAS."""
    level: float = 0.0
    """Noise mixed into the images: 0 for clean ones, .1 to .3 for compressed or generated ones."""
    steps: Annotated[int | None, shown_as("INT")] = None
    """Steps of the sampler, if not the model's own."""
    seed: int = 0
    executor: Literal["inline", "ray"] = "inline"
    """Within this process, or on Ray (RAY_ADDRESS, else started on this machine)."""
    store: StorePath = None
    """Where RECIPE:STAGE and registered models are looked up, and what is finished is kept."""
    json: Switch = False
    """Print JSON."""

    def __call__(self, flags: Sequence[str]) -> int:
        from pipelines.upscaler import check

        if not self.images.exists():
            raise ValueError(f"There is no {self.images}: give a folder, a zip archive or an image.")
        from pipelines.models import find

        place = store(self.store)
        # Opened here: a mistake is told before images are read, and a shipped model's name becomes its place.
        folder = find(resolve(self.model, self.store), store=self.store)
        check(folder)
        url = folder.storage.url
        if self.images.is_file() and self.images.suffix.lower() in IMAGES:
            written, rejected = [self._one(url)], dict[str, str]()
        else:
            if self.out.is_file():
                raise ValueError(f"{self.out} is a file; name a folder for the results of {self.images}.")
            written, rejected = self._all(url, place)
        if self.json:
            say_json({"model": url, "files": written, "rejected": rejected})
            return 0
        screen = console()
        for name, reason in sorted(rejected.items()):
            screen.print(f"rejected   {name}: {reason}", markup=False, soft_wrap=True)
        told = written[0] if len(written) == 1 else f"{len(written):,} images in {self.out}"
        screen.print(
            told + (f", {len(rejected):,} rejected" if rejected else ""), markup=False, soft_wrap=True
        )
        return 0

    def _one(self, url: str) -> str:
        """One image, without a dataset made of it."""
        import dataclasses

        from PIL import Image, ImageOps, UnidentifiedImageError

        from pipelines.upscaler import load

        upscaler = load(url, store=self.store)
        try:
            with Image.open(self.images, formats=("JPEG", "PNG", "WEBP")) as image:
                given = ImageOps.exif_transpose(image).convert("RGBA")
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{self.images} is not a JPEG, PNG or WebP that can be read: {error}") from error
        ground = Image.new("RGBA", given.size, "white")
        ground.alpha_composite(given)
        sampler = upscaler.sampler
        if self.steps is not None:
            sampler = dataclasses.replace(sampler, steps=self.steps)
        large = upscaler.enlarge([ground], seed=self.seed, level=self.level, sampler=sampler)[0]
        file = self.out if self.out.suffix.lower() == ".png" else self.out / f"{self.images.stem}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        large.save(file)
        return str(file)

    def _all(self, url: str, place: Storage) -> tuple[list[str], dict[str, str]]:
        """Files written, and name -> reason of what was rejected."""
        import contextlib

        from pipelines import config, progress
        from pipelines.dataset import Dataset
        from pipelines.pipeline import run
        from pipelines.runner.plan import plan

        recipe = config.parse(self._recipe(url), name="apply", folder=Path.cwd())
        planned = plan(recipe, place)
        if not planned.done:
            with contextlib.ExitStack() as stack:
                listeners: list[Any] = []
                if not self.json:
                    told = [(s.name, "done" if s.state == "done" else s.reason) for s in planned.stages]
                    listeners.append(stack.enter_context(progress.shown(console(), told)))
                run(recipe, place, executor=self.executor, listeners=listeners, record=False)
            planned = plan(recipe, place)
        folder = planned["upscaled"].folder
        assert folder is not None
        return write(Dataset.open(folder), self.out)

    def _recipe(self, url: str) -> str:
        """A recipe of two stages: the images as they are, and the stage."""
        import json

        kind = "zip" if self.images.is_file() else "folder"
        upscale: dict[str, Any] = {"stage": "upscale", "images": "images", "model": url}
        upscale |= {"level": self.level, "seed": self.seed, "micro_batch": 1, "max_rejects": 1.0}
        if self.steps is not None:
            upscale["sampler"] = {"kind": "heun", "steps": self.steps}
        images = {
            "stage": "ingest",
            "source": {"kind": kind, "path": str(self.images.absolute())},
            "resize": "none",
            "split": {"validation": 0.0, "test": 0.0},
            "max_rejects": 1.0,
        }
        # YAML 1.2 reads JSON
        return json.dumps({"name": "apply", "stages": {"images": images, "upscaled": upscale}})


def write(dataset: Dataset, out: Path) -> tuple[list[str], dict[str, str]]:
    """Each image under the name that it came with; (files, name -> reason of what was rejected)."""
    import json

    from cluster.storage import Storage

    files, rejected = [], {}
    folder = Storage.at(out)
    for shard in dataset.shards:
        index = dataset.index(shard.name)
        for n, key in enumerate(index.keys):
            reason = index.reasons[n]
            if reason is not None:
                rejected[str(index.meta[n].get("file_name") or key)] = reason
                continue
            said = json.loads(dataset.read_member(shard.name, n, "json"))
            name = f"{Path(str(said.get('file_name') or key)).with_suffix('')}.{index.suffix(n, 'image')}"
            folder.replace(name, dataset.read_member(shard.name, n, "image"))
            files.append(str(out / name))
    return sorted(files), rejected
