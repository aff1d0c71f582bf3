"""`l2s plan`: what a run would do, without doing anything."""

from __future__ import annotations

import math
from typing import Any

from l2s_hpc.config import SearchConfig
from l2s_hpc.controller.resolve import Resolved
from l2s_hpc.recipes.genes import base_name, space
from l2s_hpc.recipes.methods import method
from l2s_hpc.recipes.recipe import make_recipe
from l2s_hpc.search.evolve import Evolution
from l2s_hpc.store.layout import RunPaths

_BYTES_PER_TOKEN = 1.3
"""Stored bytes per generated token, outputs and scores together, measured on the toy family."""


def plan(resolved: Resolved, paths: RunPaths) -> dict[str, Any]:
    """Return what a run would do: models, genes, items, first generation, tasks, sizes.

    GPU-hours are `None`: nobody has measured this job yet (`l2s run --smoke` does).
    """
    config, site = resolved.config, resolved.site
    genomes = Evolution(config, resolved.space).ask([])
    recipes = [make_recipe(config, resolved.space, g, resolved.identities) for g in genomes]
    references = {recipe.candidate for recipe in resolved.references.values()}
    first = references | {recipe.candidate for recipe in recipes}
    later = (config.search.generations - 1) * config.search.population
    items = {name: len(e.items) for name, e in resolved.evaluations.items()}
    answers = (len(first) + later) * items["search"] * config.protocol.samples
    tasks = math.ceil(len(first) / site.candidates_per_task)
    return {
        "job": config.name,
        "site": site.name,
        "method": config.merge.method,
        "tested": method(config.merge.method).tested,
        "models": [
            {
                "name": name,
                "role": "base" if name == base_name(config) else "parent",
                "folder": str(model.folder),
                "parameters": model.parameters,
                "tied_head": model.tied,
                "context": model.config.get("max_position_embeddings"),
                "identity": model.identity,
            }
            for name, model in resolved.models.items()
        ],
        "genes": [
            {
                "gene": gene.name,
                "low": gene.low,
                "high": gene.high,
                "step": gene.step,
                "frozen": resolved.space.frozen.get(gene.name),
            }
            for gene in resolved.space.genes
        ],
        "liveness": resolved.liveness,
        "objectives": list(config.objectives),
        "constraints": list(config.constraints),
        "items": {split: _by_benchmark(resolved, split) for split in resolved.evaluations},
        "protocol": resolved.evaluations["search"].protocol.model_dump(mode="json"),
        "first_generation": [
            {"candidate": recipe.candidate, "genome": list(genome)}
            for recipe, genome in zip(recipes, genomes, strict=True)
        ],
        "references": {label: r.candidate for label, r in resolved.references.items()},
        "candidates": len(first) + later,
        "tasks_of_first_generation": tasks,
        "answers_of_search": answers,
        "largest_output_bytes": int(answers * config.protocol.max_tokens * _BYTES_PER_TOKEN),
        "gpu_hours": None,
        "notes": _notes(config, resolved),
        "sbatch": _sbatch(resolved, paths, tasks),
    }


def count_candidates(config: SearchConfig) -> int:
    """Return the candidates that a search asks for, repeats included."""
    search = config.search
    axes = {(gene.parameter, gene.model) for gene in space(config).genes}
    first = search.grid ** len(axes) if search.start == "grid" else search.population
    return first + (search.generations - 1) * search.population


def _by_benchmark(resolved: Resolved, split: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in resolved.evaluations[split].items:
        found[item.benchmark] = found.get(item.benchmark, 0) + 1
    return found


def _notes(config: SearchConfig, resolved: Resolved) -> list[str]:
    """Return what a user should know before submitting."""
    notes = []
    if not method(config.merge.method).tested:
        notes.append(f"the method {config.merge.method} is untested here: try --smoke first")
    for name, value in resolved.space.frozen.items():
        notes.append(f"the gene {name} changes nothing; it is frozen at {value:g}")
    context = max(m.config.get("max_position_embeddings", 0) for m in resolved.models.values())
    if config.protocol.max_tokens >= context:
        notes.append(
            f"protocol.max_tokens = {config.protocol.max_tokens} does not fit into the context of "
            f"{context} tokens: answers would be cut earlier"
        )
    return notes


def _sbatch(resolved: Resolved, paths: RunPaths, tasks: int) -> str | None:
    if resolved.site.executor != "slurm":
        return None
    from l2s_hpc.cluster.slurm import SlurmExecutor

    name = f"l2s-{resolved.config.name}-XXXXXXXX-000003"
    return SlurmExecutor(paths, resolved.site).preview(name, tasks)
