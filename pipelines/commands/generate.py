"""`latentmill generate`: pictures from a model, now."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional

from pipelines.commands.arguments import StorePath, Switch, shown_as
from pipelines.commands.console import console, say_json
from pipelines.commands.reference import resolve

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Draw pictures from a trained model: on the terminal, and as PNG files."""

    text: Annotated[Positional[tuple[str, ...]], shown_as("[TEXT ...]")] = ()
    """What to draw: one picture (or --count) of each."""
    model: Annotated[str, shown_as("MODEL", default="(emoji3d)")] = "emoji3d"
    """A shipped model, a snapshot's folder or URL, RECIPE:STAGE of this store, models:/NAME@ALIAS, or a whole
    pipeline of diffusers: its folder, or org/name@COMMIT of the hub."""
    upscalers: Annotated[tuple[str, ...], shown_as("MODEL ...")] = ()
    """Models that enlarge what was drawn, one after the other."""
    level: float = 0.1
    """Noise mixed into what upscalers are given: the more, the less they trust what was drawn."""
    classes: Annotated[tuple[str, ...], shown_as("CLASS ...")] = ()
    """Names of classes to draw: one for all texts, or one each."""
    file: Annotated[Path | None, shown_as("PROMPTS.TXT")] = None
    """More texts, one a line."""
    count: int = 1
    """Pictures of each text or class."""
    seed: int = 0
    """The same seed draws the same pictures."""
    steps: Annotated[int | None, shown_as("INT")] = None
    """Steps of the sampler, if not the model's own."""
    guidance: Annotated[float | None, shown_as("FLOAT")] = None
    """How far text and class are pressed for, if not the model's own; 1 is not at all."""
    out: Path = Path("pictures")
    """Folder for the PNG files."""
    store: StorePath = None
    """Where RECIPE:STAGE and registered models are looked up."""
    json: Switch = False
    """Print JSON and no pictures."""

    def __call__(self, flags: Sequence[str]) -> int:
        import time

        if self.count < 1:
            raise ValueError(f"--count is {self.count}; it must be at least 1.")
        texts = [*self.text, *self._lines()]
        classes = list(self.classes)
        if texts and len(classes) == 1:
            classes *= len(texts)
        if texts and classes and len(texts) != len(classes):
            raise ValueError(
                f"{len(texts)} texts and {len(classes)} classes: give one class, or one for each text."
            )
        what = texts or classes
        model_url = resolve(self.model, self.store)
        from pipelines import models, upscaler

        start = time.monotonic()
        model = models.load(model_url, store=self.store)
        larger = [upscaler.load(resolve(one, self.store), store=self.store) for one in self.upscalers]
        indices = list(range(self.count)) * max(1, len(what))
        images = model.generate(
            _each(texts, self.count) if texts else None,
            classes=_each(classes, self.count) if classes else None,
            seed=self.seed,
            indices=indices,
            steps=self.steps,
            guidance=self.guidance,
        )
        for one in larger:
            images = one.enlarge(
                images, seed=self.seed, indices=indices, level=self.level, micro_batch=models.MICRO_BATCH
            )
        seconds = time.monotonic() - start
        records = self._save(images, _each(texts, self.count), _each(classes, self.count))
        if self.json:
            say_json({"model": model_url, "seconds": round(seconds, 2), "pictures": records})
        else:
            _show(images, records, seconds, self.model)
        return 0

    def _lines(self) -> list[str]:
        if self.file is None:
            return []
        if not self.file.is_file():
            raise ValueError(f"there is no file {self.file}.")
        return [line.strip() for line in self.file.read_text(encoding="utf-8").splitlines() if line.strip()]

    def _save(self, images: Sequence[Image], texts: list[str], classes: list[str]) -> list[dict[str, Any]]:
        """Writes each picture with where it comes from inside it."""
        import json

        from PIL.PngImagePlugin import PngInfo

        self.out.mkdir(parents=True, exist_ok=True)
        records = []
        for n, image in enumerate(images):
            record = {
                "prompt": texts[n] if texts else None,
                "class": classes[n] if classes else None,
                "model": self.model,
                **({"upscalers": list(self.upscalers), "level": self.level} if self.upscalers else {}),
                "seed": self.seed,
                "index": n % self.count,
            }
            words = record["prompt"] or record["class"] or self.model
            path = self.out / f"{slug(words)}-{self.seed}-{n % self.count}.png"
            info = PngInfo()
            info.add_itxt("latentmill", json.dumps(record, ensure_ascii=False))
            image.save(path, pnginfo=info)
            records.append({**record, "file": str(path)})
        return records


def slug(text: str) -> str:
    """A file name's part: `a red fox` -> `a-red-fox`."""
    return re.sub(r"[^\w]+", "-", text.lower(), flags=re.ASCII).strip("-")[:60] or "picture"


def _each(words: list[str], count: int) -> list[str]:
    return [word for word in words for _ in range(count)]


def _show(images: Sequence[Image], records: Sequence[dict[str, Any]], seconds: float, model: str) -> None:
    from pipelines import terminal

    screen = console()
    if screen.color_system is not None:
        screen.print(terminal.row(images[:SHOWN], columns=screen.width))
    for record in records:
        screen.print(record["file"], markup=False, soft_wrap=True)
    screen.print(f"{len(images)} pictures by {model} in {seconds:.1f} s", style="dim", markup=False)
