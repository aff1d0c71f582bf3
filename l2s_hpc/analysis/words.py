"""Numbers and names as the report writes them."""

from __future__ import annotations

from collections.abc import Sequence

from l2s_hpc.analysis.nodes import Node
from l2s_hpc.analysis.page import Child, Html, el, join, table
from l2s_hpc.analysis.run import Run
from l2s_hpc.analysis.transfer import Row


def name_of(run: Run, candidate: str) -> str:
    """Return under which names a candidate was picked, else a reference's label, else its id."""
    picks = [name.replace("_", " ") for name, pick in run.state.picks.items() if pick == candidate]
    return " and ".join(picks) or run.labels.get(candidate, candidate)


def rate(row: Row, name: str) -> str:
    """Return a rate in percent with its interval, or a dash where it is None."""
    if row[name] is None:
        return "–"
    return f"{row[name]:.1%} {_ends(100 * row[f'{name}_low'], 100 * row[f'{name}_high'])}"


def number(row: Row, name: str) -> str:
    """Return a mean with its interval."""
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
        note += f", of which some parent solves {first['solved']} (NTR is a share of these) and "
        note += f"none solves {left} (PTR is a share of these)"
    cells: list[list[Child]] = [
        [
            _named(run, row["candidate"]),
            _small(rate(row, "accuracy")),
            _small(number(row, "tokens")),
            _small(rate(row, "ntr")),
            _small(rate(row, "ptr")),
            f"{row['truncation']:.1%}",
        ]
        for row in rows
    ]
    head = ["model", "accuracy", "mean tokens", "NTR", "PTR", "cut off"]
    return join([el("p", note + ".", class_="note"), table(head, cells, {0})])


def node_table(nodes: Sequence[Node]) -> Html:
    """Return nodes with their speed and load; what none of them tells has no column."""
    phases = list(dict.fromkeys(phase for node in nodes for phase in node.seconds))
    columns: list[tuple[str, list[Child]]] = [
        ("node", [el("code", node.host) for node in nodes]),
        ("device", [node.device for node in nodes]),
        ("candidates", [str(node.candidates) for node in nodes]),
        ("tokens/s", [_known(node.tokens_per_second, "{:,.0f}") for node in nodes]),
        ("GPU idle", [_known(node.gpu_idle, "{:.1%}") for node in nodes]),
        ("batch filled", [_known(node.batch_occupancy, "{:.1%}") for node in nodes]),
        ("GPU peak", [_known(node.peak_gpu_gb, "{:.1f} GB") for node in nodes]),
        ("host peak", [_known(node.peak_host_gb, "{:.1f} GB") for node in nodes]),
        *((p, [_known(node.seconds.get(p), "{:.2f} s") for node in nodes]) for p in phases),
        (
            "canary's answer",
            [el("code", n.fingerprint[:8]) if n.fingerprint else "–" for n in nodes],
        ),
    ]
    shown = [(name, cells) for name, cells in columns if any(cell != "–" for cell in cells)]
    rows = [list(row) for row in zip(*(cells for _, cells in shown), strict=True)]
    return table([name for name, _ in shown], rows, {0, 1})


def _known(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _named(run: Run, candidate: str) -> Html:
    """Return a candidate's name, and its id small beside it where the name is another word."""
    name = name_of(run, candidate)
    if name == candidate:
        return el("code", candidate)
    return join([name, " ", el("small", el("code", candidate[:8]))])


def _small(text: str) -> Html:
    """Return text whose interval in brackets is small."""
    value, bracket, rest = text.partition(" [")
    return join([value, el("small", f" [{rest}")]) if bracket else join([value])


def times(count: int) -> str:
    """Return how often, in words where they are shorter."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _ends(low: float, high: float) -> str:
    return f"[{low:.1f},\u00a0{high:.1f}]"
