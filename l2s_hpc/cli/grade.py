"""`l2s grade`: regrade the stored outputs of a run, or grade a file of cases."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l2s_hpc.cli.cluster import JSON
from l2s_hpc.cli.output import print_table, stdout
from l2s_hpc.errors import UserError

if TYPE_CHECKING:
    from l2s_hpc.evaluation.grading import Grader

_LONGEST = 16 * 1024**2  # characters that a recipe's repeated part is written out to
_HINT = 'a line is {"id", "kind": "answer" or "response", "prediction", "gold"}'


def register(app: typer.Typer) -> None:
    """Add this module's verb."""
    app.command()(grade)


def grade(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run directory to regrade.")
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option("--cases", help="Grade this file instead: JSON Lines of id, kind (answer or "
                     "response), prediction and gold."),
    ] = None,
    last_number: Annotated[
        bool,
        typer.Option("--last-number", help="In a response without an answer take the last number; "
                     "the rule last_number counts how often."),
    ] = False,
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Grade the stored outputs of a run anew, or a file of cases."""
    if (folder is None) == (cases is None):
        raise UserError("l2s grade needs either a run or --cases FILE", hint="l2s grade --help")
    if folder is not None:
        if last_number:
            raise UserError("--last-number goes with --cases", hint="runs keep their rules")
        from l2s_hpc.cli.regrade import show

        show(folder, as_json)
    elif cases is not None:
        _grade_cases(cases, last_number, as_json)


def _grade_cases(path: Path, last_number: bool, as_json: bool) -> None:
    """Print a verdict for each case; a file with a bad line is refused as a whole."""
    from l2s_hpc.evaluation.grading import Grader

    rows = [_case(line, number, path) for number, line in _lines(path)]
    counts: Counter[tuple[str, str]] = Counter()
    slowest = 0.0
    # Two processes: while one that hung is replaced, the other decides.
    with Grader(workers=2) as grader:
        grader.start()
        for row in rows:
            found = _graded(grader, row, last_number)
            counts[found["verdict"], found["rule"]] += 1
            slowest = max(slowest, found["seconds"])
            if as_json:
                print(json.dumps(found), flush=True)
    if not as_json:
        print_table(
            [
                {"verdict": verdict, "rule": rule, "cases": count}
                for (verdict, rule), count in sorted(counts.items())
            ],
            f"{len(rows)} cases",
        )
        stdout.print(f"slowest case: {slowest:.2f} s")


def _graded(grader: Grader, row: dict[str, Any], last_number: bool) -> dict[str, Any]:
    from l2s_hpc.evaluation.extraction import Extraction, extract

    start = time.monotonic()
    text = _written_out(row["prediction"])
    if row["kind"] == "answer":
        found = Extraction(text, "given")
    else:
        found = extract(text, "stop", last_number)
    (decision,) = grader.decide([(row["gold"], found.answer)])
    decided = decision.status in ("ok", "no_answer")
    return {
        "id": row["id"],
        "verdict": "correct" if decision.correct else "wrong" if decided else "undecided",
        "answer": None if found.answer is None else found.answer[:4096],
        "rule": found.rule,
        "reason": decision.reason,
        "seconds": round(time.monotonic() - start, 4),
    }


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the cases cannot be read: {error}", path=path) from None


def _case(line: str, number: int, path: Path) -> dict[str, Any]:
    """Return a checked line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"line {number} is no JSON: {error}", hint=_HINT, path=path) from None
    fault = _fault(row)
    if fault:
        raise UserError(f"line {number}: {fault}", hint=_HINT, path=path)
    return {name: row[name] for name in ("id", "kind", "prediction", "gold")}


def _fault(row: Any) -> str:
    if not isinstance(row, dict):
        return "no object"
    for name in ("id", "kind", "prediction", "gold"):
        if name not in row:
            return f"no '{name}'"
    if not isinstance(row["id"], str | int) or not isinstance(row["gold"], str):
        return "id and gold are texts"
    if row["kind"] not in ("answer", "response"):
        return f"kind is 'answer' or 'response', not {row['kind']!r}"
    prediction = row["prediction"]
    if isinstance(prediction, str):
        return ""
    if not isinstance(prediction, dict):
        return "prediction is a text or a recipe"
    texts = (prediction.get("prefix", ""), prediction.get("unit"), prediction.get("suffix", ""))
    count = prediction.get("count")
    if not all(isinstance(text, str) for text in texts) or not _is_count(count):
        return "a recipe is {unit, count} with a prefix and a suffix or without"
    return ""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _written_out(prediction: str | dict[str, Any]) -> str:
    """Return the text of a prediction; one of many megabytes is cut in its repeated part.

    No rule looks at so long a text but for its end and its last tags, which stay.
    """
    if isinstance(prediction, str):
        return prediction
    unit = prediction["unit"]
    count = min(prediction["count"], _LONGEST // max(1, len(unit)) + 1)
    return str(prediction.get("prefix", "") + unit * count + prediction.get("suffix", ""))
