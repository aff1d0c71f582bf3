"""`l2s grade RUN`: judge stored outputs with the present grader, and compare with earlier verdicts.

Score tables never change: our verdicts are tables of their own, `grades/<grader>/…`, each with a
receipt. Those that are there for the same outputs and the same version are not made again.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from l2s_hpc.errors import DamageError, UserError
from l2s_hpc.evaluation.extraction import extract
from l2s_hpc.evaluation.grading import GRADER, Grader
from l2s_hpc.evaluation.verdicts import VerdictCache, cache_folder
from l2s_hpc.records import DECIDED, GradeReceipt, Item, Output, Receipt
from l2s_hpc.store.files import write_json
from l2s_hpc.store.layout import RunPaths, Where
from l2s_hpc.store.run import RunInfo, read_evaluation, read_run
from l2s_hpc.store.scores import GRADES, write_table
from l2s_hpc.store.state import Accepted, read_state
from l2s_hpc.store.tables import Tables

Row = dict[str, Any]
Key = tuple[str, str, int]
"""(benchmark, item, sample)"""


@dataclass
class Regrade:
    """What a run's outputs are worth by the present grader, beside what was said before.

    Attributes:
        grader: the present one.
        graded, reused: tables of grades that were made now, and that were there.
        table: a row for each candidate, benchmark and earlier grader: `n` outputs, the shares that
            are correct by it (`accuracy`) and by the present one (`regraded`), how many are correct
            by one of them only, and how many the present one leaves undecided.
        disagreements: every output on which they differ.
        silent: score tables without texts, by candidate: nothing is there to be graded.
        damage: what cannot be graded because a file is missing or damaged.
    """

    grader: str = GRADER
    graded: int = 0
    reused: int = 0
    table: list[Row] = field(default_factory=list)
    disagreements: list[Row] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    damage: list[DamageError] = field(default_factory=list)

    @property
    def judged(self) -> int:
        """Score tables whose outputs the present grader has judged, now or before."""
        return self.graded + self.reused

    @property
    def left(self) -> int:
        """Score tables that it could not judge."""
        return len(self.silent) + len(self.damage)


def regrade(folder: Path, tell: Callable[[str], None] = lambda _: None) -> Regrade:
    """Grade the stored outputs of a run.

    Args:
        folder: the run directory.
        tell: hears which candidate is graded.

    Raises:
        UserError: it is no run directory, or holds no texts.
        L2SError: the grading process does not start, for instance for want of sympy.
    """
    info, paths = read_run(folder), RunPaths(folder)
    state, _ = read_state(paths)
    found = Regrade()
    cache = VerdictCache(cache_folder(GRADER), GRADER)
    tables = Tables(paths)
    with Grader(known=cache) as grader:
        for accepted in state.accepted.values():
            try:
                _regrade(tables, paths, info, accepted, grader, found, tell)
            except DamageError as error:
                found.damage.append(error)
    # A read-only or full home is no reason to lose the grades.
    with contextlib.suppress(OSError):
        cache.save()
    if not (found.judged or found.damage):
        raise UserError(
            "no texts are there to be graded",
            hint="an import of *_scores.pt holds verdicts alone",
            path=folder,
        )
    return found


def _regrade(
    tables: Tables,
    paths: RunPaths,
    info: RunInfo,
    accepted: Accepted,
    grader: Grader,
    found: Regrade,
    tell: Callable[[str], None],
) -> None:
    """Grade one candidate's outputs unless that is done, and add the comparison."""
    where = accepted.where
    receipt = tables.receipt(where)
    if receipt.content_sha256 != accepted.content_sha256:
        path = tables.scores(where).path
        raise DamageError("its receipt is not the accepted one", path=path)
    if not receipt.outputs_sha256:
        found.silent.append(accepted.candidate)
        return
    scores = tables.verified_scores(where, receipt).to_pylist()
    grades = _grades(tables, GRADER, where, receipt)
    if grades is None:
        tell(accepted.candidate)
        grades = _make(tables, paths, info, accepted, receipt, grader)
        found.graded += 1
    else:
        found.reused += 1
    _compare(found, where, scores, scores, grades)
    for other in paths.graders():
        earlier = _grades(tables, other, where, receipt) if other != GRADER else None
        if earlier is not None:
            _compare(found, where, scores, earlier, grades)


def _grades(tables: Tables, grader: str, where: Where, receipt: Receipt) -> list[Row] | None:
    """Return the grades that are there for these outputs; None if there are none, or damaged."""
    try:
        said = GradeReceipt.model_validate(tables.grade_receipt(grader, where))
        if said.outputs_sha256 != receipt.outputs_sha256 or said.run != receipt.run:
            return None
        rows: list[Row] = tables.verified_grades(grader, where, said.file_sha256).to_pylist()
    except (OSError, ValidationError, DamageError):
        return None
    return rows


def _make(
    tables: Tables,
    paths: RunPaths,
    info: RunInfo,
    accepted: Accepted,
    receipt: Receipt,
    grader: Grader,
) -> list[Row]:
    """Judge the texts of a candidate and keep the verdicts; the receipt comes last."""
    began = time.monotonic()
    where = accepted.where
    outputs = _outputs(tables.verified_outputs(where, receipt))
    items = _items(paths, accepted.evaluation)
    asked = [items[output.benchmark, output.item] for output in outputs]
    own = {
        "run": info.id,
        "evaluation": accepted.evaluation,
        "generation": accepted.generation,
        "candidate": accepted.candidate,
        "grader": GRADER,
    }
    rows = [
        {**own, "benchmark": o.benchmark, "item": o.item, "sample": o.sample, **verdict}
        for o, verdict in zip(outputs, _verdicts(grader, outputs, asked), strict=True)
    ]
    path = paths.grades(GRADER, *where)
    said = GradeReceipt(
        **own,
        outputs_sha256=receipt.outputs_sha256,
        rows=len(rows),
        file_sha256=write_table(path, rows, GRADES),
        host=socket.gethostname(),
        seconds=round(time.monotonic() - began, 3),
        ended=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    write_json(path.with_suffix(".json"), said.model_dump(mode="json"))
    return rows


def _verdicts(grader: Grader, outputs: Sequence[Output], items: Sequence[Item]) -> Iterator[Row]:
    """Yield the columns of a verdict on each output, for the item at the same place."""
    found = [extract(output.text, output.finish_reason) for output in outputs]
    pairs = [(item.gold, one.answer) for item, one in zip(items, found, strict=True)]
    for one, decision in zip(found, grader.decide(pairs), strict=True):
        yield {
            "correct": decision.correct,
            "grade_status": decision.status,
            "extracted": one.answer,
            "rule": one.rule,
            "reason": decision.reason,
        }


def _outputs(table: pa.Table) -> list[Output]:
    """Return stored outputs; why an imported answer ended is unknown, and taken for its own end."""
    rows = table.to_pylist()
    return [
        Output(
            benchmark=row["benchmark"],
            item=row["item"],
            sample=row["sample"],
            seed=row["seed"],
            text=row["text"],
            n_prompt_tokens=row["n_prompt_tokens"] or 0,
            n_output_tokens=row["n_output_tokens"] or 0,
            n_charged_tokens=row["n_charged_tokens"] or 0,
            finish_reason=row["finish_reason"] or "stop",
        )
        for row in rows
    ]


def _items(paths: RunPaths, evaluation: str) -> Mapping[tuple[str, str], Item]:
    described = read_evaluation(paths.folder, evaluation)
    return {(item.benchmark, item.item): item for item in described.items}


def _compare(
    found: Regrade, where: Where, scores: list[Row], earlier: list[Row], present: list[Row]
) -> None:
    """Add how earlier verdicts on one candidate differ from the present grader's."""
    gold = {_key(row): row["gold"] for row in scores}
    ours = {_key(row): row for row in present}
    by_benchmark: dict[str, list[tuple[Row, Row]]] = {}
    for theirs in earlier:
        pair = (theirs, ours[_key(theirs)])
        by_benchmark.setdefault(theirs["benchmark"], []).append(pair)
    head = {"evaluation": where[0], "candidate": where[2]}
    for benchmark, pairs in by_benchmark.items():
        differ = [(a, b) for a, b in pairs if a["correct"] != b["correct"]]
        found.table.append(
            {
                **head,
                "benchmark": benchmark,
                "n": len(pairs),
                "grader": pairs[0][0]["grader"],
                "accuracy": sum(a["correct"] for a, _ in pairs) / len(pairs),
                "regraded": sum(b["correct"] for _, b in pairs) / len(pairs),
                "only_theirs": sum(a["correct"] for a, _ in differ),
                "only_ours": sum(b["correct"] for _, b in differ),
                "undecided": sum(b["grade_status"] not in DECIDED for _, b in pairs),
            }
        )
        found.disagreements += [_difference(head, gold[_key(b)], a, b) for a, b in differ]


def _difference(head: Row, gold: str | None, theirs: Row, ours: Row) -> Row:
    """Return one disagreement: what both extracted and decided, and why ours did."""
    return {
        **head,
        "benchmark": ours["benchmark"],
        "item": ours["item"],
        "sample": ours["sample"],
        "gold": gold,
        "grader": theirs["grader"],
        "their_answer": theirs["extracted"],
        "their_verdict": "correct" if theirs["correct"] else "wrong",
        "answer": ours["extracted"],
        "verdict": _verdict(ours),
        "rule": ours["rule"],
        "reason": _reason(theirs, ours),
    }


def _verdict(row: Row) -> str:
    if row["correct"]:
        return "correct"
    return "wrong" if row["grade_status"] in DECIDED else "undecided"


def _reason(theirs: Row, ours: Row) -> str:
    """Say why ours differs: another answer was found, or the same one is decided otherwise."""
    if ours["extracted"] is None:
        return f"no answer found ({ours['rule']})"
    other = _tight(theirs["extracted"]) not in ("", _tight(ours["extracted"]))
    return f"another answer found; {ours['reason']}" if other else str(ours["reason"])


def _tight(text: str | None) -> str:
    return "".join((text or "").split())


def _key(row: Row) -> Key:
    return row["benchmark"], row["item"], row["sample"]
