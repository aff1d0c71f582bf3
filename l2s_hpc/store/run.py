"""`run.json`: what a run is, written once when it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from l2s_hpc.errors import DamageError, UserError
from l2s_hpc.records import Evaluation, Recipe, Record
from l2s_hpc.store.files import read_json
from l2s_hpc.store.layout import RunPaths


class Checkpoint(Record):
    """A model that `l2s evaluate` has got, in `models/<name>.json`.

    Attributes:
        name: how the run calls it.
        number: how many models came before it.
        parent: whether it is one of those with which `l2s ntr` compares.
        source: where it comes from, as nodes look it up.
        identity: what its weights are.
        stop_ids: the ids that end its answers, as its own files name them.
        template: the hash of what its tokenizer itself puts around a question.
        recipe: the recipe that is this model.
    """

    name: str
    number: int
    parent: bool
    source: dict[str, Any]
    identity: str
    stop_ids: tuple[int, ...]
    template: str
    recipe: Recipe

    @property
    def label(self) -> str:
        """Its label among the run's references."""
        return f"parent.{self.name}" if self.parent else self.name


class Imported(Record):
    """Foreign results that `l2s import` made a run of.

    Attributes:
        parents: the candidates that are parents, by name, the slow one first.
        files: the sha256 of each file that was imported, by its path below the folder.
        lacks: by candidate, the benchmarks that no sound file was found of.
        faults: file and reason of each file that was not imported.
        tokenizer: the sha256 of the tokenizer.json that counted tokens from the texts; empty: none.
    """

    parents: dict[str, str]
    files: dict[str, str]
    lacks: dict[str, tuple[str, ...]]
    faults: dict[str, str]
    tokenizer: str = ""


class RunInfo(Record):
    """The resolved settings of a run.

    Attributes:
        purpose: `search`, or `evaluate` for existing checkpoints without a search, or `import`.
        stop_ids: of each existing checkpoint, the ids that end its answers.
        imported: what `l2s import` found, where it made the run.
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
    purpose: Literal["search", "evaluate", "import"] = "search"
    imported: Imported | None = None
    stop_ids: dict[str, tuple[int, ...]] = Field(default_factory=dict)

    def reference_ids(self) -> dict[str, str]:
        """Return the candidate id of each reference by label."""
        found = {label: recipe.candidate for label, recipe in self.references.items()}
        parents = self.imported.parents if self.imported else {}
        return found | {f"parent.{name}": candidate for name, candidate in parents.items()}

    def labels(self) -> dict[str, str]:
        """Return one label for each reference's candidate: parents, average, then the sweep.

        The sweep's ends are parents and its middle may be the average: the first label stays.
        """
        ids = self.reference_ids()
        labels: dict[str, str] = {}
        for label in dict.fromkeys([*(f"parent.{name}" for name in self.parent_ids()), *ids]):
            labels.setdefault(ids[label], label)
        return labels

    @property
    def lacks(self) -> dict[str, tuple[str, ...]]:
        """The benchmarks that imported candidates lack, by candidate."""
        return self.imported.lacks if self.imported else {}

    def parent_ids(self) -> dict[str, str]:
        """Return the candidate id of each parent by name."""
        return {
            label.removeprefix("parent."): candidate
            for label, candidate in self.reference_ids().items()
            if label.startswith("parent.")
        }


def check_free(folder: Path) -> None:
    """Raise `UserError` unless a new run may begin here: the folder is empty, or not there.

    What a crash before run.json left is fine.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError("the run directory is a file", path=folder)
    others = (
        [p.name for p in folder.iterdir() if p.name != "evaluations"] if folder.exists() else []
    )
    if others:
        raise UserError(
            f"the folder is not empty and not a run directory (found {sorted(others)[0]})",
            hint="name another one with --run",
            path=folder,
        )


def read_run(folder: Path) -> RunInfo:
    """Read a run directory's `run.json`; where models can be added, with those added until now.

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
    info = RunInfo.model_validate(read_json(path))
    return info if info.purpose != "evaluate" else _with(info, read_checkpoints(folder))


def read_evaluation(folder: Path, name: str) -> Evaluation:
    """Return what was asked in an evaluation of a run, and how.

    Raises:
        DamageError: nobody can tell.
    """
    path = RunPaths(folder).evaluation(name)
    try:
        return Evaluation.model_validate(read_json(path))
    except (OSError, DamageError, ValidationError):
        raise undescribed(path) from None


def undescribed(path: Path) -> DamageError:
    """Return the error that the description of an evaluation cannot be read."""
    return DamageError(
        "the evaluation's description is missing or damaged",
        hint="copy it anew from where the run was made",
        path=path,
    )


def read_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return the models of a run of `l2s evaluate`, in the order in which they came."""
    files = RunPaths(folder).models.glob("*.json")
    found = [Checkpoint.model_validate(read_json(path)) for path in files]
    return sorted(found, key=lambda model: (model.number, model.name))


def _with(info: RunInfo, models: list[Checkpoint]) -> RunInfo:
    sources = {model.name: model.source for model in models}
    return info.model_copy(
        update={
            "models": sources,
            "identities": {model.name: model.identity for model in models},
            "stop_ids": {model.name: model.stop_ids for model in models},
            "references": {model.label: model.recipe for model in models},
            "config": info.config | {"parents": sources},
        }
    )
