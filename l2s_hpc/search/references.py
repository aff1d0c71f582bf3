"""The recipes that every run evaluates to compare with: parents, plain average, sweep."""

from __future__ import annotations

from collections.abc import Mapping

from l2s_hpc.config import SearchConfig
from l2s_hpc.recipes.recipe import average, single_model
from l2s_hpc.records import Recipe


def references(config: SearchConfig, identities: Mapping[str, str]) -> dict[str, Recipe]:
    """Return the reference recipes by label: `parent.<name>`, `average`, `sweep.<share>`.

    The sweep goes along the line between the first two parents; a label's share is the first
    parent's. Labels of the same recipe (the sweep's ends are parents) all stay.
    """
    found = {f"parent.{name}": single_model(name, identities) for name in config.parents}
    found["average"] = average(dict.fromkeys(config.parents, 1.0), identities)
    first, second = list(config.parents)[:2]
    points = config.references.sweep
    for n in range(points):
        share = round(n / (points - 1), 6) if points > 1 else 0.5
        found[f"sweep.{share:g}"] = average({first: share, second: 1 - share}, identities)
    return found


def sweep_labels(labels: Mapping[str, str]) -> list[str]:
    """Return the labels of the sweep among a run's references."""
    return [label for label in labels if label.startswith("sweep.")]
