"""What is known of a thing, as lines for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.commands.plan import duration, size
from pipelines.inspection.histogram import Histogram
from pipelines.inspection.summary import Quantiles, Summary
from pipelines.inspection.thing import Node, Thing
from pipelines.report.charts import number
from pipelines.sources.listing import printable

WIDTH = 80
BAR = "█"
PARTS = " ▏▎▍▌▋▊▉"
CLASSES = 12
"""Classes that are listed; the others are told as a sum."""


def what(thing: Thing) -> Iterator[str]:
    """What it is and how it came to be: its manifest in words."""
    manifest, name = thing.manifest, thing.reference
    stage = manifest.get("stage")
    kind = "view" if "view" in manifest else thing.kind
    if not thing.finished:
        yield _cut(f"{name}: not finished; what its committed shards hold")
    else:
        yield _cut(f"{name}: a {kind}" + (f" by {stage} version {manifest.get('version')}" if stage else ""))
    yield f"  {thing.storage.url}"
    execution = manifest.get("execution") or {}
    if execution:
        versions = execution.get("versions") or {}
        told = [f"took {duration(execution.get('seconds'))}", str(execution.get("executor", ""))]
        told += [f"{p} {versions[p]}" for p in ("latentmill", "torch", "pillow") if p in versions]
        yield _cut("  " + ", ".join(told))
    meaning = {k: v for k, v in (manifest.get("meaning") or {}).items() if v not in (None, (), [], {})}
    if meaning:
        yield from _wrapped("  with ", ", ".join(f"{k} {short(v)}" for k, v in sorted(meaning.items())))
    for role, entry in (manifest.get("inputs") or {}).items():
        yield _cut(f"  {role}: {_entry(entry)}")
    record = manifest.get("snapshot") or manifest.get("report")
    if isinstance(record, Mapping):
        yield from _record(record)


def _record(record: Mapping[str, Any]) -> Iterator[str]:
    for name, value in record.items():
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            yield _cut(f"  {name.replace('_', ' ')}: {number(value) if isinstance(value, float) else value}")
    if files := record.get("files"):
        yield _cut(f"  files: {', '.join(files)}")


def summary(found: Summary, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Counts, rejects, histograms, classes and scores."""
    yield ""
    head = ("split", "samples", "rejected", "dropped", "shards")
    rows = [
        (name, *(f"{c[k]:,}" for k in ("samples", "rejected", "dropped", "shards")))
        for name, c in sorted(found.splits.items())
    ]
    if len(rows) > 1:
        total = {
            k: sum(c[k] for c in found.splits.values()) for k in ("samples", "rejected", "dropped", "shards")
        }
        rows.append(("all", *(f"{total[k]:,}" for k in total)))
    yield from _columns([head, *rows])
    columns = manifest.get("columns") or {}
    if columns:
        yield ""
        yield from _columns(
            [
                ("column", "count", "bytes"),
                *((n, f"{c['count']:,}", size(c["bytes"])) for n, c in columns.items()),
            ]
        )
    if found.reasons:
        yield ""
        for reason, count in found.reasons.most_common():
            yield f"{count:8,} {reason}"
            for example in found.examples.get(reason, []):
                yield _cut(f"         {printable(example)}")
    if found.dropped:
        yield from _section("Dropped", "by the first rule that failed", found.dropped.most_common())
    for histogram in found.histograms.values():
        if histogram.total:
            yield from _histogram(histogram)
    if found.classes:
        listed = found.classes.most_common(CLASSES)
        rest = found.classes.most_common()[CLASSES:]
        bars = [(printable(name), count) for name, count in listed]
        if rest:
            bars.append((f"{len(rest):,} more", sum(count for _, count in rest)))
        yield from _section("Classes", f"{len(found.classes):,}", bars)
    if found.scores:
        yield ""
        yield from _columns(
            [("number", "count", "min", "5 %", "median", "95 %", "max"), *_scores(found.scores)]
        )


def _scores(scores: Mapping[str, Quantiles]) -> Iterator[tuple[str, ...]]:
    for name, q in sorted(scores.items()):
        values = (q.low, q.at(0.05), q.at(0.5), q.at(0.95), q.high)
        yield (printable(name)[:24], f"{q.count:,}", *(number(v) for v in values))


def lineage(node: Node, depth: int = 0) -> Iterator[str]:
    """A line for each thing that it was made from, the nearest first; what is told already is named only."""
    manifest = node.manifest
    stage = str(manifest.get("stage") or node.said.get("stage") or "")
    fingerprint = str(manifest.get("fingerprint") or node.said.get("fingerprint") or "")[:12]
    counts = manifest.get("counts") or {}
    told = [f"{counts['committed']:,} samples"] if "committed" in counts else []
    told += [f"{counts['rejected']:,} rejected"] if counts.get("rejected") else []
    snapshot = manifest.get("snapshot") or {}
    told += [f"{snapshot['images_seen']:,} images seen"] if "images_seen" in snapshot else []
    time = snapshot.get("time") or {}
    told += [f"goodput {100 * time['goodput']:.0f} %"] if "goodput" in time else []
    if not manifest:
        told = ["not there any more"]
    elif node.again:
        told = ["see above"]
    role = f"{node.role}: " if node.role else ""
    name = f"{role}{stage or manifest.get('kind', '')} {fingerprint}"
    yield _cut(f"{'  ' * depth}{name}  {', '.join(told)}".rstrip())
    source = (manifest.get("meaning") or {}).get("source")
    if isinstance(source, Mapping) and not node.again:
        said = ", ".join(f"{k} {short(v)}" for k, v in source.items() if v not in (None, "", [], {}))
        yield _cut(f"{'  ' * (depth + 1)}source: {said}")
        for name, digest in (manifest.get("external") or {}).items():
            yield _cut(f"{'  ' * (depth + 1)}digest of its {name}: {str(digest)[:32]}")
    for above in node.inputs:
        yield from lineage(above, depth + 1)


def sample(told: Mapping[str, Any]) -> Iterator[str]:
    """One sample: where it lies and what is said of it."""
    yield f"{told['key']}  {told['split']}"
    yield f"  source          {printable(str(told['source']))}"
    yield f"  shard           {told['shard']}, row {told['row']}"
    if told["reason"]:
        yield f"  rejected        {told['reason']}"
    for suffix, member in told["members"].items():
        yield f"  {suffix:15} {size(member['bytes'])} at {member['offset']:,}, sha256 {member['sha256'][:16]}"
    facts = {**(told.get("json") or {}), **told["facts"]}
    for name, value in sorted(facts.items()):
        yield from _wrapped(f"  {printable(str(name)):15} ", printable(str(value)))
    captions = told.get("captions.json")
    for caption in captions if isinstance(captions, list) else []:
        if isinstance(caption, Mapping):
            source, weight = printable(str(caption.get("source"))), caption.get("weight")
            yield from _wrapped(
                "  caption         ", f"{printable(str(caption.get('text')))} ({source}, {weight})"
            )
    if "txt" in told and not captions:
        yield from _wrapped("  caption         ", printable(told["txt"]))
    for name, value in (told.get("scores.json") or {}).items():
        value = number(value) if isinstance(value, float) else value
        yield from _wrapped("  score           ", f"{printable(str(name))} {value}")


def _histogram(histogram: Histogram) -> Iterator[str]:
    middle, low, high = histogram.quantile(0.5), min(histogram.counts), max(histogram.counts)
    shown = f"{histogram.unit}"
    if histogram.scale != "aspect" and low != high:
        shown += f"; {low:,} to {high:,}, median {middle:,}"
    yield from _section(histogram.title, shown, histogram.bars())


def _section(title: str, unit: str, bars: Sequence[tuple[str, int]]) -> Iterator[str]:
    yield ""
    yield f"{title} ({unit})"
    yield from bar_lines(bars)


def bar_lines(bars: Sequence[tuple[str, int]]) -> Iterator[str]:
    """Each with its label, a bar to the scale of the longest, and its count."""
    most = max((count for _, count in bars), default=0) or 1
    label = min(max((len(name) for name, _ in bars), default=0), 28)
    room = WIDTH - label - 14
    for name, count in bars:
        eighths = max(round(8 * room * count / most), 1 if count else 0)
        bar = BAR * (eighths // 8) + PARTS[eighths % 8].strip()
        cut = name if len(name) <= label else name[: label - 1] + "…"
        yield f"  {cut:>{label}} {count:9,} {bar}".rstrip()


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    for row in rows:
        cells = [f"{row[0]:{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def _entry(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return str(entry)
    version = f", version {entry['model_version']}" if entry.get("model_version") else ""
    stage, fingerprint = entry.get("stage") or "", str(entry.get("fingerprint") or "")[:12]
    return f"{entry.get('reference')} ({stage} {fingerprint}{version})".replace(" )", ")")


def short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k} {short(v)}" for k, v in value.items() if v not in (None, [], {})) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(short, value)) + "]"
    return printable(str(value))


def _wrapped(head: str, text: str) -> list[str]:
    indent = " " * len(head)
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=indent) or [head.rstrip()]


def _cut(line: str) -> str:
    """A line that is not a path: what does not fit is left off."""
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
