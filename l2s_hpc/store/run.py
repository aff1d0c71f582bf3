"""`run.json`: what a run is, written once when it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from l2s_hpc.errors import UserError
from l2s_hpc.records import Recipe, Record
from l2s_hpc.store.files import read_json
from l2s_hpc.store.layout import RunPaths


class RunInfo(Record):
    """The resolved settings of a run.

    Attributes:
        id: the run's name and a random part; it stands in job names and score tables.
        config: the resolved job. site: the resolved site at the start.
        models: where each input model comes from, as nodes look it up; identities: what it was.
        frozen: genes that do nothing, and the value at which they are kept.
        references: the reference recipes by label (`parent.slow`, `average`, `sweep.0.5`, …).
        science: the flat settings that decide results; a run goes on only with the same.
    """

    id: str
    name: str
    created: str
    command: str
    versions: dict[str, str]
    git: dict[str, str] | None
    config: dict[str, Any]
    site: dict[str, Any]
    models: dict[str, dict[str, Any]]
    identities: dict[str, str]
    frozen: dict[str, float]
    liveness: str
    references: dict[str, Recipe]
    science: dict[str, Any]

    def reference_ids(self) -> dict[str, str]:
        """Return the candidate id of each reference by label."""
        return {label: recipe.candidate for label, recipe in self.references.items()}

    def parent_ids(self) -> dict[str, str]:
        """Return the candidate id of each parent by name."""
        return {
            label.removeprefix("parent."): candidate
            for label, candidate in self.reference_ids().items()
            if label.startswith("parent.")
        }


def read_run(folder: Path) -> RunInfo:
    """Read a run directory's `run.json`.

    Raises:
        UserError: the folder is not a run directory.
    """
    path = RunPaths(folder).run_json
    if not path.exists():
        raise UserError(
            "not a run directory: it has no run.json",
            hint="`l2s run JOB --run DIR` makes one",
            path=folder,
        )
    return RunInfo.model_validate(read_json(path))
