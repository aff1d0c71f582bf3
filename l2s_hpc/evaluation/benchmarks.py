"""Benchmarks: where their problems come from, and how they are divided into disjoint splits.

A benchmark is described in `data/benchmarks.toml`; its problems are read from the package (toy
family), from a local file that the site names, or from the hub's offline cache.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from l2s_hpc.config import SearchConfig, SplitsConfig
from l2s_hpc.errors import UserError, did_you_mean
from l2s_hpc.evaluation.extraction import extract
from l2s_hpc.records import Item
from l2s_hpc.store.layout import shipped

SPLITS = ("search", "selection", "report")


@dataclass(frozen=True)
class Source:
    """One entry of `data/benchmarks.toml`."""

    name: str
    licence: str
    gold: str
    question: str
    answer: str
    level: str = ""
    path: str = ""
    dataset: str = ""
    subset: str | None = None
    split: str = "test"


@dataclass(frozen=True)
class Problem:
    """A question and its gold answer, and the split if the benchmark brings its own."""

    question: str
    gold: str
    level: str | None
    split: str | None


def sources() -> dict[str, Source]:
    """Return every known benchmark by name."""
    text = (shipped("data") / "benchmarks.toml").read_text(encoding="utf-8")
    return {name: Source(name, **entry) for name, entry in tomllib.loads(text).items()}


def source(name: str) -> Source:
    """Return one benchmark; raises `UserError` with the nearest valid name."""
    known = sources()
    if name not in known:
        raise UserError(f"unknown benchmark '{name}'", hint=did_you_mean(name, known))
    return known[name]


def splits(config: SearchConfig, files: Mapping[str, str]) -> dict[str, tuple[Item, ...]]:
    """Return the items of each split of a job.

    A question falls into one split wherever it stands: the split is drawn from the seed and the
    hash of the question alone, so copies and overlapping benchmarks cannot leak.

    Args:
        config: the job.
        files: the site's local files by benchmark name.

    Raises:
        UserError: a benchmark is unknown or absent, or its own splits overlap.
    """
    divided: dict[str, list[Item]] = {name: [] for name in SPLITS}
    owner: dict[str, tuple[str, str]] = {}
    for name in config.benchmarks:
        problems = load(source(name), files)
        for split, items in _divide(name, problems, config.splits, config.seed).items():
            for item in items:
                first = owner.setdefault(item.question_hash, (split, name))
                if first[0] != split:
                    raise UserError(
                        f"splits overlap: a question of {name}/{split} stands in "
                        f"{first[1]}/{first[0]} too: {item.question[:60]!r}",
                        hint="mend the 'split' fields of the benchmark's file",
                    )
            divided[split] += items
    for split, found in divided.items():
        if not found:
            raise UserError(
                f"the split '{split}' is empty", hint=f"raise splits.{split}.share in the job"
            )
    return {split: tuple(found) for split, found in divided.items()}


def load(entry: Source, files: Mapping[str, str]) -> list[Problem]:
    """Return the problems of a benchmark, from the site's file, the package or the hub's cache."""
    if entry.name in files:
        rows, where = _read_file(Path(files[entry.name]).expanduser()), files[entry.name]
    elif entry.path:
        rows, where = _read_file(shipped("data") / entry.path), entry.path
    else:
        rows, where = load_from_hub(entry, offline=True), entry.dataset
    _check_splits(entry, rows, where)
    problems = [_problem(entry, row, where) for row in rows]
    if not problems:
        raise UserError(f"benchmark '{entry.name}' has no problems", path=where)
    return problems


def load_from_hub(entry: Source, offline: bool) -> list[dict[str, Any]]:
    """Read a benchmark's rows with `datasets` from a snapshot of its repository on the hub.

    Args:
        entry: the benchmark.
        offline: True reads the cache alone; False (`l2s fetch`) fills it from the network.

    Raises:
        UserError: the snapshot is not there or cannot be read.
    """
    import datasets
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(entry.dataset, repo_type="dataset", local_files_only=offline)
        table = datasets.load_dataset(folder, entry.subset, split=entry.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"benchmark '{entry.name}' ({entry.dataset}) cannot be read: {error}",
            hint="run `l2s fetch JOB` on a node with network, or name a local file in the site's "
            "[benchmarks]",
        ) from error
    return [dict(row) for row in table]


def question_hash(question: str) -> str:
    """Return the hash by which copies of a question are known; case and white space are ignored."""
    text = re.sub(r"\s*\((?:Yes or No|True or False)\)\s*$", "", question)
    return hashlib.sha256(" ".join(text.split()).casefold().encode()).hexdigest()[:16]


def _divide(
    name: str, problems: Iterable[Problem], wanted: SplitsConfig, seed: int
) -> dict[str, list[Item]]:
    """Divide one benchmark; the items of a split stand in the order of their draw."""
    seen: Counter[str] = Counter()
    drawn: dict[str, list[tuple[float, Item]]] = {split: [] for split in SPLITS}
    for problem in problems:
        item = _item(name, problem, seen)
        draw = _draw(seed, item.question_hash)
        split = problem.split or _split_of(draw, wanted)
        if split is not None:
            drawn[split].append((draw, item))
    return {
        split: _first_questions(
            [item for _, item in sorted(pairs, key=lambda p: (p[0], p[1].item))],
            getattr(wanted, split).max_items,
        )
        for split, pairs in drawn.items()
    }


def _first_questions(items: list[Item], most: int | None) -> list[Item]:
    """Return the items of the first `most` questions, all copies of a question together."""
    if most is None:
        return items
    questions = list(dict.fromkeys(item.question_hash for item in items))[:most]
    kept = set(questions)
    return [item for item in items if item.question_hash in kept]


def _item(name: str, problem: Problem, seen: Counter[str]) -> Item:
    digest = hashlib.sha256(json.dumps([problem.question, problem.gold]).encode()).hexdigest()[:16]
    seen[digest] += 1
    occurrence = f"-{seen[digest]}" if seen[digest] > 1 else ""
    return Item(
        benchmark=name,
        item=digest + occurrence,
        question=problem.question,
        gold=problem.gold,
        question_hash=question_hash(problem.question),
        level=problem.level,
    )


def _draw(seed: int, question: str) -> float:
    """Return a number in [0, 1) that depends on seed and question alone."""
    digest = hashlib.sha256(f"{seed}:{question}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _split_of(draw: float, wanted: SplitsConfig) -> str | None:
    edge = 0.0
    for split in SPLITS:
        edge += getattr(wanted, split).share
        if draw < edge:
            return split
    return None


def _read_file(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise UserError("benchmark file not found", path=path)
    try:
        if path.suffix == ".parquet":
            rows: list[Any] = pq.read_table(path, partitioning=None).to_pylist()
        else:
            # Not splitlines: a line may hold U+2028 and the like.
            lines = path.read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"not JSON Lines or Parquet: {error}", path=path) from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError("a row is not an object with named fields", path=path)
    return rows


def _check_splits(entry: Source, rows: Iterable[Mapping[str, Any]], where: str) -> None:
    """A file that divides its problems divides all of them; any other `split` is ignored."""
    found = {str(row.get("split")) for row in rows}
    strange = sorted(found - set(SPLITS))
    if found & set(SPLITS) and strange:
        raise UserError(
            f"benchmark '{entry.name}': unknown split '{strange[0]}'",
            hint=did_you_mean(strange[0], SPLITS),
            path=where,
        )


def _problem(entry: Source, row: Mapping[str, Any], where: str) -> Problem:
    """Turn a row into a problem; local files may use the plain names question and answer."""
    question = row.get(entry.question, row.get("question"))
    plain = entry.answer not in row and "answer" in row
    answer = row.get(entry.answer, row.get("answer"))
    if not isinstance(question, str) or answer in (None, "", []):
        raise UserError(
            f"benchmark '{entry.name}': a row has no '{entry.question}' or '{entry.answer}'",
            path=where,
        )
    split = row.get("split") if row.get("split") in SPLITS else None
    level = row.get(entry.level) if entry.level else None
    rule = GOLD_RULES["plain" if plain else entry.gold]
    return Problem(question, rule(answer), None if level is None else str(level), split)


def _plain(answer: Any) -> str:
    return str(answer).strip().strip("$").strip()


def _after_hashes(answer: Any) -> str:
    """Return what follows `####` in a worked solution (gsm8k), or the answer itself."""
    return str(answer).rpartition("####")[2].strip()


def _boxed(answer: Any) -> str:
    """Return the last box of a worked solution, or the answer itself."""
    found = extract(str(answer), "stop").answer
    return _plain(answer) if found is None else found


def _first(answer: Any) -> str:
    """Return the first of a list of answers."""
    return _plain(answer[0] if isinstance(answer, list) else answer)


def _integer(answer: Any) -> str:
    """Return an integer without leading zeros (aime24)."""
    return str(answer).strip().lstrip("0") or "0"


GOLD_RULES: dict[str, Callable[[Any], str]] = {
    "plain": _plain,
    "hashes": _after_hashes,
    "boxed": _boxed,
    "first": _first,
    "integer": _integer,
}
"""How the gold answer stands in a row."""
