"""What `bench/node.py` prints of what it found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

BARS = {"task_arithmetic": 0.5, "ties": 2.5}
"""Seconds of merge, load and reset of a 7B candidate that shall not be passed, and …"""
BAR_RATIO = 1.8
"""… by how much a whole candidate shall be faster."""
METHODS = tuple(BARS)
SHARED = 20
"""Candidates that share one start of the engine, in the last line of a table."""

Found = Mapping[str, Any]


def report(found: Found) -> str:
    """Return tables of the seconds, and the checks, as Markdown."""
    lines = [*_head(found), "", *_start(found), ""]
    for method in METHODS:
        own = [c for c in found["ours"].get("candidates", ()) if c["method"] == method]
        if own:
            lines += [*_candidate(method, own, found), ""]
    return "\n".join([*lines, *_checks(found)])


def _head(found: Found) -> Iterator[str]:
    make, ours = found["make"], found["ours"]
    versions = ", ".join(f"{name} {v}" for name, v in ours.get("versions", {}).items())
    yield f"**{found['shape']}** shapes, random weights, on {make.get('name', '?')}; {versions}."
    if "parents" in make:
        yield (
            f"A model has {make['gb']:.2f} GB; parents in {make['parents']}, checkpoints in "
            f"{make['checkpoint']}; made in {make['seconds']:.1f} s."
        )
    if "settings" in ours:
        yield f"Settings: {ours['settings']}."


def _start(found: Found) -> Iterator[str]:
    start = found["ours"].get("start")
    if not start:
        return
    parents = found["ours"]["parents"]
    yield "| once a node, s | ours |"
    yield "|---|---|"
    yield f"| import | {start['import']:.1f} |"
    yield (
        f"| parents ({parents['placement']}): begun in {parents['begun']:.2f} s, then beside the "
        f"start; waited for | {parents['waited']:.2f} |"
    )
    yield f"| engine start, code not compiled yet | {start['engine']:.1f} |"
    yield f"| canary | {start['canary']:.1f} |"
    yield f"| all | {start['all']:.1f} |"


def _candidate(method: str, own: Sequence[Found], found: Found) -> Iterator[str]:
    seed = found["seed"].get(method, {})
    whole = [c for c in own if c["full"]]
    parts = {name: _median(own, name) for name in ("merge", "load", "reset")}
    before, generate = sum(parts.values()), _median(whole, "generate") if whole else None
    theirs = {name: seed.get(name) for name in ("merge", "import", "engine", "generate")}
    their_before = _sum(theirs["merge"], theirs["import"], theirs["engine"])
    start = found["ours"]["start"]["all"] / SHARED
    yield f"| a candidate, {method}, s | checkpoints | ours, median of {len(own)} | |"
    yield "|---|---|---|---|"
    yield _row("merge (checkpoints: and write)", theirs["merge"], parts["merge"])
    yield _row("import", theirs["import"], None)
    yield _row("engine start, weights read", theirs["engine"], None)
    yield _row("load into the live engine", None, parts["load"])
    yield _row("reset of the prefix cache", None, parts["reset"])
    yield _row("before the first token", their_before, before, ratio=True)
    yield _row(f"generate (ours: {len(whole)})", theirs["generate"], generate, ratio=True)
    our_whole = _sum(before, generate)
    their_whole = _sum(their_before, theirs["generate"])
    yield _row("whole candidate", their_whole, our_whole, ratio=True)
    shared = _sum(our_whole, start)
    yield _row(f"… and 1/{SHARED} of our start", their_whole, shared, ratio=True)
    merges = ", ".join(f"{c['merge']:.3f}" for c in own)
    for c in whole[-1:]:
        yield (
            f"\nOurs: {c['tokens']} tokens, {c['tokens'] / c['generate']:.0f} a second; usage "
            f"{c['usage']}. Merges: {merges} s."
        )


def _checks(found: Found) -> Iterator[str]:
    candidates = found["ours"].get("candidates", [])
    yield "| check | | |"
    yield "|---|---|---|"
    for method in METHODS:
        own = [c for c in candidates if c["method"] == method]
        if own and found["shape"] == "7B":
            spent = median(c["merge"] + c["load"] + c["reset"] for c in own)
            bar = BARS[method]
            yield _check(f"{method}: merge + load + reset ≤ {bar} s", spent <= bar, f"{spent:.3f}")
        yield from _ratio_check(method, own, found)
        same = found.get("same", {}).get(method)
        if same:
            text = f"{same['equal']} of {same['answers']} answers, {same['tokens']} tokens"
            if same["first_differences"]:
                text += f"; the others differ from tokens {same['first_differences']} on"
            yield _check(
                f"{method}: swapped = fresh engine, all ids", same["equal"] == same["answers"], text
            )
    whole = [c for c in candidates if c["full"]]
    if whole:
        short = [c for c in whole if c["tokens"] != c["asked"]]
        text = ", ".join(f"{c['tokens']} of {c['asked']} tokens" for c in short or whole)
        yield _check("answers as long as the recorded ones", not short, text)
    hashes = [(c["full"], c["sha256"]) for c in candidates]
    if hashes:
        count = len(set(hashes))
        yield _check("candidates answer differently", count == len(hashes), f"{count} answers")
    yield from _memory_check(found["ours"].get("memory"), candidates, found)
    for stage, why in found["failed"].items():
        yield _check(stage, False, why)


def _ratio_check(method: str, own: Sequence[Found], found: Found) -> Iterator[str]:
    seed, whole = found["seed"].get(method, {}), [c for c in own if c["full"]]
    if "generate" in seed and whole:
        ours = median(c["merge"] + c["load"] + c["generate"] for c in whole)
        theirs = sum(seed[name] for name in ("merge", "import", "engine", "generate"))
        ratio = theirs / ours
        text = f"{theirs:.1f} / {ours:.1f} = {ratio:.2f}"
        yield _check(f"{method}: whole candidate ≥ {BAR_RATIO} times", ratio >= BAR_RATIO, text)


def _memory_check(memory: Found | None, candidates: Sequence[Found], found: Found) -> Iterator[str]:
    if not memory or not memory["after_start"] or not candidates:
        return
    peak, start = max(c["peak"] for c in candidates), memory["after_start"]
    parents = found["ours"]["parents"]["bytes"]
    gb = {
        name: f"{value / 1e9:.1f}"
        for name, value in (
            ("peak", peak),
            ("start", start),
            ("parents", parents),
            ("weights", memory["weights"]),
            ("kv", memory["kv"]),
        )
    }
    text = (
        f"peak {gb['peak']} GB, {peak / start - 1:+.1%} of {gb['start']} after the start (parents "
        f"{gb['parents']}, weights {gb['weights']}, cache {gb['kv']}, the rest vLLM's own)"
    )
    yield _check("GPU memory ≤ parents + engine + 10 %", peak <= 1.1 * start, text)


def _check(what: str, good: bool, text: str) -> str:
    return f"| {what} | {'yes' if good else '**no**'} | {text} |"


def _row(name: str, theirs: float | None, ours: float | None, ratio: bool = False) -> str:
    times = f"{theirs / ours:.1f}×" if ratio and theirs and ours else ""
    return f"| {name} | {_seconds(theirs)} | {_seconds(ours)} | {times} |"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _median(candidates: Sequence[Found], name: str) -> float:
    return float(median(c[name] for c in candidates))
