"""Single answers: one seen whole beside the parents', and the items on which two candidates differ.

    show(run, "knee", "toy_hard/3f2a")      # prompt, full text, extraction, verdict; the parents'
    differences(run, "knee", "slow")        # who is right on which items

Full texts are stored apart from the scores and may have been removed: all but them is then shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from l2s_hpc.analysis.names import (
    check_table,
    items_of,
    locate,
    resolve,
    usual_evaluation,
)
from l2s_hpc.errors import DamageError, L2SError, UserError, did_you_mean
from l2s_hpc.records import Evaluation, Item, Receipt
from l2s_hpc.store.files import sha256_file
from l2s_hpc.store.layout import RunPaths, Where
from l2s_hpc.store.run import read_evaluation
from l2s_hpc.store.tables import Tables

if TYPE_CHECKING:
    from l2s_hpc.analysis.frames import Frames
    from l2s_hpc.analysis.run import Run
    from l2s_hpc.evaluation.grading import Grader

Row = dict[str, Any]

DIFFERENCE = {
    "number": pl.Int64, "benchmark": pl.String, "item": pl.String, "level": pl.String,
    "gradable": pl.Boolean, "right": pl.String, "gold": pl.String,
    "a_extracted": pl.String, "b_extracted": pl.String,
    "a_tokens": pl.Int64, "b_tokens": pl.Int64, "a_status": pl.String, "b_status": pl.String,
}  # fmt: skip
"""The columns of `differences`: number is the item's place in its evaluation, by benchmark and id,
from 1; `right` says which of the two is (`a` or `b`); tokens are generated ones, null where an
import does not know them; a status is the grader's (`grade_status`)."""


@dataclass(frozen=True)
class Answer:
    """What one candidate said to one item, and what it was worth.

    Attributes:
        candidate, label: who, and the name of a reference.
        text: all that it wrote; None: `missing` says why it is not here.
        scores: its row of the score table.
        found, rule, span: what the present rules find in the text, which of them, and where.
        reason: why the present grader decides so; None where another one made the table.
        grades: what graders in `grades/` say of the same text, a row for each.
    """

    candidate: str
    label: str | None
    text: str | None
    missing: str
    scores: Row
    found: str | None
    rule: str | None
    span: tuple[int, int] | None
    reason: str | None
    grades: list[Row]


@dataclass(frozen=True)
class Shown:
    """An item, and the answers of a candidate (the first) and of the parents.

    Attributes:
        number: the item's place in the evaluation, from 1, as in `differences`.
        prompt: what stood before the answer, as text; None where it is not known whole.
        note: what of the prompt is not known.
    """

    evaluation: str
    number: int
    item: Item
    sample: int
    preset: str
    prompt: str | None
    note: str
    answers: list[Answer]


def outputs(run: Run, candidate: str, evaluation: str | None) -> pl.LazyFrame:
    """Return the full texts of a candidate; see `Run.outputs`."""
    candidate = resolve(run, candidate)
    evaluation = evaluation or usual_evaluation(run, [candidate])
    check_table(run, candidate, evaluation)
    tables, where = Tables(RunPaths(run.folder)), run.state.accepted[evaluation, candidate].where
    receipt = tables.receipt(where)
    if problem := _why_missing(tables, where, receipt):
        raise UserError(
            f"candidate {candidate} has no full texts in '{evaluation}': {problem}",
            hint="scores, rates and fronts do not need them",
            path=tables.outputs(where).path,
        )
    return pl.DataFrame(tables.verified_outputs(where, receipt)).lazy()


def differences(
    run: Run,
    frames: Frames,
    a: str,
    b: str,
    evaluation: str | None = None,
    benchmark: str | None = None,
) -> pl.DataFrame:
    """Return the items of an evaluation of which exactly one of two candidates is right.

    The first sample of each item counts. Columns are `DIFFERENCE`; a benchmark that an imported
    candidate lacks is left out.

    Args:
        run, frames: the run.
        a, b: the candidates, as `resolve` takes them.
        evaluation: None means the one with the least optimistic figures that both have.
        benchmark: one benchmark's items; None: all.

    Raises:
        UserError: no such candidate, evaluation or benchmark, or one of them has no table there.
        DamageError: a table is damaged or missing, or lacks items that the other has.
    """
    pair = [resolve(run, a), resolve(run, b)]
    evaluation = evaluation or usual_evaluation(run, pair)
    for candidate in pair:
        check_table(run, candidate, evaluation)
    first, second = (_judged(frames, c, evaluation, n) for c, n in zip(pair, "ab", strict=True))
    known = pl.DataFrame(
        [
            {"number": n, "benchmark": i.benchmark, "item": i.item, "level": i.level}
            for n, i in enumerate(items_of(run, evaluation), 1)
        ],
        schema={name: DIFFERENCE[name] for name in ("number", "benchmark", "item", "level")},
    )
    shared = set(first["benchmark"]) & set(second["benchmark"])
    if benchmark is not None and benchmark not in shared:
        problem = f"no benchmark '{benchmark}' that both have in '{evaluation}'"
        raise UserError(problem, hint=did_you_mean(benchmark, shared), path=run.folder)
    asked = pl.col("benchmark").is_in([benchmark] if benchmark else sorted(shared))
    key = ["benchmark", "item"]
    both = first.filter(asked).join(second.filter(asked).drop("gold", "gradable"), on=key)
    if both.height != first.filter(asked).height or both.height != second.filter(asked).height:
        raise DamageError(
            f"{pair[0]} and {pair[1]} have other items in '{evaluation}'",
            hint="run `l2s verify`",
            path=run.folder,
        )
    a_right, b_right = pl.col("a_correct"), pl.col("b_correct")
    right = pl.when(a_right).then(pl.lit("a")).otherwise(pl.lit("b")).alias("right")
    found = both.filter(a_right != b_right).with_columns(right).join(known, on=key, how="left")
    return found.select(pl.col(n).cast(kind) for n, kind in DIFFERENCE.items()).sort("number")


def show(
    run: Run,
    frames: Frames,
    candidate: str,
    item: str,
    evaluation: str | None = None,
    sample: int = 0,
) -> Shown:
    """Return what a candidate and the parents answered to an item.

    Args:
        run, frames: the run.
        candidate: as `resolve` takes it.
        item: `benchmark/id`, a unique beginning of the id with or without its benchmark, or the
            number that `differences` gives it.
        evaluation: None means the first that knows the item, the least optimistic one first.
        sample: which of several answers.

    Raises:
        UserError: no such candidate, item or sample, or the candidate has no table there.
        DamageError: a table, its receipt or the description of the evaluation is damaged.
    """
    from l2s_hpc.evaluation.grading import Grader

    candidate = resolve(run, candidate)
    evaluation, number, found = locate(run, candidate, item, evaluation)
    evaluated = read_evaluation(run.folder, evaluation)
    parents = [c for c in run.parents.values() if (evaluation, c) in run.state.accepted]
    usable = frames.usable(evaluation, dict.fromkeys([candidate, *parents]))
    key = _same({"benchmark": found.benchmark, "item": found.item, "sample": sample})
    rows = [
        row for c in usable for row in frames.scan(evaluation, [c]).filter(key).collect().to_dicts()
    ]
    tables = Tables(RunPaths(run.folder))
    with Grader(workers=1) as grader:
        answers = [_answer(run, tables, row, grader) for row in rows]
    if not answers or answers[0].candidate != candidate:
        raise UserError(
            f"candidate {candidate} has no answer {sample} to {found.benchmark}/{found.item}",
            path=run.folder,
        )
    prompt, note = _prompt(evaluated, found)
    preset = evaluated.protocol.prompt
    return Shown(evaluation, number, found, sample, preset, prompt, note, answers)


def _answer(run: Run, tables: Tables, scores: Row, grader: Grader) -> Answer:
    """Return an answer from its row of the score table."""
    from l2s_hpc.evaluation.extraction import extract

    candidate = scores["candidate"]
    where = run.state.accepted[scores["evaluation"], candidate].where
    receipt = tables.receipt(where)
    missing, text, found = _why_missing(tables, where, receipt), None, None
    if not missing:
        rows = pl.DataFrame(tables.verified_outputs(where, receipt)).filter(_same(scores))
        text = str(rows["text"].item())
        found = extract(text, scores["finish_reason"] or "stop")
    return Answer(
        candidate=candidate,
        label=run.labels.get(candidate),
        text=text,
        missing=missing,
        scores=scores,
        found=found.answer if found else None,
        rule=found.rule if found else None,
        span=found.span if found else None,
        reason=_reason(scores, grader),
        grades=_grades(run, tables, where, scores, receipt),
    )


def _reason(scores: Row, grader: Grader) -> str | None:
    """Return why the present grader decides as it did in the table."""
    from l2s_hpc.evaluation.grading import GRADER

    if scores["grader"] != GRADER:
        return None
    try:
        (decision,) = grader.decide([(scores["gold"] or "", scores["extracted"])])
    except L2SError:  # a machine without sympy
        return None
    same = (decision.correct, decision.status) == (scores["correct"], scores["grade_status"])
    return decision.reason if same else None


def _grades(run: Run, tables: Tables, where: Where, scores: Row, receipt: Receipt) -> list[Row]:
    """Return the verdicts of other graders on the same text; those on older texts are left out."""
    from l2s_hpc.store.scores import GRADES

    found: list[Row] = []
    for grader in RunPaths(run.folder).graders():
        place = tables.grades(grader, where)
        if not place.path.exists():
            continue
        try:
            said = tables.grade_receipt(grader, where)
            sound = place.table is not None or sha256_file(place.path) == said["file_sha256"]
            current = said["outputs_sha256"] == receipt.outputs_sha256
        except (OSError, KeyError, TypeError):
            sound = False
        if not sound:
            hint = "`l2s grade RUN` makes it again"
            raise DamageError("it is not what its receipt says", hint=hint, path=place.path)
        if current:
            rows = pl.DataFrame(tables.rows(place, GRADES)).filter(_same(scores))
            columns = ("grader", "correct", "grade_status", "extracted", "rule", "reason")
            found += rows.select(columns).to_dicts()
    return found


def _prompt(evaluated: Evaluation, item: Item) -> tuple[str | None, str]:
    """Return the prompt as text, and what is not known of it."""
    from l2s_hpc.evaluation.prompts import written

    protocol = evaluated.protocol
    if not item.question:
        return None, "the question is not recorded here: the item is known by its id alone"
    text = written(protocol.prompt, item.question, protocol.shots)
    if text is not None:
        return text, ""
    if protocol.prompt == "chat":
        return None, f"the tokenizer's own chat template stood around it ({protocol.template})"
    return None, f"the text around it is not known (preset '{protocol.prompt}')"


def _judged(frames: Frames, candidate: str, evaluation: str, name: str) -> pl.DataFrame:
    """Return a candidate's first samples; the columns of its own begin with a name."""
    columns = {
        "correct": "correct",
        "extracted": "extracted",
        "tokens": "n_output_tokens",
        "status": "grade_status",
    }
    own = [pl.col(column).alias(f"{name}_{new}") for new, column in columns.items()]
    rows = frames.scan(evaluation, [candidate]).filter(pl.col("sample") == 0)
    return rows.select("benchmark", "item", "gradable", "gold", *own).collect()


def _why_missing(tables: Tables, where: Where, receipt: Receipt) -> str:
    """Say why there are no full texts; nothing if there are."""
    if not receipt.outputs_sha256:
        return "none were recorded"
    there = tables.outputs(where).path.exists()
    return "" if there else "they were removed, or not copied along"


def _same(key: Mapping[str, Any]) -> pl.Expr:
    return pl.all_horizontal(pl.col(n) == key[n] for n in ("benchmark", "item", "sample"))
