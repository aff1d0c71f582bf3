"""The report of a run: one HTML file that opens offline and says what each figure rests on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from l2s_hpc.analysis.evaluated import evaluated
from l2s_hpc.analysis.figures import Figure, Figures
from l2s_hpc.analysis.page import Html, page
from l2s_hpc.analysis.report_cost import (
    cost_section,
    genomes_section,
    nodes_section,
    tries_section,
)
from l2s_hpc.analysis.report_front import front_section, search_section, splits_section
from l2s_hpc.analysis.report_lengths import lengths_section
from l2s_hpc.analysis.report_search import genes_section, hypervolume_section
from l2s_hpc.analysis.report_transfer import matrix_section, noise_section, tables_section
from l2s_hpc.analysis.run import Run
from l2s_hpc.analysis.settings import settings
from l2s_hpc.analysis.summary import summary
from l2s_hpc.store.files import write_durably

Section = Callable[[Run, Figures], Html]
"""Makes a part of the page, and takes the figures in it down; empty where there is nothing."""

_TAKEN: tuple[Section, ...] = (cost_section, nodes_section, tries_section)
_SECTIONS: dict[str, tuple[Section, ...]] = {
    "search": (
        front_section,
        splits_section,
        search_section,
        tables_section,
        matrix_section,
        lengths_section,
        noise_section,
        hypervolume_section,
        genes_section,
        genomes_section,
        *_TAKEN,
    ),
    "import": (front_section, tables_section, matrix_section, lengths_section),
    "evaluate": (evaluated, tables_section, matrix_section, *_TAKEN),
}
"""The parts of the report by the run's purpose, in their order."""


class Report:
    """The report of a run, finished or not.

    Attributes:
        html: the page.
        figures: its figures, in their order.
    """

    def __init__(self, run: Run) -> None:
        taken = Figures()
        body = [section(run, taken) for section in _SECTIONS[run.info.purpose]]
        whole = [summary(run, run.best_evaluation()), *body, settings(run)]
        self.figures: list[Figure] = taken.all
        self.html = page(f"{run.info.name}: report", whole, taken.specs())

    def write(self, path: Path) -> Path:
        """Write the page as one file; return its path."""
        return write_page(path, self.html)


def write_page(path: Path, html: str) -> Path:
    """Write a page, at once and whole; return its path."""
    write_durably(path, lambda temporary: _fill(temporary, html))
    return path


def write_report(run: Run, path: Path) -> Path:
    """Write the report of a run, finished or not, as one HTML file; return its path.

    Raises:
        DamageError: a score table is damaged or missing (unless the run was opened not strict).
        UserError: each candidate lacks a benchmark, so that nothing can be compared.
    """
    return Report(run).write(path)


def _fill(temporary: Path, text: str) -> None:
    temporary.write_text(text, encoding="utf-8")
