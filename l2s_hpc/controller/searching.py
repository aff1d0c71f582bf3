"""What the course of a search adds to the journal: asked, told, stage, fixed."""

from __future__ import annotations

from collections.abc import Sequence

from l2s_hpc.analysis.fitness import Measures, measures
from l2s_hpc.analysis.frames import Frames
from l2s_hpc.analysis.tradeoff import search_front
from l2s_hpc.controller.budget import spent
from l2s_hpc.controller.choose import choose
from l2s_hpc.controller.course import twins
from l2s_hpc.controller.policy import Policy
from l2s_hpc.controller.resolve import Resolved
from l2s_hpc.recipes.recipe import make_recipe
from l2s_hpc.records import Recipe
from l2s_hpc.search.evolve import Evolution, Generation
from l2s_hpc.search.objectives import constraints, minimised, objectives, violations
from l2s_hpc.store.files import write_json
from l2s_hpc.store.journal import Event
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import RunInfo
from l2s_hpc.store.state import RunState


class Searching:
    """Makes the events of one search from its state and its accepted tables."""

    def __init__(self, paths: RunPaths, info: RunInfo, resolved: Resolved) -> None:
        self._paths = paths
        self._info = info
        self._resolved = resolved
        self._evolution = Evolution(resolved.config, resolved.space)
        self._objectives = objectives(resolved.config)
        self._constraints = constraints(resolved.config)

    def recipe(self, state: RunState, candidate: str) -> Recipe:
        """Return the recipe of a reference, or of a candidate that the search asked for."""
        for recipe in self._info.references.values():
            if recipe.candidate == candidate:
                return recipe
        return self._made(state.genomes[candidate])

    def ask(self, state: RunState, generation: int) -> Event:
        """Ask the algorithm for a generation."""
        genomes = self._evolution.ask(
            [
                Generation(g.genomes, g.objectives, g.violations or ())
                for g in state.generations
                if g.objectives is not None
            ]
        )
        return {
            "event": "asked",
            "generation": generation,
            "genomes": [list(genome) for genome in genomes],
            "candidates": [self._made(genome).candidate for genome in genomes],
        }

    def tell(self, state: RunState, number: int) -> Event:
        """Return the objectives of a generation whose candidates are settled."""
        found = self._measured(state, "search", state.generations[number].candidates)
        of_parents = self._of_parents(found)
        rows = [found.get(c) for c in state.generations[number].candidates]
        return {
            "event": "told",
            "generation": number,
            "objectives": [minimised(self._objectives, row) for row in rows],
            "violations": [violations(self._constraints, row, of_parents) for row in rows],
        }

    def stage(self, state: RunState, evaluation: str, policy: Policy, now: float) -> Event:
        """Return who is evaluated next; nodes find described what the evaluation is."""
        if evaluation == "noise":
            path = self._paths.evaluation(evaluation)
            if not path.exists():  # the run began without twins
                write_json(path, self._resolved.evaluations[evaluation].model_dump(mode="json"))
            return {"event": "stage", "evaluation": evaluation, "candidates": twins(state, policy)}
        chosen = state.front if evaluation == "report" else search_front(state)
        everyone = [*(chosen or ()), *state.picks.values(), *policy.references.values()]
        known = [c for c in dict.fromkeys(everyone) if ("search", c) not in state.penalised]
        event: Event = {"event": "stage", "evaluation": evaluation, "candidates": known}
        if evaluation == "selection" and len(state.generations) < policy.generations:
            event["spent"] = spent(state, policy.budget, now)
        return event

    def fix(self, state: RunState) -> Event:
        """Choose the final front and the picks on the selection split."""
        found = self._measured(state, "selection", state.stages["selection"])
        searched = {
            c: found[c] for c in state.stages["selection"] if c in state.genomes and c in found
        }
        chosen = choose(searched, self._of_parents(found), self._objectives, self._constraints)
        return {"event": "fixed", "front": list(chosen.front), "picks": chosen.picks}

    def _made(self, genome: Sequence[float]) -> Recipe:
        resolved = self._resolved
        return make_recipe(resolved.config, resolved.space, tuple(genome), self._info.identities)

    def _of_parents(self, found: dict[str, Measures]) -> dict[str, Measures]:
        return {name: found[c] for name, c in self._info.parent_ids().items()}

    def _measured(
        self, state: RunState, evaluation: str, candidates: Sequence[str]
    ) -> dict[str, Measures]:
        """Return the measures of the accepted ones among candidates, and of the parents."""
        parents = self._info.parent_ids()
        wanted = dict.fromkeys([*parents.values(), *candidates])
        accepted = {c: a for c in wanted if (a := state.accepted.get((evaluation, c)))}
        frames = Frames(self._paths, accepted.values())
        return measures(frames, evaluation, list(accepted), parents)
