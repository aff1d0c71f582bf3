"""What the candidates of a run were merged from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from l2s_hpc.config import SearchConfig, validate
from l2s_hpc.errors import DamageError, UserError
from l2s_hpc.recipes.genes import Space, space
from l2s_hpc.recipes.recipe import make_recipe
from l2s_hpc.records import Recipe

if TYPE_CHECKING:
    from l2s_hpc.analysis.run import Run


def job_of(run: Run) -> SearchConfig:
    """Return a search's job, its parents in their order: the order of genes depends on it."""
    parents = run.config["parents"]
    ordered = {name: parents[name] for name in run.parents}
    return validate(SearchConfig, run.config | {"parents": ordered}, run.folder / "run.json")


def recipe_of(run: Run, candidate: str) -> Recipe:
    """Return the recipe of a candidate id, made from its genome as the search made it.

    That of a reference is written down; of a checkpoint that was evaluated it is the model alone.

    Raises:
        UserError: the run imported it, or does not know it: nobody can tell its recipe.
        DamageError: its genome gives another candidate.
    """
    for reference in run.info.references.values():
        if reference.candidate == candidate:
            return reference
    if candidate not in run.state.genomes:
        raise UserError(f"{candidate} was not merged by this run: no recipe", path=run.folder)
    job = job_of(run)
    genes = Space(space(job).genes, run.info.frozen)
    recipe = make_recipe(job, genes, run.state.genomes[candidate], run.info.identities)
    if recipe.candidate != candidate:
        raise DamageError(
            f"the genome of {candidate} gives the recipe {recipe.candidate}",
            hint="use the version of l2s-hpc that run.json names",
            path=run.folder,
        )
    return recipe
