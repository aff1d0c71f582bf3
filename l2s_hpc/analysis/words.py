"""Numbers and names as the report writes them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from l2s_hpc.analysis.nodes import Node
from l2s_hpc.analysis.page import Child, Html, el, join, table
from l2s_hpc.analysis.run import Run
from l2s_hpc.analysis.transfer import Row

GRADABLE = "accuracy, gradable"
UNDECIDED = "undecided"
IF_RIGHT = "tokens if right"


def name_of(run: Run, candidate: str) -> str:
    """Return under which names a candidate was picked, else a reference's label, else its id."""
    picks = [name.replace("_", " ") for name, pick in run.state.picks.items() if pick == candidate]
    return " and ".join(picks) or run.labels.get(candidate, candidate)


def items_of(run: Run, evaluation: str) -> int:
    """Return on how many items an evaluation's figures rest; 0 without a table."""
    measured = run.measures(evaluation)
    return int(next(iter(measured.values()))["n"] or 0) if measured else 0


def optimistic(run: Run, evaluation: str) -> Html:
    """Return the mark of figures from items that chose the front; nothing for others."""
    if run.info.purpose == "search" and evaluation in ("search", "selection"):
        return el("span", "optimistic", class_="tag warn")
    return Html("")


def shown_models(run: Run) -> list[str]:
    """Return the models that tables name: the front from its longest answers, then references."""
    known = run.measures(run.best_evaluation())
    if run.info.imported:
        return list(known)
    front = [row["candidate"] for row in reversed(run.front())] if known else []
    return [c for c in dict.fromkeys([*front, *run.labels]) if c in known]


def short_names(run: Run, candidates: Iterable[str]) -> dict[str, str]:
    """Return what stands beside a model's row in a chart: a name, or the end that tells ids apart.

    That is the head of a hash, and the tail of an imported path.
    """
    if run.info.imported:
        found = {c: run.labels.get(c, c) for c in candidates}
        short = {c: name if len(name) <= 18 else f"…{name[-17:]}" for c, name in found.items()}
        return short if len(set(short.values())) == len(short) else found
    first = {pick: name.replace("_", " ") for name, pick in reversed(run.state.picks.items())}
    return {c: first.get(c) or run.labels.get(c) or c[:8] for c in candidates}


def rate(row: Row, name: str) -> str:
    """Return a rate in percent with its interval, or a dash where it is None."""
    if row[name] is None:
        return "–"
    return f"{row[name]:.1%} {_ends(100 * row[f'{name}_low'], 100 * row[f'{name}_high'])}"


def number(row: Row, name: str) -> str:
    """Return a mean with its interval, or a dash where it is None."""
    if row[name] is None:
        return "–"
    return f"{row[name]:.1f} {_ends(row[f'{name}_low'], row[f'{name}_high'])}"


def stretch(seconds: float) -> str:
    """Return seconds in the unit that suits them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def benchmark_table(run: Run, rows: Sequence[Row]) -> Html:
    """Return candidates with accuracy, tokens and transfer on one benchmark."""
    first = rows[0]
    note = f"{first['n']} items"
    if first["solved"] is not None:
        left = first["n"] - first["solved"]
        note += f", of which some parent solves {first['solved']:g} (NTR is a share of these) and "
        note += f"none solves {left:g} (PTR is a share of these)"
    gradable = min(row["n_gradable"] for row in rows)
    undecided = any(row["undecided"] for row in rows)
    columns: list[tuple[str, list[Child]]] = [
        ("model", [_named(run, row["candidate"]) for row in rows]),
        ("accuracy", [_small(rate(row, "accuracy")) for row in rows]),
        (GRADABLE, [known(row["accuracy_gradable"], "{:.1%}") for row in rows]),
        ("mean tokens", [_small(number(row, "tokens")) for row in rows]),
        (IF_RIGHT, [known(row["tokens_right"], "{:.1f}") for row in rows]),
        ("NTR", [_small(rate(row, "ntr")) for row in rows]),
        ("PTR", [_small(rate(row, "ptr")) for row in rows]),
        ("cut off", [known(row["truncation"], "{:.1%}") for row in rows]),
        (UNDECIDED, [known(row["undecided"], "{:.1%}") for row in rows]),
    ]
    hidden = idle_columns(first["n"], gradable, undecided)
    note = f"{note}.{grading_words(first['n'], gradable, undecided)}"
    return join([el("p", note, class_="note"), _drawn([c for c in columns if c[0] not in hidden])])


def idle_columns(items: int, gradable: int, undecided: bool) -> set[str]:
    """Return the columns on grading that a table has no need of."""
    return ({GRADABLE} if gradable == items else set()) | (set() if undecided else {UNDECIDED})


def grading_words(items: int, gradable: int, undecided: bool) -> str:
    """Return sentences on items that no rule can grade and on undecided verdicts, if any."""
    words = ""
    if gradable < items:
        words += (
            f" No rule can grade {items - gradable} of the items, whose gold is prose or one of "
            "several that conflict: accuracy is given with and without them."
        )
    return words + (" An undecided verdict counts as wrong." if undecided else "")


def benchmark_words(name: str) -> str:
    """Return what a table is about: a benchmark, or what stands beside their names."""
    return {
        "all": "All items pooled",
        "macro": "Unweighted mean over benchmarks",
    }.get(name, name)


def node_table(nodes: Sequence[Node]) -> Html:
    """Return nodes with their speed and load; what none of them tells has no column."""
    phases = list(dict.fromkeys(phase for node in nodes for phase in node.seconds))
    columns: list[tuple[str, list[Child]]] = [
        ("node", [el("code", node.host) for node in nodes]),
        ("device", [node.device for node in nodes]),
        ("candidates", [str(node.candidates) for node in nodes]),
        ("tokens/s", [known(node.tokens_per_second, "{:,.0f}") for node in nodes]),
        ("GPU idle", [known(node.gpu_idle, "{:.1%}") for node in nodes]),
        ("batch filled", [known(node.batch_occupancy, "{:.1%}") for node in nodes]),
        ("GPU peak", [known(node.peak_gpu_gb, "{:.1f} GB") for node in nodes]),
        ("host peak", [known(node.peak_host_gb, "{:.1f} GB") for node in nodes]),
        *((p, [known(node.seconds.get(p), "{:.2f} s") for node in nodes]) for p in phases),
        (
            "canary's answer",
            [el("code", n.fingerprint[:8]) if n.fingerprint else "–" for n in nodes],
        ),
    ]
    shown = [(name, cells) for name, cells in columns if any(cell != "–" for cell in cells)]
    return _drawn(shown, {0, 1})


def _drawn(columns: Sequence[tuple[str, list[Child]]], words: Collection[int] = (0,)) -> Html:
    """Return columns, each with its heading, as a table; some of them hold words."""
    rows = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
    return table([name for name, _ in columns], rows, words)


def known(value: float | None, form: str) -> str:
    """Return a number, or a dash where it is None."""
    return "–" if value is None else form.format(value)


def _named(run: Run, candidate: str) -> Html:
    """Return a candidate's name, and its id small beside it where the name is another word."""
    name = name_of(run, candidate)
    if name == candidate:
        return el("code", candidate)
    shown = candidate if run.info.imported else candidate[:8]
    return join([name, " ", el("small", el("code", shown))])


def _small(text: str) -> Html:
    """Return text whose interval in brackets is small."""
    value, bracket, rest = text.partition(" [")
    return join([value, el("small", f" [{rest}")]) if bracket else join([value])


def times(count: int) -> str:
    """Return how often, in words where they are shorter."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _ends(low: float, high: float) -> str:
    return f"[{low:.1f},\u00a0{high:.1f}]"
