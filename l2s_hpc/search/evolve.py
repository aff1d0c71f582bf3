"""The evolutionary algorithm: pymoo's, driven by replay, never from a checkpoint.

`Evolution.ask(history)` is a function of the job and of the recorded generations alone: the
algorithm is built from the seed, asked and told again, and every genome that it asks for is
compared with the recorded one. What it has already replayed is kept, as nothing but a shortcut.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.evaluator import Evaluator
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.problems.static import StaticProblem

from l2s_hpc.config import SearchConfig
from l2s_hpc.errors import L2SError
from l2s_hpc.recipes.genes import Gene, Genome, Space

Array = npt.NDArray[np.float64]

_DRAWS = 10
"""Draws per point of a random start, so that points that snap to the same one can be left out."""


@dataclass(frozen=True)
class Generation:
    """One generation that was asked and told.

    Attributes:
        genomes: the genomes in the order in which they were asked.
        objectives: one row a genome, smaller is better.
        violations: one row a genome, 0 or less is feasible.
    """

    genomes: tuple[Genome, ...]
    objectives: tuple[tuple[float, ...], ...]
    violations: tuple[tuple[float, ...], ...]


class Evolution:
    """Asks for the next generation, given all earlier ones."""

    def __init__(self, config: SearchConfig, space: Space) -> None:
        self._config = config
        self._space = space
        self._reset()

    def ask(self, history: Sequence[Generation]) -> tuple[Genome, ...]:
        """Return the genomes of the generation after `history`; none if no new one is found.

        A search that has ended with an empty generation stays ended.

        Raises:
            L2SError: replay asks for other genomes than were recorded.
        """
        if history and not history[-1].genomes:
            return ()
        if self._told != tuple(history[: len(self._told)]):
            self._reset()
        for number in range(len(self._told), len(history)):
            self._replay(number, history[number])
        return self._ask()

    def _reset(self) -> None:
        self._algorithm = _algorithm(self._config, self._space)
        self._told: tuple[Generation, ...] = ()
        self._asked: tuple[Genome, ...] | None = None
        self._population: Any = None

    def _ask(self) -> tuple[Genome, ...]:
        if self._asked is None:
            self._population = self._algorithm.ask()
            genes = self._space.searched
            found = [] if self._population is None else self._population.get("X")
            unit = np.asarray(found, dtype=float).reshape(-1, len(genes))
            self._asked = tuple(self._space.genome(_scaled(row, genes)) for row in unit)
        return self._asked

    def _replay(self, number: int, generation: Generation) -> None:
        if self._ask() != generation.genomes:
            raise L2SError(
                f"replay of generation {number} asks for other genomes than the journal has",
                hint="use the versions of pymoo and numpy that run.json names",
            )
        population = self._population
        static = StaticProblem(
            self._algorithm.problem,
            F=np.asarray(generation.objectives, dtype=float),
            G=np.asarray(generation.violations, dtype=float),
        )
        Evaluator().eval(static, population)
        self._algorithm.tell(infills=population)
        self._told = (*self._told, generation)
        self._asked = None


class _Unit(Problem):  # type: ignore[misc]
    """The search happens in the unit cube; a gene's own scale is applied afterwards."""

    def __init__(self, genes: int, objectives: int, constraints: int) -> None:
        super().__init__(n_var=genes, n_obj=objectives, n_ieq_constr=constraints, xl=0.0, xu=1.0)


class _Snap(Repair):  # type: ignore[misc]
    """Rounds every genome to the allowed values, so that pymoo sees duplicates as duplicates."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self._space = space

    def _do(self, problem: Problem, X: Array, **kwargs: Any) -> Array:
        genes = self._space.searched
        return np.array([snap_unit(row, genes) for row in X], dtype=float)


def snap_unit(row: Array, genes: Sequence[Gene]) -> list[float]:
    """Round a point of the unit cube to the nearest point that stands for allowed values."""
    return [
        _to_unit(gene.snap(value), gene)
        for gene, value in zip(genes, _scaled(row, genes), strict=True)
    ]


def grid(space: Space, points: int) -> Array:
    """Return the coarse grid in unit coordinates: one axis per (parameter, model), groups tied."""
    axes = list(dict.fromkeys((gene.parameter, gene.model) for gene in space.searched))
    levels = np.linspace(0.0, 1.0, points)
    rows = []
    for values in itertools.product(levels, repeat=len(axes)):
        by_axis = dict(zip(axes, values, strict=True))
        rows.append([by_axis[gene.parameter, gene.model] for gene in space.searched])
    return np.array(rows, dtype=float)


class _RandomSearch:
    """Uniform draws, with pymoo's ask and tell: what an evolutionary search must beat."""

    def __init__(self, problem: Problem, space: Space, size: int, seed: int) -> None:
        self.problem = problem
        self._genes = space.searched
        self._size = size
        self._rng = np.random.default_rng(seed)

    def ask(self) -> Population:
        return Population.new("X", _random_start(self._rng, self._size, self._genes))

    def tell(self, infills: Population) -> None:
        """Random search learns nothing."""


def _random_start(rng: np.random.Generator, size: int, genes: Sequence[Gene]) -> Array:
    """Draw distinct points; fewer than `size` where the space holds hardly more."""
    drawn = rng.random((size * _DRAWS, len(genes)))
    rows = dict.fromkeys(tuple(snap_unit(row, genes)) for row in drawn)
    return np.array(list(rows)[:size])


def _algorithm(config: SearchConfig, space: Space) -> Any:
    settings = config.search
    genes = space.searched
    problem = _Unit(len(genes), len(config.objectives), len(config.constraints))
    if settings.algorithm == "random":
        return _RandomSearch(problem, space, settings.population, config.seed)
    if settings.start == "grid":
        rows = dict.fromkeys(tuple(snap_unit(row, genes)) for row in grid(space, settings.grid))
        start = np.array(list(rows))
    else:
        rng = np.random.default_rng(config.seed)
        start = _random_start(rng, settings.population, genes)
    kind = NSGA2 if settings.algorithm == "nsga2" else GA
    algorithm = kind(
        pop_size=settings.population,
        sampling=start,
        crossover=SBX(eta=settings.crossover_eta, prob=0.9),
        mutation=PM(eta=settings.mutation_eta),
        repair=_Snap(space),
        eliminate_duplicates=True,
    )
    algorithm.setup(problem, seed=config.seed, termination=("n_gen", 10**9), verbose=False)
    return algorithm


def _scaled(row: Array, genes: Sequence[Gene]) -> list[float]:
    return [_from_unit(float(u), gene) for u, gene in zip(row, genes, strict=True)]


def _from_unit(unit: float, gene: Gene) -> float:
    if gene.log:
        return float(gene.low * (gene.high / gene.low) ** unit)
    return gene.low + unit * (gene.high - gene.low)


def _to_unit(value: float, gene: Gene) -> float:
    if gene.log:
        return float(np.log(value / gene.low) / np.log(gene.high / gene.low))
    return (value - gene.low) / (gene.high - gene.low)
