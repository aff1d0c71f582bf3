"""How a run shows itself in a notebook."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from l2s_hpc.errors import UserError

if TYPE_CHECKING:
    from l2s_hpc.analysis.run import Run

_SHOWN = ("candidate", "picks", "n", "accuracy", "tokens", "ntr", "ptr")


def as_html(run: Run) -> str:
    """Return a line on a run and its front as a table, or why there is none."""
    evaluation = run.best_evaluation()
    try:
        rows = run.front()
    except UserError as error:
        return f"<p>{html.escape(repr(run))}: {html.escape(error.message)}</p>"
    head = "".join(f"<th>{name}</th>" for name in _SHOWN)
    lines = [
        "".join(f"<td>{html.escape(_cell(row[name]))}</td>" for name in _SHOWN) for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f"<p>{html.escape(repr(run))}; the front on {html.escape(evaluation)}:</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(value) if isinstance(value, list) else str("" if value is None else value)
