"""Several searches beside each other: seeds of one job, or ours against a baseline.

from l2s_hpc.analysis.runs import open_runs
runs = open_runs(["results/ours-1", "results/ours-2", "results/random-1"])
runs.hypervolume()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import polars as pl

from l2s_hpc.analysis.run import Run, open_run
from l2s_hpc.analysis.tradeoff import Hypervolume
from l2s_hpc.analysis.transfer import Row
from l2s_hpc.errors import UserError
from l2s_hpc.records import short_hash

_ORDER = ("search", "selection", "report")
_MAY_DIFFER = ("name", "seed", "splits.seed", "items.search", "items.selection", "items.report")
"""Settings in which searches of one group may differ: seeds, and the items that they draw."""


def open_runs(paths: Iterable[str | Path], strict: bool = True) -> Runs:
    """Open several searches for reading, to compare them.

    Args:
        paths: at least two run directories, or copies of them.
        strict: as in `open_run`.

    Raises:
        UserError: one of them is no search, is named twice or has no tables yet; or benchmarks,
            protocols or parents differ, so that their figures mean different things.
        DamageError: as in `open_run`.
    """
    folders = [Path(path) for path in paths]
    twice = [folder for folder in folders if _resolved(folders).count(folder.resolve()) > 1]
    if len(folders) < 2 or twice:
        what = f"{twice[0]} is named twice" if twice else "one run cannot be compared"
        raise UserError(what, hint="name two or more run directories, each once")
    return Runs([open_run(folder, strict) for folder in folders])


class Runs:
    """Several searches whose figures may be compared.

    Searches that differ in nothing but their seed make a group. Where the seeds drew other items,
    `item_sets` tells them apart, and the spread over runs is also that of the items.

    Attributes:
        runs: the runs by name: their folders' names, or paths where these are not unique.
        groups: the names of the runs by group. A group is called after the settings in which it
            differs from the others; a single one as its runs are.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        names = [run.folder.resolve().name for run in runs]
        unique = len(set(names)) == len(names)
        self.runs = dict(zip(names if unique else [str(r.folder) for r in runs], runs, strict=True))
        for name, run in self.runs.items():
            if run.info.purpose != "search" or "search" not in run.evaluations:
                hint = "only searches with score tables are compared"
                raise UserError(f"{name} has nothing to compare", hint=hint, path=run.folder)
        self._check_alike()
        self.groups = _groups({name: run.info.science for name, run in self.runs.items()})

    def group_of(self, name: str) -> str:
        """Return the group of a run."""
        return next(group for group, members in self.groups.items() if name in members)

    def best_evaluation(self) -> str:
        """Return the evaluation whose figures are the least optimistic that all runs have."""
        known = [run.best_evaluation() for run in self.runs.values()]
        return min(known, key=_ORDER.index)

    def item_sets(self, evaluation: str) -> dict[str, str]:
        """Return a letter for each run: the same for runs with the same items there."""
        found = {name: self._about(name, evaluation)["items"] for name in self.runs}
        order = list(dict.fromkeys(found.values()))
        return {name: _letter(order.index(items)) for name, items in found.items()}

    def table(self) -> list[Row]:
        """Return a row for each run.

        Columns: run, group, seed, generations (told), candidates (with a search table), front (how
        many stand on it in `best_evaluation`), item_set and n (there), hypervolume of the search
        and of the sweep on the search items, front_hypervolume (in `best_evaluation`),
        most_accurate (accuracy of the front's best, there), device_hours (of the whole run).
        """
        evaluation = self.best_evaluation()
        sets = self.item_sets(evaluation)
        rows = []
        for name, run in self.runs.items():
            reached, there = self._reached[name], run.hypervolume(evaluation)
            front = run.front(evaluation)
            rows.append(
                {
                    "run": name,
                    "group": self.group_of(name),
                    "seed": run.config["seed"],
                    "generations": len(reached.generations),
                    "candidates": len(run.measures("search").keys() & run.state.genomes.keys()),
                    "front": len(front),
                    "item_set": sets[name],
                    "n": front[0]["n"] if front else 0,
                    "hypervolume": reached.generations[-1] if reached.generations else None,
                    "sweep": reached.sweep,
                    "front_hypervolume": there.generations[-1] if there.generations else None,
                    "most_accurate": max((row["accuracy"] for row in front), default=None),
                    "device_hours": run.cost().device_hours,
                }
            )
        return rows

    def hypervolume(self) -> list[Row]:
        """Return the hypervolume on the search items by group and generation.

        Columns: group, generation, runs (how many have told it), mean, sd (of a run, with n - 1;
        None of a single one), low and high (the ends of what the runs reach), device_hours (mean).
        """
        rows = []
        for group, members in self.groups.items():
            found = [self._reached[name] for name in members]
            for generation in range(max(len(one.generations) for one in found)):
                there = [one for one in found if len(one.generations) > generation]
                values = [one.generations[generation] for one in there]
                rows.append(
                    {
                        "group": group,
                        "generation": generation,
                        "runs": len(values),
                        "mean": mean(values),
                        "sd": stdev(values) if len(values) > 1 else None,
                        "low": min(values),
                        "high": max(values),
                        "device_hours": mean(one.device_hours[generation] for one in there),
                    }
                )
        return rows

    def reached(self, name: str) -> Hypervolume:
        """Return the hypervolume of one run on its search items."""
        return self._reached[name]

    def notes(self) -> list[str]:
        """Return a sentence on each thing that a reader of a comparison has to know."""
        said = []
        for evaluation in dict.fromkeys(["search", self.best_evaluation()]):
            sets = self.item_sets(evaluation)
            if len(set(sets.values())) > 1:
                told = ", ".join(f"{name} {letter}" for name, letter in sets.items())
                said.append(
                    f"The runs have different {evaluation} items ({told}), drawn by their seeds: "
                    "what differs between them is also the items' luck. `splits.seed` gives all "
                    "seeds the same."
                )
        for label, unlike in self._unlike.items():
            told = ", ".join(f"{name}: {value}" for name, value in unlike.items())
            said.append(f"The runs have different {label} ({told}).")
        unfinished = [name for name, run in self.runs.items() if not run.state.completed]
        if unfinished:
            said.append(f"Not finished: {', '.join(unfinished)}.")
        return said

    def differences(self) -> dict[str, dict[str, Any]]:
        """Return the settings in which the runs differ: by key, the value of each run."""
        return _differing({name: run.info.science for name, run in self.runs.items()})

    @cached_property
    def _reached(self) -> dict[str, Hypervolume]:
        return {name: run.hypervolume("search") for name, run in self.runs.items()}

    @cached_property
    def _unlike(self) -> dict[str, dict[str, str]]:
        """What makes figures of runs a little unlike each other: graders, devices, engines."""
        told: dict[str, dict[str, str]] = {"graders": {}, "devices": {}, "engines": {}}
        for name, run in self.runs.items():
            told["graders"][name] = self._about(name, "search")["graders"]
            told["devices"][name] = run.state.device
            told["engines"][name] = run.state.engine
        return {label: found for label, found in told.items() if len(set(found.values())) > 1}

    def _check_alike(self) -> None:
        for evaluation in dict.fromkeys(["search", self.best_evaluation()]):
            about = {name: self._about(name, evaluation) for name in self.runs}
            for what in ("benchmarks", "protocol"):
                found = {name: facts[what] for name, facts in about.items()}
                if len(set(found.values())) > 1:
                    raise UserError(
                        f"the runs differ in the {what} of '{evaluation}': {_told(found)}",
                        hint="their figures mean different things: compare runs of one "
                        f"{what.removesuffix('s')}; {self._why(what)}",
                    )
        parents = {name: ", ".join(run.parents.values()) for name, run in self.runs.items()}
        if len(set(parents.values())) > 1:
            raise UserError(
                f"the runs have different parents: {_told(parents)}",
                hint="tokens and transfer are measured against the parents: compare runs of "
                "the same ones",
            )

    def _why(self, what: str) -> str:
        keys = [key for key in self.differences() if key.startswith(what)]
        return f"the jobs differ in {', '.join(keys)}" if keys else "the jobs name the same ones"

    def _about(self, name: str, evaluation: str) -> dict[str, str]:
        """Return what the tables of a run say of an evaluation."""
        key = (name, evaluation)
        if key not in self._known:
            first = next(iter(self.runs[name].measures(evaluation)))
            rows = self.runs[name].scores(evaluation).filter(pl.col("candidate") == first)
            columns = ("benchmark", "item", "protocol", "grader")
            found = rows.select(*columns).unique().sort(*columns).collect()
            self._known[key] = {
                "items": short_hash([list(row) for row in found.select(columns[:2]).rows()]),
                "benchmarks": ", ".join(found["benchmark"].unique().sort()),
                "protocol": ", ".join(found["protocol"].unique().sort()),
                "graders": ", ".join(found["grader"].unique().sort()),
            }
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[str, str], dict[str, str]]:
        return {}

    def __repr__(self) -> str:
        sizes = ", ".join(f"{group}: {len(members)}" for group, members in self.groups.items())
        return f"<Runs {sizes}>"


def _groups(science: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the names of runs by what their group is called."""
    settings = {
        name: {key: value for key, value in flat.items() if key not in _MAY_DIFFER}
        for name, flat in science.items()
    }
    differing = _differing(settings)
    labels = {
        name: ", ".join(f"{_last(key)} {_plain(values[name])}" for key, values in differing.items())
        for name in settings
    }
    if not differing:
        labels = {name: str(science[name].get("name") or "runs") for name in settings}
        labels = dict.fromkeys(settings, next(iter(labels.values())))
    elif len(differing) == 1:
        labels = {name: _plain(next(iter(differing.values()))[name]) for name in settings}
    found: dict[str, list[str]] = {}
    for name, label in labels.items():
        found.setdefault(label, []).append(name)
    return found


def _differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    keys = dict.fromkeys(key for flat in settings.values() for key in flat)
    found = {key: {name: flat.get(key) for name, flat in settings.items()} for key in keys}
    return {key: v for key, v in found.items() if len({short_hash(one) for one in v.values()}) > 1}


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_plain, value)) or "none"
    return "none" if value is None else str(value)


def _told(found: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {value or '(none)'}" for name, value in found.items())


def _letter(index: int) -> str:
    """Return A, B, …, Z, A2, …."""
    again, letter = divmod(index, 26)
    return chr(ord("A") + letter) + (str(again + 1) if again else "")


def _resolved(folders: Iterable[Path]) -> list[Path]:
    return [folder.resolve() for folder in folders]
