"""The shortest model within a bound of accuracy, and the most accurate one within a budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from l2s_hpc.analysis.candidates import picks_of
from l2s_hpc.analysis.compared import UNCOUNTED, not_comparable
from l2s_hpc.analysis.comparison import comparison_rows
from l2s_hpc.analysis.fitness import Measures
from l2s_hpc.analysis.front import chosen_on, eligible
from l2s_hpc.analysis.names import check_table, resolve
from l2s_hpc.analysis.verdicts import read_verdicts
from l2s_hpc.errors import UserError
from l2s_hpc.measures.intervals import mean_interval

if TYPE_CHECKING:
    from l2s_hpc.analysis.run import Run

Row = dict[str, Any]
"""A chosen candidate beside the one that it is compared with (`of`), on the items of `evaluation`.

- `candidate`, `label`, `picks`, `genome`; `of`, `of_label`; `bound`: what was asked, in words
- `chosen_on`: the evaluation that chose it; `optimistic`: whether its figures come from there
- `n`; `accuracy`, `tokens`, `of_accuracy`, `of_tokens`: means over items
- `difference`: accuracy less that of `of`; `tokens_saved`: mean tokens per problem that `of`
  spends more; `_low` and `_high` are the ends of paired 95 % intervals over items
- `tokens_low`, `tokens_high`: the interval of its own tokens (of a budget only)
- `holds`: whether the bound holds there: `interval` (also at the bad end of the 95 % interval),
  `estimate` (only the figure itself does) or `no`"""

_ROUNDING = 1e-9
"""Means of verdicts and bounds such as .02 are no exact binary numbers."""


@dataclass(frozen=True)
class _Choice:
    run: Run
    evaluation: str
    reference: str
    without: tuple[str, ...]

    @property
    def deciding(self) -> str:
        return chosen_on(self.run, self.evaluation)

    def able(self) -> dict[str, Measures]:
        """Return the measures that decide, of the candidates that may be chosen."""
        there = self.run.measures(self.evaluation, self.without)
        deciding = self.run.measures(self.deciding, self.without)
        if self.reference not in there.keys() & deciding.keys():
            raise not_comparable(self.reference, self.evaluation, self.run.folder)
        found = {
            candidate: deciding[candidate]
            for candidate in eligible(self.run, self.evaluation, there)
            if candidate in deciding and candidate != self.reference
        }
        if not found:
            message = f"no candidate of evaluation '{self.evaluation}' can be chosen"
            hint = "it needs a table there, and to meet the search's constraints"
            raise UserError(message, hint=hint, path=self.run.folder)
        if any(row["tokens"] is None for row in found.values()):
            message = f"not all answer lengths are known in evaluation '{self.deciding}'"
            hint = UNCOUNTED if self.run.info.imported else ""
            raise UserError(message, hint=hint, path=self.run.folder)
        return found

    def row(self, candidate: str, bound: str) -> Row:
        """Return the chosen candidate's figures, `holds` still missing."""
        run = self.run
        (found,) = (
            row
            for row in comparison_rows(
                run, self.reference, [candidate], self.evaluation, self.without
            )
            if row["benchmark"] == "all"
        )
        saved = {
            "tokens_saved": _negative(found["tokens_difference"]),
            "tokens_saved_low": _negative(found["tokens_difference_high"]),
            "tokens_saved_high": _negative(found["tokens_difference_low"]),
        }
        genome = run.state.genomes.get(candidate)
        return {
            "candidate": candidate,
            "label": run.labels.get(candidate),
            "picks": picks_of(run, candidate),
            "genome": None if genome is None else list(genome),
            "of": self.reference,
            "of_label": run.labels.get(self.reference),
            "bound": bound,
            "evaluation": self.evaluation,
            "chosen_on": self.deciding,
            "optimistic": self.deciding == self.evaluation,
            "n": found["n"],
            "accuracy": found["accuracy_b"],
            "tokens": found["tokens_b"],
            "of_accuracy": found["accuracy_a"],
            "of_tokens": found["tokens_a"],
            **{name: found[name] for name in ("difference", "difference_low", "difference_high")},
            **saved,
        }


def shortest(
    run: Run, within: float, of: str | None, evaluation: str | None, without: Iterable[str] = ()
) -> Row:
    """Return the candidate with the fewest tokens that loses at most `within` of accuracy.

    Chosen on the selection split where the figures come from the report split, else on the same
    items, which is marked as optimistic. A reference is chosen only if the search asked for it.

    Args:
        run: the run.
        within: the largest loss of accuracy, as a share: .01 is one point.
        of: what it is compared with, as `names.resolve` understands it; None: the first parent.
        evaluation: None means `Run.best_evaluation()`.
        without: benchmarks that are left out.

    Raises:
        UserError: nobody qualifies (the nearest is named), or a name is unknown.
        DamageError: a table is damaged or missing (unless not strict).
    """
    if not 0 <= within <= 1:
        raise UserError(f"within is a share from 0 to 1, not {within:g}", hint=".01 is one point")
    choice = _choice(run, of, evaluation, without)
    able = choice.able()
    floor = _known(run.measures(choice.deciding, choice.without)[choice.reference], "accuracy")
    name = run.labels.get(choice.reference) or choice.reference
    near = [c for c in able if _known(able[c], "accuracy") >= floor - within - _ROUNDING]
    if not near:
        best = max(able, key=lambda c: _known(able[c], "accuracy"))
        missed = floor - _known(able[best], "accuracy")
        raise UserError(
            f"no candidate is within {100 * within:g} points of {name} on '{choice.deciding}'",
            hint=f"the nearest, {best}, is {100 * missed:.1f} points below its {floor:.3f}",
            path=run.folder,
        )
    chosen = min(near, key=lambda c: (able[c]["tokens"], -_known(able[c], "accuracy"), c))
    row = choice.row(chosen, f"accuracy >= {name} - {within:g}")
    return row | {"holds": _holds(row["difference"] + within, row["difference_low"] + within)}


def most_accurate(
    run: Run, tokens: float, of: str | None, evaluation: str | None, without: Iterable[str] = ()
) -> Row:
    """Return the most accurate candidate that spends at most so many tokens on average.

    As `shortest`; with the same accuracy the shorter one is taken.

    Raises:
        UserError: nobody qualifies (the shortest is named), or a name is unknown.
        DamageError: a table is damaged or missing (unless not strict).
    """
    if not tokens >= 0:  # nor is NaN
        raise UserError(f"a budget is a number of tokens from 0, not {tokens:g}")
    choice = _choice(run, of, evaluation, without)
    able = choice.able()
    within = [c for c in able if _known(able[c], "tokens") <= tokens + _ROUNDING]
    if not within:
        least = min(able, key=lambda c: _known(able[c], "tokens"))
        spent = _known(able[least], "tokens")
        raise UserError(
            f"no candidate spends at most {tokens:g} tokens on '{choice.deciding}'",
            hint=f"the shortest, {least}, spends {spent:.1f}",
            path=run.folder,
        )
    chosen = min(within, key=lambda c: (-_known(able[c], "accuracy"), able[c]["tokens"], c))
    frames, _ = run.comparable(choice.evaluation, choice.without)
    verdicts = read_verdicts(frames, choice.evaluation, [chosen])
    ends = mean_interval(verdicts.tokens[0], verdicts.benchmarks)
    row = choice.row(chosen, f"tokens <= {tokens:g}")
    row |= {"tokens_low": float(ends.low), "tokens_high": float(ends.high)}
    return row | {"holds": _holds(tokens - row["tokens"], tokens - row["tokens_high"])}


def _choice(run: Run, of: str | None, evaluation: str | None, without: Iterable[str]) -> _Choice:
    if of is None and not run.parents:
        raise UserError("the run has no parents to compare with", hint="name a candidate with of=")
    reference = resolve(run, of) if of is not None else next(iter(run.parents.values()))
    evaluation = evaluation or run.best_evaluation()
    choice = _Choice(run, evaluation, reference, tuple(sorted(set(without))))
    for name in (evaluation, choice.deciding):
        check_table(run, reference, name)
    return choice


def _holds(margin: float, worst: float) -> str:
    """Say how far a bound holds; margins of the figure and of the interval's bad end, 0 is met."""
    if margin < -_ROUNDING:
        return "no"
    return "interval" if worst >= -_ROUNDING else "estimate"


def _known(found: Measures, name: str) -> float:
    value = found[name]
    return 0.0 if value is None else value


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
