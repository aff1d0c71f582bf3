"""Measures which genes change a merge at all: `python -m l2s_hpc.task.liveness < question.json`.

The question holds a job's configuration and the merged model's tensor names, the answer is a JSON
list of dead genes' names. Small random tensors are merged instead of the models' own: a gene that
never changes a single bit of them, from three random genomes, is dead.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import numpy as np
import torch

from l2s_hpc.config import SearchConfig
from l2s_hpc.recipes.genes import Genome, Space, filters, space
from l2s_hpc.recipes.recipe import make_recipe
from l2s_hpc.task.engines import MergeError
from l2s_hpc.task.merge import merge

_SIDE, _GENOMES, _SEED = 12, 3, 7


class _SmallTensors:
    """Random tensors in place of the models' weights, as `merge` reads them."""

    def __init__(self, models: Sequence[str], names: Sequence[str]) -> None:
        generator = torch.Generator().manual_seed(_SEED)
        shape = (_SIDE, _SIDE)
        self._tensors = {
            (model, name): torch.randn(shape, generator=generator).to(torch.bfloat16)
            for name in names
            for model in models
        }

    def get(self, model: str, tensor: str) -> torch.Tensor:
        return self._tensors[model, tensor]


def dead_genes(config: SearchConfig, tensors: Sequence[str]) -> list[str]:
    """Return the names of the genes that change no merged bit."""
    genes = space(config)
    names = _representatives(config, genes, tensors)
    models = [*config.parents, "base"]
    weights = _SmallTensors(models, names)
    identities = dict.fromkeys(models, "small")

    def merged(genome: Genome) -> list[bytes] | None:
        recipe = make_recipe(config, genes, genome, identities)
        try:
            return [
                tensor.view(torch.int16).numpy().tobytes()
                for _, tensor in merge(recipe, weights, names)
            ]
        except MergeError:
            return None

    rng = np.random.default_rng(_SEED)
    alive: set[str] = set()
    for _ in range(_GENOMES):
        genome = genes.genome([_draw(rng, gene.low, gene.high) for gene in genes.genes])
        reference = merged(genome)
        for index, gene in enumerate(genes.genes):
            if gene.name not in alive:
                other = [*genome]
                other[index] = _another(gene.low, gene.high, genome[index])
                if merged(genes.genome(other)) != reference:
                    alive.add(gene.name)
    return [gene.name for gene in genes.genes if gene.name not in alive]


def _representatives(config: SearchConfig, genes: Space, tensors: Sequence[str]) -> list[str]:
    """Return one tensor name for each combination of groups that the genes tell apart."""
    groups = sorted({gene.group for gene in genes.genes if gene.group is not None})
    parts = {group: filters(config.merge.groups[group]) for group in groups}
    found: dict[tuple[bool, ...], str] = {}
    for name in tensors:
        key = tuple(any(part in name for part in parts[group]) for group in groups)
        found.setdefault(key, name)
    return sorted(found.values())


def _draw(rng: np.random.Generator, low: float, high: float) -> float:
    return float(low + (high - low) * rng.uniform(0.1, 0.9))


def _another(low: float, high: float, value: float) -> float:
    """Return a value far from the given one, inside the bounds."""
    middle = (low + high) / 2
    return low + 0.9 * (high - low) if value < middle else low + 0.1 * (high - low)


def main() -> int:
    question = json.load(sys.stdin)
    config = SearchConfig.model_validate(question["config"])
    print(json.dumps(dead_genes(config, question["tensors"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
