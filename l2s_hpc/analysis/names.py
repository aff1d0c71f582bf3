"""How a person names a candidate and an item.

A candidate: by its id, a unique beginning of it, a pick or a reference. An item: by its id, a
unique beginning of it, or its place in the evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from l2s_hpc.errors import UserError, did_you_mean
from l2s_hpc.records import Item
from l2s_hpc.store.run import read_evaluation

if TYPE_CHECKING:
    from l2s_hpc.analysis.run import Run

LEGIBLE = 8
"""So many characters of an item's id at least stand in tables."""

SHORTEST = 4
"""So many characters of an id at least; shorter words are picks, references or mistakes."""


def resolve(run: Run, text: str) -> str:
    """Return the id of the candidate that a text names in a run.

    Args:
        run: the run.
        text: a pick (`knee`), a reference (`average`, `parent.slow` or `slow`), an id, or at least
            `SHORTEST` characters with which one id alone begins.

    Raises:
        UserError: it names none, or several.
    """
    info, state = run.info, run.state
    references = info.reference_ids()
    parents = info.parent_ids()
    named = parents | references | state.picks
    if text in named:
        return named[text]
    known = {*references.values(), *state.genomes, *(c for _, c in state.accepted)}
    if text in known:
        return text
    hits = sorted(c for c in known if c.startswith(text)) if len(text) >= SHORTEST else []
    if len(hits) == 1:
        return hits[0]
    problem = f"{len(hits)} candidates begin with" if hits else "no candidate, pick or reference"
    imported = known if info.purpose == "import" else ()
    hint = did_you_mean(text, hits or {*named, *imported})
    raise UserError(f"{problem} '{text}'", hint=hint, path=run.folder)


def usual_evaluation(run: Run, candidates: Sequence[str]) -> str:
    """Return the evaluation with the least optimistic figures in which all of them have a table."""
    from l2s_hpc.analysis.noise import AGAIN

    # The second answers of noise twins are no better figures, only other ones.
    later = sorted(reversed(run.evaluations), key=lambda name: name == AGAIN)
    for name in dict.fromkeys([run.best_evaluation(), *later]):
        if all((name, candidate) in run.state.accepted for candidate in candidates):
            return name
    raise UserError(
        f"no evaluation has an accepted table of {' and '.join(candidates)}", path=run.folder
    )


def check_table(run: Run, candidate: str, evaluation: str) -> None:
    """Raise `UserError` unless a candidate has an accepted table in an evaluation."""
    if evaluation not in run.evaluations:
        hint = did_you_mean(evaluation, run.evaluations)
        raise UserError(f"no evaluation '{evaluation}'", hint=hint, path=run.folder)
    if (evaluation, candidate) not in run.state.accepted:
        others = [e for e, c in run.state.accepted if c == candidate]
        hint = f"it has one in: {', '.join(others)}" if others else ""
        problem = f"candidate {candidate} has no table in evaluation '{evaluation}'"
        raise UserError(problem, hint=hint, path=run.folder)


def items_of(run: Run, evaluation: str) -> list[Item]:
    """Return the items of an evaluation, by benchmark and id."""
    items = read_evaluation(run.folder, evaluation).items
    return sorted(items, key=lambda i: (i.benchmark, i.item))


def beginnings(items: Sequence[Item]) -> dict[tuple[str, str], str]:
    """Return by (benchmark, id) how an id begins as no other of its benchmark does.

    Args:
        items: those of an evaluation, by benchmark and id.
    """
    found = {}
    for before, item, after in zip([None, *items], items, [*items[1:], None], strict=False):
        near = [one.item for one in (before, after) if one and one.benchmark == item.benchmark]
        length = LEGIBLE
        while length < len(item.item) and any(o.startswith(item.item[:length]) for o in near):
            length += 1
        found[item.benchmark, item.item] = item.item[:length]
    return found


def locate(run: Run, candidate: str, text: str, evaluation: str | None) -> tuple[str, int, Item]:
    """Return evaluation, number and item that a text names.

    Args:
        run: the run.
        candidate: its id.
        text: `benchmark/id`, a unique beginning of the id with or without its benchmark, or the
            item's number: its place in the evaluation by benchmark and id, from 1.
        evaluation: None means the first of the candidate's that knows the item, the one with the
            least optimistic figures first; a number belongs to that one.

    Raises:
        UserError: it names no item, or several, or the candidate has no table there.
        DamageError: the evaluation's description is missing or damaged.
    """
    if evaluation is not None:
        check_table(run, candidate, evaluation)
        return evaluation, *_find(run, evaluation, text)
    usual = usual_evaluation(run, [candidate])
    if _number(text, len(items_of(run, usual))) is not None:
        return usual, *_find(run, usual, text)
    others = [e for e, c in run.state.accepted if c == candidate and e != usual]
    for name in (usual, *others):
        if _hits(items_of(run, name), text):
            return name, *_find(run, name, text)
    return usual, *_find(run, usual, text)


def _find(run: Run, evaluation: str, text: str) -> tuple[int, Item]:
    """Return the one item that a text names in an evaluation, and its number."""
    items = items_of(run, evaluation)
    number = _number(text, len(items))
    hits = [number - 1] if number is not None else _hits(items, text)
    if len(hits) == 1:
        return hits[0] + 1, items[hits[0]]
    names = [f"{items[hit].benchmark}/{items[hit].item}" for hit in hits[:5]]
    if names:
        more = ", …" if len(hits) > len(names) else ""
        problem, hint = f"{len(hits)} items begin with", f"valid: {', '.join(names)}{more}"
    else:
        problem = "no item begins with"
        hint = f"BENCHMARK/ID, the beginning of an id, or a number from 1 to {len(items)}"
    raise UserError(f"{problem} '{text}' in evaluation '{evaluation}'", hint=hint, path=run.folder)


def _number(text: str, most: int) -> int | None:
    """Return the number that a text is; digits that are no item's number may begin an id."""
    digits = text.isascii() and text.isdigit() and len(text) <= len(str(most))
    return int(text) if digits and 1 <= int(text) <= most else None


def _hits(items: Sequence[Item], text: str) -> list[int]:
    """Return the places of the items that a text names: whole ids, else those that begin so."""
    benchmark, slash, name = text.rpartition("/")
    places = [n for n, item in enumerate(items) if not slash or item.benchmark == benchmark]
    exact = [n for n in places if items[n].item == name]
    return exact or [n for n in places if name and items[n].item.startswith(name)]
