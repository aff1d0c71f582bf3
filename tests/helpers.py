"""Small builders that several test folders share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from l2s_hpc.config import ModelSource, SearchConfig
from l2s_hpc.recipes.genes import space
from l2s_hpc.recipes.models import Model
from l2s_hpc.recipes.recipe import make_recipe
from l2s_hpc.records import Recipe

ROOT = Path(__file__).parents[1]
TOY = ROOT / "data" / "toy"
QUARTERS = {
    "ends": ("embeddings", "final_norm", "head"),
    "low": ("layers.0-1",),
    "mid": ("layers.2",),
    "top": ("layers.3",),
}


def toy_models(*names: str) -> dict[str, Model]:
    """Return models of the toy family by name."""
    return {name: Model(name, TOY / name) for name in names or ("slow", "fast", "base")}


def search_config(
    method: str,
    genes: Iterable[Mapping[str, Any]],
    parents: Sequence[str] = ("slow", "fast"),
    base: str | None = "base",
    **merge: Any,
) -> SearchConfig:
    """Return a job over the toy family; genes lie between -8 and 8 unless they say otherwise."""
    return SearchConfig(
        name="test",
        parents={name: ModelSource(path=f"shipped:toy/{name}") for name in parents},
        merge={
            "method": method,
            "base": base if base in (None, *parents) else f"shipped:toy/{base}",
            "groups": QUARTERS,
            **merge,
        },
        genes=[{"low": -8, "high": 8, **gene} for gene in genes],
        benchmarks=("toy_easy",),
    )


def recipe_of(
    config: SearchConfig, values: Sequence[float], identities: Mapping[str, str] | None = None
) -> Recipe:
    """Return the canonical recipe of a genome, given as its genes' values in order."""
    genes = space(config)
    names = (*config.parents, "base")
    return make_recipe(config, genes, genes.genome(values), identities or dict.fromkeys(names, ""))
