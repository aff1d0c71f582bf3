"""Benchmarks: the problems of a source as items, compared with what its manifest knows.

The problems are read from the package (toy family), from a local file that the site names, or from
the hub's offline cache.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from l2s_hpc.errors import UserError, did_you_mean
from l2s_hpc.evaluation.golds import GOLD_RULES
from l2s_hpc.evaluation.manifests import Source, source, sources
from l2s_hpc.evaluation.rows import Row, load_from_hub, read_rows, rows_sha256
from l2s_hpc.records import Item, Origin
from l2s_hpc.store.layout import shipped

__all__ = [
    "SPLITS",
    "Benchmark",
    "Problem",
    "Source",
    "load",
    "load_all",
    "load_from_hub",
    "origin_of",
    "question_hash",
    "read",
    "source",
    "sources",
    "strangers",
]

SPLITS = ("search", "selection", "report")

_SUFFIX = re.compile(r"\s*\((?:Yes or No|True or False)\)\s*$")
_KINDS = {"yes": "Yes or No", "no": "Yes or No", "true": "True or False", "false": "True or False"}


@dataclass(frozen=True)
class Problem:
    """An item, and its split if the benchmark brings its own."""

    item: Item
    split: str | None


@dataclass(frozen=True)
class Benchmark:
    """The problems of a benchmark in the order of its rows, and where those came from."""

    problems: tuple[Problem, ...]
    origin: Origin


def load_all(
    names: Iterable[str], files: Mapping[str, str], other_snapshots: Collection[str] = ()
) -> dict[str, Benchmark]:
    """Return benchmarks by name.

    Args:
        names: of the benchmarks.
        files: the site's local files by benchmark name.
        other_snapshots: those whose problems may be others than the published ones.

    Raises:
        UserError: one is unknown, not here or not as published.
    """
    return {name: load(source(name, files), files, name in other_snapshots) for name in names}


def load(entry: Source, files: Mapping[str, str], other_snapshot: bool = False) -> Benchmark:
    """Read a benchmark.

    Args:
        entry: the benchmark.
        files: the site's local files by benchmark name.
        other_snapshot: accept problems that are not those of the manifest.

    Raises:
        UserError: they cannot be read, or are not those that the manifest knows.
    """
    revision, kind = None, origin_of(entry, files)
    if kind == "file":
        place = where = files[entry.name]
        rows = read_rows(Path(where).expanduser())
    elif kind == "package":
        place, where = entry.path, str(shipped("data") / entry.path)
        rows = read_rows(Path(where))
    elif kind == "hub":
        place = where = entry.dataset
        rows, revision = load_from_hub(entry, offline=True)
    else:
        raise UserError(
            f"benchmark '{entry.name}' has no file", hint="name it in the site's [benchmarks]"
        )
    problems = read(entry, rows, where)
    if not other_snapshot:
        _compare(entry, [problem.item for problem in problems], where)
    origin = Origin(
        source=kind,
        place=place,
        revision=revision,
        rows_sha256=rows_sha256(rows),
        items=len(problems),
    )
    return Benchmark(problems, origin)


def origin_of(entry: Source, files: Mapping[str, str]) -> Literal["file", "package", "hub"] | None:
    """Return where a benchmark's rows are read from: a local file first; None: from nowhere."""
    if entry.name in files:
        return "file"
    if entry.path:
        return "package"
    return "hub" if entry.dataset else None


def read(entry: Source, rows: Sequence[Row], where: str) -> tuple[Problem, ...]:
    """Turn rows into problems; `where` stands in errors.

    Raises:
        UserError: there are none, or one lacks a question or an answer.
    """
    if not rows:
        raise UserError(f"benchmark '{entry.name}' has no problems", path=where)
    _check_splits(entry, rows, where)
    seen: Counter[str] = Counter()
    problems = [_problem(entry, row, where, seen) for row in rows]
    doubtful = _conflicting(problem.item for problem in problems)
    return tuple(
        replace(p, item=p.item.model_copy(update={"ungradable": "conflict"}))
        if p.item.question_hash in doubtful and not p.item.ungradable
        else p
        for p in problems
    )


def strangers(entry: Source, items: Iterable[Item]) -> tuple[list[Item], list[str]]:
    """Return the items that a manifest does not know, and the ids that it misses.

    Both are empty for a benchmark without a manifest.
    """
    if not entry.items:
        return [], []
    found = {item.item: item for item in items}
    unknown = [item for name, item in found.items() if name not in entry.items]
    return unknown, [name for name in entry.items if name not in found]


def question_hash(question: str) -> str:
    """Return the hash by which copies of a question are known.

    Case and white space are ignored, and so is the kind of answer that Qwen2.5-Math appends.
    """
    text = _SUFFIX.sub("", question)
    return hashlib.sha256(" ".join(text.split()).casefold().encode()).hexdigest()[:16]


def _compare(entry: Source, items: Sequence[Item], where: str) -> None:
    unknown, missing = strangers(entry, items)
    if not unknown and not missing:
        return
    first = f" (the first: {unknown[0].question[:60]!r})" if unknown else f" ({missing[0]}, …)"
    raise UserError(
        f"benchmark '{entry.name}' has other problems than the published ones: {len(missing)} of "
        f"{entry.count} are missing, {len(unknown)} are unknown{first}",
        hint=f"if another snapshot is meant, write other_snapshots = ['{entry.name}'] in the job; "
        "problems of your own get a name of their own in the site's [benchmarks]",
        path=where,
    )


def _check_splits(entry: Source, rows: Iterable[Row], where: str) -> None:
    """A file that divides its problems divides all of them; any other `split` is ignored."""
    found = {str(row.get("split")) for row in rows}
    strange = sorted(found - set(SPLITS))
    if found & set(SPLITS) and strange:
        raise UserError(
            f"benchmark '{entry.name}': unknown split '{strange[0]}'",
            hint=did_you_mean(strange[0], SPLITS),
            path=where,
        )


def _problem(entry: Source, row: Row, where: str, seen: Counter[str]) -> Problem:
    """Turn a row into a problem; files may use the plain names question (or problem) and answer."""
    question = _first_of(row, entry.question, "question", "problem")
    column = entry.answer if row.get(entry.answer) not in (None, "", []) else "answer"
    answer = row.get(column)
    if not isinstance(question, str) or not question.strip() or answer in (None, "", []):
        raise UserError(
            f"benchmark '{entry.name}': a row has no '{entry.question}' or '{entry.answer}'",
            path=where,
        )
    gold = GOLD_RULES[entry.gold if column == entry.answer else "plain"](answer)
    asked = _asked(entry, question.strip(), gold)
    item = _numbered(hashlib.sha256(json.dumps([asked, gold]).encode()).hexdigest()[:16], seen)
    level = _first_of(row, entry.level, "level", "subject")
    known = entry.items.get(item)
    return Problem(
        item=Item(
            benchmark=entry.name,
            item=item,
            question=asked,
            gold=gold,
            question_hash=question_hash(asked),
            level=known.level if known else None if level is None else str(level),
            ungradable=known.ungradable if known else "prose" if row.get("prose") else "",
        ),
        split=row.get("split") if row.get("split") in SPLITS else None,
    )


def _asked(entry: Source, question: str, gold: str) -> str:
    """Return the question as it is asked: Qwen2.5-Math says which kind of answer is wanted."""
    kind = _KINDS.get(gold.lower()) if entry.dataset else None
    return f"{question} ({kind})" if kind and not _SUFFIX.search(question) else question


def _numbered(digest: str, seen: Counter[str]) -> str:
    seen[digest] += 1
    return f"{digest}-{seen[digest]}" if seen[digest] > 1 else digest


def _conflicting(items: Iterable[Item]) -> set[str]:
    """Return the questions that stand there with several golds: at most one of them is right."""
    golds: dict[str, set[str]] = {}
    for item in items:
        golds.setdefault(item.question_hash, set()).add("".join(item.gold.split()))
    return {question for question, found in golds.items() if len(found) > 1}


def _first_of(row: Row, *columns: str) -> Any:
    """Return the first value that is there."""
    return next((row[name] for name in columns if name and row.get(name) is not None), None)
