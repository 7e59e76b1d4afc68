"""What an endpoint's captions took, counted from the indices of the shards that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.captioners.endpoint import UNAVAILABLE, Endpoint

_COUNTS = ("requests", "retries", "tokens_in", "tokens_out", "cut")


def usage(captioners: Sequence[Any], metas: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One a captioner that is an endpoint: requests, tokens, cost and failures over all samples.

    Captions that were copied from an earlier run are counted with what they took then.
    """
    found: dict[int, dict[str, Any]] = {
        number: {"model": captioner.model, "images": 0, **dict.fromkeys(_COUNTS, 0), "failed": {}}
        for number, captioner in enumerate(captioners)
        if isinstance(captioner, Endpoint)
    }
    for meta in metas if found else ():
        for number, counts in found.items():
            if f"caption.{number}.requests" not in meta:
                continue
            counts["images"] += 1
            for name in _COUNTS:
                counts[name] += int(meta.get(f"caption.{number}.{name}") or 0)
            reason = meta.get(f"caption.{number}.failed")
            if reason:
                counts["failed"][reason] = counts["failed"].get(reason, 0) + 1
    for number, counts in found.items():
        counts["cost"] = captioners[number].cost(counts["tokens_in"], counts["tokens_out"])
    return list(found.values())


def sentence(counts: Mapping[str, Any]) -> str:
    """What a user wants to know of it when the stage is over."""
    cost = "" if counts["cost"] is None else f", cost {counts['cost']:,.2f}"
    failed = ", ".join(f"{n:,} {reason}" for reason, n in sorted(counts["failed"].items()))
    again = " (--retry-rejects asks again)" if UNAVAILABLE in counts["failed"] else ""
    return (
        f"{counts['model']}: {counts['images']:,} images, {counts['requests']:,} requests "
        f"({counts['retries']:,} retries), {counts['tokens_in']:,} tokens in, "
        f"{counts['tokens_out']:,} out{cost}" + (f"; {failed}{again}" if failed else "") + "."
    )
