"""`latentmill show`: what a dataset, snapshot or report is, what is in it, and what is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional

from pipelines.commands.arguments import StorePath, Switch, shown_as
from pipelines.commands.console import console, program, say_json

if TYPE_CHECKING:
    from cluster.storage import Storage
    from pipelines.inspection.sheet import Shown
    from pipelines.inspection.summary import Summary
    from pipelines.inspection.thing import Thing

SHEET, PAGE = "sheet.png", "page.html"
LINES = 12
"""Height of a sample's picture, in lines."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """Show what a dataset holds and what was rejected, as numbers, a contact sheet and a page.

    Of a snapshot or a report, what its manifest says.
    """

    thing: Annotated[Positional[str], shown_as("THING")]
    """A folder or URL, or RECIPE:STAGE of this store; also what is not finished yet."""
    split: Annotated[str | None, shown_as("SPLIT")] = None
    """Of this split alone."""
    reason: Annotated[str | None, shown_as("REASON")] = None
    """List the sources of all that was rejected for this reason, instead."""
    key: Annotated[str | None, shown_as("KEY")] = None
    """Show one sample, instead."""
    lineage: Switch = False
    """Show what it was made from, up to the sources, instead."""
    pictures: Annotated[int, shown_as("INT")] = 40
    """Images on the contact sheet."""
    seed: Annotated[int, shown_as("INT")] = 0
    """Another one chooses other images."""
    out: Annotated[Path | None, shown_as("DIR")] = None
    """Where the sheet and the page go: beside the recipe's runs in the store, else to ./show, if not said."""
    store: StorePath = None
    """Where RECIPE:STAGE is looked up."""
    json: Switch = False
    """Print JSON; nothing is drawn unless --out says where."""

    def __call__(self, flags: Sequence[str]) -> int:
        from pipelines.inspection import telling
        from pipelines.inspection.thing import find, lineage

        if self.pictures < 0:
            raise ValueError(f"--pictures is {self.pictures}; it must be 0 or more.")
        thing = find(self.thing, self.store)
        if self.lineage:
            return self._say(telling.lineage(lineage(thing)), lambda: _tree(lineage(thing)))
        if self.key is not None:
            return self._sample(thing, self.key)
        if self.reason is not None:
            return self._rejects(thing, self.reason)
        return self._whole(thing)

    def _whole(self, thing: Thing) -> int:
        from pipelines.inspection import telling
        from pipelines.inspection.summary import summarise

        found = None
        if thing.kind == "dataset":
            found = summarise(thing, split=self.split, seed=self.seed, pictures=self.pictures)
        written = [] if self.json and self.out is None else self._draw(thing, found)
        if self.json:
            manifest = {k: v for k, v in thing.manifest.items() if k != "shards"}
            said = {"reference": thing.reference, "url": thing.storage.url, "finished": thing.finished}
            said |= {"manifest": manifest, **(found.as_json() if found else {}), "files": written}
            say_json(said)
            return 0
        screen = console()
        lines = [*telling.what(thing)]
        if found is not None:
            lines += telling.summary(found, thing.manifest)
        for line in lines:
            screen.print(line, markup=False, soft_wrap=True)
        if found is not None and found.reasons:
            reason = found.reasons.most_common(1)[0][0]
            hint = f"{program()} show {self.thing} --reason {reason}"
            screen.print(f"\nall of them  {hint}", markup=False, soft_wrap=True)
        screen.print()
        for file in written:
            screen.print(
                f"{'page' if file.endswith('.html') else 'sheet':10} {file}", markup=False, soft_wrap=True
            )
        return 0

    def _draw(self, thing: Thing, found: Summary | None) -> list[str]:
        """The files that were written."""
        from pipelines.inspection import page, sheet
        from pipelines.inspection.thing import lineage

        samples: list[Shown] = sheet.shown(thing, found.picks) if found is not None else []
        folder, files = self._place(thing), []
        if samples:
            folder.replace(SHEET, sheet.draw(samples))
            files.append(f"{folder.url}/{SHEET}")
        folder.replace(PAGE, page.render(thing, found, samples, lineage(thing)).encode())
        return [*files, f"{folder.url}/{PAGE}"]

    def _place(self, thing: Thing) -> Storage:
        from cluster.storage import Storage

        if self.out is not None:
            return Storage.at(self.out)
        if thing.home is not None:
            return thing.home.folder("show").folder(thing.stage)
        return Storage.at(Path("show", thing.storage.url.rstrip("/").rpartition("/")[2] or "store"))

    def _sample(self, thing: Thing, key: str) -> int:
        from pipelines.inspection import telling
        from pipelines.inspection.sample import sample

        told, shown = sample(thing, key)
        if self.json:
            say_json(told)
            return 0
        screen = console()
        if shown is not None and screen.color_system is not None:
            from pipelines import terminal

            screen.print(terminal.row([shown.picture], columns=min(screen.width - 2, 48), lines=LINES))
        for line in telling.sample(told):
            screen.print(line, markup=False, soft_wrap=True)
        return 0

    def _rejects(self, thing: Thing, reason: str) -> int:
        from pipelines.inspection.summary import rejected
        from pipelines.sources.listing import printable

        found = rejected(thing, reason, self.split)
        rows = [{"source": source, "key": key, "shard": shard} for source, key, shard in found]
        return self._say((printable(source) for source, _, _ in found), lambda: rows)

    def _say(self, lines: Iterable[str], value: Any) -> int:
        if self.json:
            say_json(value())
            return 0
        screen = console()
        for line in lines:
            screen.print(line, markup=False, soft_wrap=True)
        return 0


def _tree(node: Any) -> dict[str, Any]:
    manifest = node.manifest
    return {
        "role": node.role,
        "url": node.url,
        "stage": manifest.get("stage") or node.said.get("stage"),
        "fingerprint": manifest.get("fingerprint") or node.said.get("fingerprint"),
        "kind": manifest.get("kind"),
        "there": bool(manifest),
        "source": (manifest.get("meaning") or {}).get("source"),
        "inputs": [] if node.again else [_tree(above) for above in node.inputs],
    }
