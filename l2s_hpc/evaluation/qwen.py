"""Read an output file of the Qwen2.5-Math evaluation: `OUT/BENCHMARK/test_….jsonl`.

One JSON object a line and item: `idx`, `question`, `gt`, and lists with one entry a sample: `code`
(the whole text), `pred` (the extracted answer), `score` (upstream's verdict). The file of metrics
beside it counts the items. Token counts and finish reasons were never saved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2s_hpc.errors import DamageError

METRICS = "_metrics.json"
"""How the name of a file of metrics ends; it begins with that of the outputs."""


@dataclass(frozen=True)
class Asked:
    """A question as the file has it, with the gold answer as it stood before upstream's tidying."""

    question: str
    gold: str
    level: str | None = None


@dataclass(frozen=True)
class Judged:
    """One sample: upstream's verdict, and the answer that it extracted; None = there was none."""

    correct: bool
    extracted: str | None


@dataclass(frozen=True)
class Outputs:
    """What one file says, in the order of the benchmark; the texts are read by `texts`."""

    sha256: str
    asked: tuple[Asked, ...]
    judged: tuple[tuple[Judged, ...], ...]


def read_outputs(path: Path) -> Outputs:
    """Read a file without its texts, and check it.

    Raises:
        DamageError: a line is broken or no output of an item; an `idx` is missing or repeated;
            items differ in their number of samples; the metrics beside it tell of other rows.
    """
    digest = hashlib.sha256()
    rows: dict[int, tuple[Asked, tuple[Judged, ...]]] = {}
    for number, line in _lines(path):
        digest.update(line)
        row = _row(path, number, line)
        if row["idx"] in rows:
            raise DamageError(f"line {number}: idx {row['idx']} is there twice", path=path)
        rows[row["idx"]] = _asked(row), _judged(row)
    if not rows:
        raise DamageError("the file is empty: it was torn when it was written", path=path)
    gaps = sorted(set(range(len(rows))) - set(rows))
    if gaps:
        raise DamageError(f"idx {gaps[0]} is missing: {len(rows)} rows up to idx {max(rows)}",
                          path=path)  # fmt: skip
    ordered = [rows[idx] for idx in range(len(rows))]
    counts = {len(judged) for _, judged in ordered}
    if len(counts) > 1:
        raise DamageError(f"items have {sorted(counts)} samples, all need as many", path=path)
    judged = tuple(judged for _, judged in ordered)
    _check_metrics(path, judged)
    return Outputs(digest.hexdigest(), tuple(asked for asked, _ in ordered), judged)


def texts(path: Path, sha256: str) -> list[tuple[str, ...]]:
    """Return the texts of each item's samples, in the order of the benchmark.

    Raises:
        DamageError: the file is no longer the one with that sha256, whose rows were checked.
    """
    digest = hashlib.sha256()
    found: dict[int, tuple[str, ...]] = {}
    for number, line in _lines(path):
        digest.update(line)
        row = _row(path, number, line)
        found[row["idx"]] = tuple(_clean(text) for text in row["code"])
    if digest.hexdigest() != sha256:
        raise DamageError("the file has changed while it was imported", path=path)
    return [found[idx] for idx in range(len(found))]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as stream:
        yield from enumerate(stream, start=1)


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """Return one row whose fields that are used here have their types."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise DamageError(f"line {number} is broken: not JSON", path=path) from None
    if not isinstance(row, dict):
        raise DamageError(f"line {number} is no object", path=path)
    good = (
        type(row.get("idx")) is int
        and isinstance(row.get("question"), str)
        and _is_list(row.get("code"), str)
        and _is_list(row.get("pred"), str)
        and _is_list(row.get("score"), bool)
        and len(row["code"]) == len(row["pred"]) == len(row["score"])
    )
    if not good:
        raise DamageError(
            f"line {number} is no output of Qwen2.5-Math: it needs idx, question, and lists "
            "code, pred and score of one length",
            path=path,
        )
    return row


def _clean(text: str) -> str:
    """Return text that can be stored: JSON may hold halves of a character."""
    return text.encode("utf-8", "replace").decode()


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, kind) for v in value)


def _asked(row: Mapping[str, Any]) -> Asked:
    """Return the question; its gold is the raw answer where the benchmark's rows had one."""
    gold = row.get("answer")
    if not isinstance(gold, str) or not gold.strip():
        gold = str(row.get("gt", ""))
    gold = gold.rpartition("####")[2].strip().strip("$").strip()
    level = next((str(row[key]) for key in ("level", "subject", "subfield") if key in row), None)
    return Asked(_clean(row["question"]), _clean(gold), level and _clean(level))


def _judged(row: Mapping[str, Any]) -> tuple[Judged, ...]:
    pairs = zip(row["score"], row["pred"], strict=True)
    return tuple(Judged(score, _clean(pred) or None) for score, pred in pairs)


def _check_metrics(path: Path, judged: tuple[tuple[Judged, ...], ...]) -> None:
    """Compare a file with its metrics: they were counted before it could be torn."""
    for beside in sorted(path.parent.glob("*" + METRICS)):
        if not beside.name.startswith(path.stem):
            continue
        try:
            metrics = json.loads(beside.read_bytes())
            said, accuracy = int(metrics["num_samples"]), float(metrics["acc"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise DamageError("the file of metrics is broken", path=beside) from None
        if said != len(judged):
            raise DamageError(f"{len(judged)} rows, {beside.name} says {said}", path=path)
        found = 100 * sum(samples[0].correct for samples in judged) / len(judged)
        if abs(found - accuracy) > 0.06:  # upstream rounds to one digit
            raise DamageError(
                f"its first samples are right in {found:.1f} %, {beside.name} says {accuracy:g} %",
                path=path,
            )
