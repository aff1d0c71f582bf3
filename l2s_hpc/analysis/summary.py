"""The first part of the report: what was run, how far it is, and what came out in short."""

from __future__ import annotations

from l2s_hpc.analysis.compared import COUNTED, by_lack, left_out
from l2s_hpc.analysis.page import Child, Html, el, join
from l2s_hpc.analysis.run import Run
from l2s_hpc.analysis.words import name_of, number, rate

_KINDS = {"search": "Merge search", "import": "Imported results", "evaluate": "Evaluations"}


def summary(run: Run, evaluation: str) -> Html:
    """Return name, stage, warnings, and a sentence on each model that matters in an evaluation."""
    last = run.state.last_time[:16].replace("T", " ")
    what = _KINDS[run.info.purpose]
    parts: list[Child] = [
        el("p", f"{what} {run.info.id} · {run.stage} · {last} UTC", class_="kicker"),
        el("h1", run.info.name),
        el("p", str(run.config.get("description", "")), class_="lead"),
    ]
    if not run.state.completed:
        text = (
            f"This run is not finished ({run.stage}). Its figures are those of the {evaluation}"
            " items so far, and may change."
        )
        parts.append(el("p", text, class_="notice"))
    if run.info.imported and run.info.imported.tokenizer:
        parts.append(el("p", f"{COUNTED[0].upper()}{COUNTED[1:]}.", class_="notice"))
    if run.without:
        text = f"All figures are without {' and '.join(run.without)}."
        parts.append(el("p", text, class_="notice"))
    for benchmarks, lacking in by_lack(run.info.lacks, run.without).items():
        if benchmarks:
            parts.append(el("p", left_out(benchmarks, lacking) + ".", class_="notice"))
    return join([*parts, *_findings(run, evaluation)])


def _findings(run: Run, evaluation: str) -> list[Html]:
    """Return a sentence on each pick and on the first parent, as far as they are known."""
    named = {pick: name.replace("_", " ") for name, pick in run.state.picks.items()}
    slow_name, slow = next(iter(run.parents.items()), ("", ""))
    rows = {
        row["candidate"]: row
        for row in run.table(evaluation, dict.fromkeys([slow, *named]))
        if row["benchmark"] == "all"
    }
    if slow not in rows or rows[slow]["tokens"] is None:
        return []
    base = rows[slow]
    sentences: list[list[Child]] = [
        [
            "The parent ",
            el("strong", slow_name),
            f" solves {rate(base, 'accuracy')} of the {base['n']} {evaluation} items with "
            f"{number(base, 'tokens')} tokens an answer.",
        ]
    ]
    for candidate in [c for c in named if c in rows]:
        row = rows[candidate]
        change = f"{row['tokens'] / base['tokens'] - 1:+.0%}".replace("-", "−")
        sentences.append(
            [
                "The pick ",
                el("strong", name_of(run, candidate)),
                f" solves {rate(row, 'accuracy')} with {number(row, 'tokens')} tokens "
                f"({change}), and loses {rate(row, 'ntr')} of what some parent solves.",
            ]
        )
    return [el("p", *sentence, class_="finding") for sentence in sentences]
