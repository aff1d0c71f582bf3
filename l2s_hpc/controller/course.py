"""The course of a search: generations, selection, noise, report. Pure functions of its state."""

from __future__ import annotations

from l2s_hpc.controller.actions import Action, Ask, Complete, Fix, Stage, Tell
from l2s_hpc.controller.budget import spent
from l2s_hpc.controller.policy import Policy
from l2s_hpc.store.state import RunState


def under_way(state: RunState, policy: Policy) -> tuple[str, list[str]] | None:
    """Return the evaluation under way and its candidates; None between two of them."""
    if state.reopened:
        evaluation = min(state.reopened)[0]
        return evaluation, sorted(c for name, c in state.reopened if name == evaluation)
    if policy.only is not None:
        over = state.completed and _only_settled(state, policy.only)
        return None if over else (policy.only[0], list(policy.only[1]))
    if state.told < len(state.generations):
        generation = state.generations[-1]
        extra = policy.references.values() if len(state.generations) == 1 else ()
        return "search", list(dict.fromkeys([*extra, *generation.candidates]))
    noise = state.stages.get("noise", ())
    if not all(state.settled("noise", c) for c in noise):
        return "noise", list(noise)
    if "report" in state.stages and not state.completed:
        return "report", list(state.stages["report"])
    if "selection" in state.stages and state.front is None:
        return "selection", list(state.stages["selection"])
    return None


def finished(state: RunState, policy: Policy, now: float = 0.0) -> bool:
    """Return whether nothing is left to do; a completed run whose generations grew is not."""
    if policy.only is not None:
        return state.completed and _only_settled(state, policy.only)
    return state.completed and not _grows(state, policy, now) and not _lacks_twins(state, policy)


def begin(state: RunState, policy: Policy, now: float) -> Action:
    """Return what comes next, between two evaluations of a run that is not finished."""
    if _grows(state, policy, now):
        return Ask(len(state.generations))
    if state.front is None:
        return Stage("selection")
    return Stage("noise" if _lacks_twins(state, policy) else "report")


def conclude(state: RunState, evaluation: str, policy: Policy) -> list[Action]:
    """Return what follows an evaluation all of whose candidates are settled."""
    if policy.only is None and evaluation == "search":
        return [Tell(len(state.generations) - 1)]
    if policy.only is None and evaluation == "selection":
        return [Fix()]
    # No job is left behind: what is under way still, is waited for, and ended if it lingers.
    waiting = [batch for batch in state.open_batches.values() if not batch.abandoned]
    return [] if waiting else [Complete()]


def twins(state: RunState, policy: Policy) -> list[str]:
    """Return the candidates whose noise is measured, once the final front is fixed.

    The slow parent, then the picks and the others of the front; of these only who has a table on
    the selection items, with which the second one is compared.
    """
    order = [*list(policy.parents.values())[:1], *state.picks.values(), *(state.front or ())]
    known = [c for c in dict.fromkeys(order) if ("selection", c) in state.accepted]
    return known[: policy.twins]


def _lacks_twins(state: RunState, policy: Policy) -> bool:
    """Whether noise is to be measured, and was not: the number of twins of a run may grow."""
    begun = state.stages.get("noise", ())
    return state.front is not None and not set(twins(state, policy)) <= set(begun)


def _only_settled(state: RunState, only: tuple[str, tuple[str, ...]]) -> bool:
    """Whether they have their scores: a run that was complete may have got others since."""
    return all(state.settled(only[0], candidate) for candidate in only[1])


def _grows(state: RunState, policy: Policy, now: float) -> bool:
    """Whether there is another generation to come; after an empty one there is none."""
    exhausted = bool(state.generations) and not state.generations[-1].candidates
    more = len(state.generations) < policy.generations
    return (
        more
        and not exhausted
        and policy.only is None
        and (not state.generations or not spent(state, policy.budget, now))
    )
