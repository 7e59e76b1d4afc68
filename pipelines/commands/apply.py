"""`latentmill apply`: one stage on your own images, without a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional

from pipelines.commands.arguments import StorePath, Switch, shown_as
from pipelines.commands.console import console, say_json, store
from pipelines.commands.reference import resolve

if TYPE_CHECKING:
    from PIL.Image import Image

    from cluster.storage import Storage
    from pipelines.dataset import Dataset
    from pipelines.editing import EditConfig
    from pipelines.models import SnapshotFolder

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
ONE = {
    "upscale": "level",
    "edit": "masks, part, noise, strength, prompt",
}
"""Stage -> flags that are its own."""


@dataclass(frozen=True, kw_only=True)
class Apply:
    """Apply one stage to a folder of images (or to one image) and write what comes out as files.

    What is finished is kept in the store: the same command again goes on, or has nothing to do.
    """

    stage: Annotated[Positional[Literal["upscale", "edit"]], shown_as("upscale|edit")]
    """What to do: `upscale` draws each image larger; `edit` crops it to the model's size, and takes noise out
    of it (--noise), fills in a part (--masks or --part), or draws it again (--strength)."""
    images: Annotated[Positional[Path], shown_as("IN")]
    """A folder, a zip archive, or one image."""
    out: Annotated[Positional[Path], shown_as("OUT")]
    """A folder for the results, under the names of their images; or a .png file for one image."""
    model: Annotated[str, shown_as("MODEL")]
    """A snapshot's folder or URL, RECIPE:STAGE of this store, models:/NAME@ALIAS, or one that ships: an
    upscaler for `upscale`, a model that draws for `edit`."""
    level: float = 0.0
    """upscale: noise mixed into the images: 0 for clean ones, .1 to .3 for compressed or generated ones."""
    masks: Annotated[Path | None, shown_as("PATH")] = None
    """edit: masks under the names of their images (for one image, one mask); what is bright is filled in."""
    part: Annotated[Literal["center", "left", "right", "top", "bottom"] | None, shown_as("PART")] = None
    """edit: center, left, right, top or bottom is filled in."""
    noise: Annotated[float | None, shown_as("SHARE")] = None
    """edit: standard deviation of the noise in the images, 0 to 1 of the range from black to white."""
    strength: Annotated[float | None, shown_as("SHARE")] = None
    """edit: how much may change, 0 to 1."""
    prompt: Annotated[str | None, shown_as("TEXT")] = None
    """edit: what the images show, for models that read text."""
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
        from pipelines import models, upscaler

        if not self.images.exists():
            raise ValueError(f"There is no {self.images}: give a folder, a zip archive or an image.")
        self._check()
        place = store(self.store)
        # Opened here: a mistake is told before images are read, and a shipped model's name becomes its place.
        folder = models.find(resolve(self.model, self.store), store=self.store)
        if self.stage == "upscale":
            upscaler.check(folder)
        elif folder.record.get("upscaling") or folder.record.get("task") != "denoiser":
            raise ValueError(f"{folder.storage.url} does not draw by itself: edit takes a model that does.")
        if self.images.is_file() and self.images.suffix.lower() in IMAGES:
            written, rejected = [self._one(folder)], dict[str, str]()
        else:
            if self.out.is_file():
                raise ValueError(f"{self.out} is a file; name a folder for the results of {self.images}.")
            written, rejected = self._all(folder, place)
        if self.json:
            say_json({"model": folder.storage.url, "files": written, "rejected": rejected})
            return 0
        screen = console()
        for name, reason in sorted(rejected.items()):
            screen.print(f"rejected   {name}: {reason}", markup=False, soft_wrap=True)
        told = written[0] if len(written) == 1 else f"{len(written):,} images in {self.out}"
        screen.print(
            told + (f", {len(rejected):,} rejected" if rejected else ""), markup=False, soft_wrap=True
        )
        return 0

    def _check(self) -> None:
        """`ValueError` for flags of the other stage, and unless `edit` is told one thing to do."""
        defaults = {
            "level": 0.0,
            "masks": None,
            "part": None,
            "noise": None,
            "strength": None,
            "prompt": None,
        }
        for stage, names in ONE.items():
            for name in names.split(", "):
                if stage != self.stage and getattr(self, name) != defaults[name]:
                    raise ValueError(f"--{name} is for `apply {stage}`: leave it out.")
        if self.stage == "edit":
            given = [n for n in ("masks", "part", "noise", "strength") if getattr(self, n) is not None]
            if len(given) != 1:
                raise ValueError(
                    "Say what to do, one of --masks PATH, --part PART, --noise .1 and --strength .5."
                )
        if self.masks is not None and not self.masks.exists():
            raise ValueError(f"There is no {self.masks}: give a folder or archive of masks, or one mask.")

    def _edit(self) -> EditConfig:
        from pipelines.editing import Denoise, ImageToImage, Inpaint

        if self.noise is not None:
            return Denoise(noise=self.noise)
        if self.strength is not None:
            return ImageToImage(strength=self.strength)
        return Inpaint(mask=self.part or "masks")

    def _one(self, folder: SnapshotFolder) -> str:
        """One image, without a dataset made of it."""
        from pipelines.editing import Editor
        from pipelines.prompts import formatted
        from pipelines.upscaler import Upscaler

        given = opened(self.images)
        if self.stage == "upscale":
            upscaler = Upscaler(folder)
            sampler = upscaler.sampler
            if self.steps is not None:
                sampler = dataclasses.replace(sampler, steps=self.steps)
            made = upscaler.enlarge([given], seed=self.seed, level=self.level, sampler=sampler)[0]
        else:
            from PIL import Image

            editor, size = Editor(folder), folder.record["resolution"]
            sampler = editor.generator.sampler
            if self.steps is not None:
                sampler = dataclasses.replace(sampler, steps=self.steps)
            masks = [cropped(opened(self.masks), size)] if self.masks is not None else []
            prompt = formatted(folder.record.get("caption"), self.prompt) if self.prompt else None
            edited = editor.edit(
                [cropped(given, size)],
                self._edit(),
                masks=masks,
                prompts=[prompt],
                seed=self.seed,
                sampler=sampler,
            )
            made = Image.fromarray(edited[0].image)
        file = self.out if self.out.suffix.lower() == ".png" else self.out / f"{self.images.stem}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        made.save(file)
        return str(file)

    def _all(self, folder: SnapshotFolder, place: Storage) -> tuple[list[str], dict[str, str]]:
        """Files written, and name -> reason of what was rejected."""
        import contextlib

        from pipelines import config, progress
        from pipelines.dataset import Dataset
        from pipelines.pipeline import run
        from pipelines.runner.plan import plan

        recipe = config.parse(self._recipe(folder), name="apply", folder=Path.cwd())
        planned = plan(recipe, place)
        if not planned.done:
            with contextlib.ExitStack() as stack:
                listeners: list[Any] = []
                if not self.json:
                    told = [(s.name, "done" if s.state == "done" else s.reason) for s in planned.stages]
                    listeners.append(stack.enter_context(progress.shown(console(), told)))
                run(recipe, place, executor=self.executor, listeners=listeners, record=False)
            planned = plan(recipe, place)
        made = planned["made"].folder
        assert made is not None
        return write(Dataset.open(made), self.out)

    def _recipe(self, folder: SnapshotFolder) -> str:
        """A recipe of the images (and masks) as they are, and the stage."""
        import json

        from pipelines.stage import jsonable

        size = folder.record["resolution"] if self.stage == "edit" else None
        made: dict[str, Any] = {"stage": self.stage, "images": "images", "model": folder.storage.url}
        made |= {"seed": self.seed, "max_rejects": 1.0}
        stages = {"images": _ingested(self.images, size)}
        if self.stage == "upscale":
            made |= {"level": self.level, "micro_batch": 1}
        else:
            made |= {"edit": jsonable(self._edit()), "guidance": folder.record["sampling"]["guidance"]}
            made |= {"prompt": self.prompt} if self.prompt else {}
            if self.masks is not None:
                stages["masks"] = _ingested(self.masks, size)
                made["masks"] = "masks"
        if self.steps is not None:
            made["sampler"] = {**folder.record["sampling"]["sampler"], "steps": self.steps}
        # YAML 1.2 reads JSON
        return json.dumps({"name": "apply", "stages": {**stages, "made": made}})


def _ingested(path: Path, size: int | None) -> dict[str, Any]:
    """The stage that reads files as they are, or cropped to `size`."""
    return {
        "stage": "ingest",
        "source": {"kind": "zip" if path.is_file() else "folder", "path": str(path.absolute())},
        **({"resize": "crop", "size": size} if size else {"resize": "none"}),
        "split": {"validation": 0.0, "test": 0.0},
        "max_rejects": 1.0,
    }


def opened(path: Path) -> Image:
    """An image file, upright and on white, as ingest has it. `ValueError` if it cannot be read."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
            given = ImageOps.exif_transpose(image).convert("RGBA")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not a JPEG, PNG or WebP that can be read: {error}") from error
    ground = Image.new("RGBA", given.size, "white")
    ground.alpha_composite(given)
    return ground


def cropped(image: Image, size: int) -> Image:
    """The middle square, at `size` px."""
    from PIL import Image, ImageOps

    return ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)


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
