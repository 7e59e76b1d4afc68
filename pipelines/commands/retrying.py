"""`run --retry-rejects`: which stages it retries, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.storage import Storage
    from pipelines.config import Recipe
    from pipelines.runner.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Retry:
    """What was rejected when it began."""

    before: Mapping[str, Mapping[str, int]]
    """Stage -> rejects of its own, by reason."""
    fingerprints: Mapping[str, str]
    """Stage -> the dataset that is retried."""

    @classmethod
    def of(cls, recipe: Recipe, store: Storage, planned: Plan) -> Retry:
        """Has the recipe's run folder remember, so that an interrupted retry goes on like any run."""
        from pipelines.runner.retry import remember, retriable

        before = retriable(planned)
        fingerprints = {name: str(planned[name].fingerprint) for name in before}
        if before:
            remember(store, recipe.name, fingerprints.values())
        return cls(before=before, fingerprints=fingerprints)

    def announced(self) -> Iterator[str]:
        if not self.before:
            yield "Nothing to retry: no stage has rejected anything itself."
        for name, reasons in self.before.items():
            yield f"retrying   {name}: {sum(reasons.values()):,} rejected ({told(reasons)})"

    def found(self, planned: Plan) -> dict[str, dict[str, Any]]:
        """Stage -> rejects before and now, by reason, and how many samples there are more."""
        from pipelines.runner.retry import rejects_of

        results = {}
        for name, before in self.before.items():
            stage = planned[name]
            if stage.state != "done" or stage.folder is None:
                continue
            now = rejects_of(stage.stage, stage.folder)  # pyright: ignore[reportArgumentType]
            results[name] = {
                "retry": self.fingerprints[name],
                "fingerprint": stage.fingerprint,
                "rejected_before": dict(before),
                "rejected": now,
                "recovered": max(0, sum(before.values()) - sum(now.values())),
            }
        return results

    def concluded(self, planned: Plan) -> Iterator[str]:
        found = self.found(planned)
        for name, said in found.items():
            before, left = sum(said["rejected_before"].values()), sum(said["rejected"].values())
            line = f"retried    {name}: {said['recovered']:,} of {before:,} recovered"
            yield line + (f", {left:,} rejected again ({told(said['rejected'])})" if left else "")
            if said["recovered"]:
                yield f"           for other stores, a line of {name} in the recipe:"
                yield f"           retry: {said['retry']}"
        if found:
            yield "           This store's runs of the recipe go on with what was made now."
            yield ""


def told(reasons: Mapping[str, int]) -> str:
    """12 truncated, 3 too_large."""
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
