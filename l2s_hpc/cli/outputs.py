"""`l2s show`, `diff`: single answers, and the items on which two candidates differ.

What a model wrote is hostile: terminal codes are taken out, and nothing in it acts as markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from l2s_hpc.cli.cluster import JSON
from l2s_hpc.cli.imports import said_warnings
from l2s_hpc.cli.output import CSV, PARQUET, give_rows, print_json, stdout

if TYPE_CHECKING:
    from l2s_hpc.analysis.outputs import Answer, Shown
    from l2s_hpc.analysis.run import Run

RUN = Annotated[Path, typer.Argument(help="A run directory.")]
CANDIDATE = "An id or its beginning, a pick (knee) or a reference (average, slow)."
ON = Annotated[
    str | None, typer.Option("--split", help="An evaluation; default: the least optimistic one.")
]

_COLUMN = 40
"""Characters of a terminal that an answer beside others needs at least."""

_SHOWN = 30
"""Characters of a gold or of an answer in the list of `diff`; `--json` has them whole."""

_CODES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\n\x1b\x80-\x9f]*(?:\x07|\x1b\\|\x9c)"  # links
    r"|\x1b[ -/]*[0-~]"  # charsets, reset
)
"""Terminal codes as ECMA-48 writes them, in 7 and in 8 bits."""


def register(app: typer.Typer) -> None:
    """Add this module's verbs."""
    app.command()(show)
    app.command()(diff)


def show(
    folder: RUN,
    candidate: Annotated[str, typer.Argument(help=CANDIDATE)],
    item: Annotated[
        str, typer.Argument(help="BENCHMARK/ID, the beginning of an id, or a number of `l2s diff`.")
    ],
    on: ON = None,
    sample: Annotated[int, typer.Option("--sample", help="Which of several answers.")] = 0,
    as_json: JSON = False,
) -> None:
    """Show an answer whole, with prompt, extraction and verdict, and the parents' beside it."""
    from l2s_hpc import open_run

    with said_warnings():
        found = open_run(folder).show(candidate, item, on, sample)
    if as_json:
        print_json(as_dict(found))
    else:
        _print(found)


def diff(
    folder: RUN,
    a: Annotated[str, typer.Argument(help=CANDIDATE)],
    b: Annotated[str, typer.Argument(help="Another one.")],
    on: ON = None,
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", help="The items of this one alone.")
    ] = None,
    as_json: JSON = False,
    csv: CSV = None,
    parquet: PARQUET = None,
) -> None:
    """List the items of which exactly one of two candidates is right."""
    from l2s_hpc import open_run
    from l2s_hpc.analysis.names import beginnings, items_of, resolve, usual_evaluation
    from l2s_hpc.errors import UserError

    with said_warnings():
        run = open_run(folder)
    pair = [resolve(run, a), resolve(run, b)]
    if pair[0] == pair[1]:
        raise UserError(f"{a} and {b} are one candidate, {pair[0]}", hint="name two", path=folder)
    on = on or usual_evaluation(run, pair)
    rows = run.diff(a, b, on, benchmark).to_dicts()
    won = sum(row["right"] == "a" for row in rows)
    what = f"only {a} right on {won}, only {b} on {len(rows) - won}"
    ids = beginnings(items_of(run, on))
    shown = [_difference(row, ids[row["benchmark"], row["item"]], a, b) for row in rows]
    if not rows:
        count = _compared(run, pair, on, benchmark)
        shown = [{"right": f"they do not differ in any of {count} items"}]
    spare = (f"{a} tokens", f"{b} tokens", "level", "gold")
    give_rows(rows, shown, visible(f"'{on}': {what}"), as_json, csv, parquet, spare)
    if rows and not as_json and csv != "-":
        hint = f"l2s show {folder} {a} {rows[0]['number']} --split {on}"
        stdout.print(Text(visible(f"an answer whole: {hint}")))


def visible(text: str) -> str:
    """Return what can be seen of a text: no terminal codes, control or direction characters.

    Lines stay lines, tabs and other white space become blanks.
    """
    text = _CODES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return "".join(_seen(character) for character in text)


def as_dict(found: Shown) -> dict[str, Any]:
    """Return all that `show` found, for `--json`."""
    scores = (
        "correct", "grade_status", "grader", "extracted", "n_prompt_tokens", "n_output_tokens",
        "n_charged_tokens", "finish_reason", "truncated",
    )  # fmt: skip
    item = found.item
    return {
        "evaluation": found.evaluation,
        "benchmark": item.benchmark,
        "item": item.item,
        "number": found.number,
        "sample": found.sample,
        "level": item.level,
        "gradable": item.gradable,
        "gold": item.gold or None,
        "question": item.question or None,
        "preset": found.preset,
        "prompt": found.prompt,
        "prompt_note": found.note,
        "answers": [
            {name: value for name, value in asdict(answer).items() if name != "scores"}
            | {name: answer.scores[name] for name in scores}
            for answer in found.answers
        ],
    }


def _print(found: Shown) -> None:
    item = found.item
    out = Console(highlight=False, soft_wrap=True)
    level = f", level {item.level}" if item.level else ""
    sample = f", sample {found.sample}" if found.sample else ""
    place = f"item {found.number} of '{found.evaluation}'{level}{sample}"
    _line(out, f"{item.benchmark}/{item.item}: {place}", "bold")
    _line(out, f"gold: {item.gold or '(not recorded)'}")
    if not item.gradable:
        _line(out, f"no rule can judge answers to it: {item.ungradable}")
    out.print()
    _line(out, f"Prompt ({found.preset})", "bold")
    _line(out, found.prompt or item.question)
    if found.note:
        _line(out, f"({found.note})", "dim")
    width = Console().width
    if width >= _COLUMN * len(found.answers) and len(found.answers) > 1:
        _print_beside(found.answers, width)
        return
    for answer in found.answers:
        out.print()
        for part in (*_facts(answer), Text(), _written(answer)):
            out.print(part)


def _print_beside(answers: Sequence[Answer], width: int) -> None:
    table = Table(show_lines=True, header_style="bold", expand=True)
    for answer in answers:
        table.add_column(_facts(answer)[0], ratio=1, overflow="fold")
    table.add_row(*(Text("\n").join(_facts(answer)[1:]) for answer in answers))
    table.add_row(*(_written(answer) for answer in answers))
    console = Console(highlight=False, width=width)
    console.print()
    console.print(table)


def _facts(answer: Answer) -> list[Text]:
    """Return who answered, the verdicts, how the answer was found, and the tokens."""
    scores = answer.scores
    name = f"{answer.label} ({answer.candidate})" if answer.label else answer.candidate
    decided = {"grader": scores["grader"], "rule": None, "reason": answer.reason}
    rows = [scores | decided, *answer.grades]
    lines = [Text(visible(name), style="bold"), *(_verdict(row) for row in rows)]
    if answer.rule is not None:
        where = f", characters {answer.span[0]} to {answer.span[1]}" if answer.span else ""
        other = answer.found != scores["extracted"]
        what = f"the present rules find {answer.found or 'nothing'}" if other else "found"
        lines.append(Text(visible(f"{what} by the rule '{answer.rule}'{where}")))
    tokens = scores["n_output_tokens"]
    if tokens is not None:
        charged = scores["n_charged_tokens"]
        more = f" ({charged} charged)" if charged != tokens else ""
        lines.append(Text(visible(f"{tokens} tokens{more}, ended by {scores['finish_reason']}")))
    return lines


def _verdict(row: dict[str, Any]) -> Text:
    status = row["grade_status"]
    word = "right" if row["correct"] else "wrong" if status in ("ok", "no_answer") else "undecided"
    if row["extracted"] is not None:
        answer = f"answer {row['extracted']}"
    else:  # an import of bare verdicts has none
        answer = "no answer" if status == "no_answer" else "the answer was not recorded"
    why = f"; {row['reason']}" if row["reason"] else ""
    text = Text(word, style="bold green" if row["correct"] else "bold red")
    return text.append(visible(f": {answer}{why} ({row['grader']})"), style="not bold default")


def _written(answer: Answer) -> Text:
    """Return a full text, with the extracted answer marked."""
    if answer.text is None:
        return Text(f"(no full text: {answer.missing})", style="dim")
    start, end = answer.span or (0, 0)
    text = Text(visible(answer.text[:start]))
    text.append(visible(answer.text[start:end]), style="bold reverse")
    return text.append(visible(answer.text[end:]))


def _line(out: Console, text: str, style: str = "") -> None:
    out.print(Text(visible(text), style=style))


def _difference(row: dict[str, Any], item: str, a: str, b: str) -> dict[str, Any]:
    """Return a row of `diff` with what fits a terminal."""
    return {
        "number": row["number"],
        "item": f"{row['benchmark']}/{item}",
        "level": row["level"],
        "right": a if row["right"] == "a" else b,
        "gold": _short(row["gold"]),
        f"{a} says": _short(row["a_extracted"]),
        f"{b} says": _short(row["b_extracted"]),
        f"{a} tokens": row["a_tokens"],
        f"{b} tokens": row["b_tokens"],
    }


def _compared(run: Run, pair: Sequence[str], on: str, benchmark: str | None) -> int:
    """Return how many items two candidates were compared on."""
    from l2s_hpc.analysis.names import items_of

    lacked = {name for candidate in pair for name in run.info.lacks.get(candidate, ())}
    found = items_of(run, on)
    return sum(i.benchmark not in lacked and benchmark in (None, i.benchmark) for i in found)


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _seen(character: str) -> str:
    if character.isprintable() or character == "\n":
        return character
    return " " if character.isspace() else ""
