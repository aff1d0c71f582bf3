"""A run, opened for reading: candidates, scores, front, transfer rates, hypervolume, cost.

    from l2s_hpc import open_run
    run = open_run("results/toy")
    run.front()

Everything is computed from the files of the run directory, which may be a copy on another machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from l2s_hpc.analysis.bounded import most_accurate, shortest
from l2s_hpc.analysis.candidates import candidate_frame
from l2s_hpc.analysis.compared import comparable
from l2s_hpc.analysis.comparison import comparison_rows
from l2s_hpc.analysis.cost import Cost, cost
from l2s_hpc.analysis.fitness import Measures, measures
from l2s_hpc.analysis.frames import Frames, ScoreTensor, warn_of_quarantine
from l2s_hpc.analysis.front import front_rows
from l2s_hpc.analysis.items import ItemMatrix, matrix, transferred
from l2s_hpc.analysis.lengths import lengths
from l2s_hpc.analysis.names import resolve
from l2s_hpc.analysis.nodes import Node, nodes
from l2s_hpc.analysis.notebook import as_html
from l2s_hpc.analysis.outputs import Shown, differences, outputs, show
from l2s_hpc.analysis.samples import labelled_rows
from l2s_hpc.analysis.tradeoff import Hypervolume, attainment, hypervolume
from l2s_hpc.analysis.transfer import Row, ntr_rows, parents_among, table_rows
from l2s_hpc.errors import DamageError
from l2s_hpc.records import Receipt
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import RunInfo, read_run
from l2s_hpc.store.state import RunState, read_state

if TYPE_CHECKING:
    import polars as pl

    from l2s_hpc.analysis.forensics import Forensics
    from l2s_hpc.analysis.noise import Noise
    from l2s_hpc.records import Recipe


def open_run(path: str | Path, strict: bool = True, without: Iterable[str] = ()) -> Run:
    """Open a run directory for reading.

    Only score tables that the journal accepted count, and each is compared with its receipt before
    a number is computed from it.

    Args:
        path: the run directory, or a copy of it.
        strict: a damaged or missing table raises `DamageError`; else it is left out with a warning,
            and transfer rates are None where a parent's table is.
        without: benchmarks that no comparison of this run takes in.

    Raises:
        UserError: the folder is not a run directory.
        DamageError: `run.json` or the journal is damaged.
    """
    folder = Path(path)
    paths = RunPaths(folder)
    try:
        info = read_run(folder)
    except ValidationError as error:
        message = f"not this version's run.json: {error.errors()[0]['msg']}"
        raise DamageError(message, path=paths.run_json) from None
    state, _ = read_state(paths)
    warn_of_quarantine(state, info.purpose)
    return Run(paths, info, state, strict, without)


class Run:
    """One run as it was when it was opened.

    Attributes:
        folder: its directory.
        info: what `run.json` says.
        state: the journal, folded.
        parents: the parents' candidate ids by name, in the job's order: the slow one first.
        labels: the name of each reference's candidate: `parent.slow`, `average`, `sweep.0.25`, ….
        without: the benchmarks that are left out of every comparison.
    """

    def __init__(
        self,
        paths: RunPaths,
        info: RunInfo,
        state: RunState,
        strict: bool,
        without: Iterable[str] = (),
    ) -> None:
        self.folder = paths.folder
        self.info = info
        self.state = state
        self.parents = info.parent_ids()
        self.labels = info.labels()
        self.without = tuple(sorted(set(without)))
        self._frames = Frames(paths, state.accepted.values(), strict, info.purpose)
        self._measured: dict[tuple[str, ...], dict[str, Measures]] = {}
        self._fronts: dict[tuple[Any, ...], list[Row]] = {}
        self._tables: dict[tuple[str, ...], list[Row]] = {}

    @property
    def config(self) -> dict[str, Any]:
        """The resolved job."""
        return self.info.config

    @cached_property
    def genes(self) -> tuple[str, ...]:
        """The names of the genes, such as `weight.slow.top`, in the order of every genome."""
        from l2s_hpc.analysis.recipes import job_of
        from l2s_hpc.recipes.genes import space

        if self.info.purpose == "import":
            return ()
        return tuple(gene.name for gene in space(job_of(self)).genes)

    @property
    def evaluations(self) -> list[str]:
        """The evaluations that have score tables, in the order in which they began."""
        return list(dict.fromkeys(evaluation for evaluation, _ in self.state.accepted))

    def best_evaluation(self) -> str:
        """Return the evaluation whose figures are the least optimistic so far.

        `report` once everything there is settled, `selection` once the final front is fixed on it,
        else `search`.
        """
        if self.state.front is None:
            found = self.evaluations
            return "search" if self.info.purpose == "search" or not found else found[-1]
        reported = self.state.stages.get("report", ())
        settled = all(self.state.settled("report", candidate) for candidate in reported)
        return "report" if reported and settled else "selection"

    def candidates(self, evaluation: str | None = None) -> pl.DataFrame:
        """Return one row for each candidate, in the order in which they came up, references last.

        Columns: candidate; generation (the first that asked for it; null for a reference that was
        never asked for); label (of a reference); one column a gene, null where there is no genome;
        feasible (of the search's constraints; null until it is told); penalised (the reason, in
        this evaluation); n, n_gradable, the measures of `fitness.RATES` and the other objectives in
        this evaluation, null without a score table there.
        """
        return candidate_frame(self, evaluation or self._first())

    def recipe(self, candidate: str) -> Recipe:
        """Return a candidate's recipe, by id, pick or reference; `config` in it is mergekit's.

        It names models as the job does. For `UserError` and `DamageError` see `recipes.recipe_of`.
        """
        from l2s_hpc.analysis.recipes import recipe_of

        return recipe_of(self, resolve(self, candidate))

    def scores(self, evaluation: str | None = None) -> pl.LazyFrame:
        """Return the rows of the accepted score tables, of one evaluation or of all (None).

        Raises:
            DamageError: one of them is damaged or missing (unless not strict).
            UserError: nothing was accepted there.
        """
        return self._frames.scan(evaluation)

    def tensor(self, benchmark: str | None = None, evaluation: str | None = None) -> ScoreTensor:
        """Return the first sample's verdicts, uint8 `[candidate, item]`, with both index lists.

        Raises:
            DamageError: a table is damaged or missing (unless not strict), or lacks an item.
            UserError: nothing was accepted there, or the benchmark (all: None) has no items.
        """
        evaluation = evaluation or self._first()
        asked = {benchmark} if benchmark else set(self._frames.benchmarks(evaluation))
        lacks = {candidate: asked.intersection(b) for candidate, b in self.info.lacks.items()}
        frames, known = comparable(self._frames, evaluation, self.without, lacks)
        return frames.tensor(evaluation, known, benchmark)

    def comparable(self, evaluation: str, without: Iterable[str] = ()) -> tuple[Frames, list[str]]:
        """Return the tables without some benchmarks, and who has all the others there."""
        left = sorted({*self.without, *without})
        return comparable(self._frames, evaluation, left, self.info.lacks)

    def measures(self, evaluation: str, without: Iterable[str] = ()) -> dict[str, Measures]:
        """Return the measures of every candidate with a table in an evaluation; none: empty.

        Transfer rates are None as long as a parent has no table there. `without` leaves benchmarks
        out; an imported candidate that lacks another one is left out, with a warning, and where
        each lacks one that is a `UserError`, as in all comparisons.
        """
        key = (evaluation, *sorted(set(without)))
        if key not in self._measured:
            frames, known = self.comparable(evaluation, key[1:])
            parents = parents_among(self, known)
            self._measured[key] = measures(frames, evaluation, known, parents) if known else {}
        return self._measured[key]

    def front(
        self,
        split: str | None = None,
        on: Iterable[str] | None = None,
        without: Iterable[str] = (),
    ) -> list[Row]:
        """Return the front as rows, the shortest answers first; see `front.front_rows`.

        `on` names the measures by which it is taken, such as `("ntr", "tokens")`, among all
        feasible candidates with a table in the split; None means the search's own front.
        """
        key = (split, None if on is None else tuple(on), tuple(without))
        if key not in self._fronts:
            self._fronts[key] = front_rows(self, *key)
        return [dict(row) for row in self._fronts[key]]

    def attainment(self, evaluation: str | None = None) -> list[Row]:
        """Return what the front needs to reach each reference; see `tradeoff.attainment`."""
        return attainment(self, evaluation)

    def shortest(
        self, within: float = 0.01, of: str | None = None, evaluation: str | None = None
    ) -> Row:
        """Return the shortest candidate that loses at most `within` accuracy; see `bounded`."""
        return shortest(self, within, of, evaluation)

    def most_accurate(
        self, tokens: float, of: str | None = None, evaluation: str | None = None
    ) -> Row:
        """Return the most accurate candidate of at most so many mean tokens; see `bounded`."""
        return most_accurate(self, tokens, of, evaluation)

    def lengths(
        self, evaluation: str | None = None, candidates: Iterable[str] | None = None
    ) -> pl.DataFrame:
        """Return how long answers are, by candidate and benchmark; see `lengths.lengths`."""
        return lengths(self, evaluation, candidates)

    def table(
        self,
        evaluation: str | None = None,
        candidates: Iterable[str] | None = None,
        without: Iterable[str] = (),
    ) -> list[Row]:
        """Return accuracy, tokens and transfer by candidate and benchmark, with 95 % intervals.

        See `l2s_hpc.analysis.transfer.Row`; each row also has the candidate's label.

        Args:
            evaluation: None means `best_evaluation()`.
            candidates: None means all that have a table there; those without one are left out.
            without: benchmarks that are left out, as in `measures`.
        """
        evaluation = evaluation or self.best_evaluation()
        key = (evaluation, *sorted(set(without)))
        if key not in self._tables:
            self._tables[key] = table_rows(self, evaluation, key[1:])
        found = self._tables[key]
        if candidates is None:
            return list(found)
        return [row for c in dict.fromkeys(candidates) for row in found if row["candidate"] == c]

    def ntr(
        self,
        evaluation: str | None = None,
        parents: Iterable[str] | None = None,
        by: str | None = None,
        without: Iterable[str] = (),
    ) -> list[Row]:
        """Return the transfer rates by candidate and benchmark, parents included.

        Rows have the columns of `transfer.TRANSFER_KEYS`; the ends are those of a 95 % interval,
        and accuracy = u (1 - NTR) + (1 - u) PTR in all rows but `macro`.

        Args:
            evaluation: None means `best_evaluation()`.
            parents: what counts as solved, by name or candidate; None means the run's parents.
            by: `benchmark` (with `all` and `macro`), or `level` or `subject` of each benchmark.
            without: benchmarks that are left out, as in `measures`.
        """
        return ntr_rows(self, evaluation or self.best_evaluation(), parents, by, without)

    def compare(
        self,
        a: str,
        b: str | Iterable[str],
        evaluation: str | None = None,
        without: Iterable[str] = (),
    ) -> list[Row]:
        """Return how candidates b differ from candidate a, item by item; see `comparison.Row`."""
        others = [b] if isinstance(b, str) else [*b]
        return comparison_rows(self, a, others, evaluation, without)

    def transferred(self, candidate: str, evaluation: str | None = None) -> pl.DataFrame:
        """Return the items that a candidate lost or gained; see `items.transferred`."""
        return transferred(self, candidate, evaluation)

    def matrix(self, benchmark: str | None = None, evaluation: str | None = None) -> ItemMatrix:
        """Return who solves which item of a benchmark (None: of all); see `items.ItemMatrix`."""
        return matrix(self, benchmark, evaluation)

    def samples(
        self, evaluation: str | None = None, candidates: Iterable[str] | None = None
    ) -> list[Row]:
        """Return mean@n and pass@k by candidate and benchmark, with 95 % intervals.

        See `l2s_hpc.analysis.samples.Row`; arguments and labels are as in `table`.
        """
        return labelled_rows(self, self._frames, evaluation or self.best_evaluation(), candidates)

    def hypervolume(self, evaluation: str = "search") -> Hypervolume:
        """Return the trade-off that each generation and the references reach.

        See `hypervolume_of` for the unit: 1 is ideal. Of the search only candidates that the told
        generations found feasible count; of the references all do.

        Raises:
            UserError: the first parent has no table there yet, or none with tokens.
        """
        return hypervolume(self, evaluation)

    def outputs(self, candidate: str, evaluation: str | None = None) -> pl.LazyFrame:
        """Return a candidate's full texts (see docs/scores.md), compared with its receipt.

        Raises:
            UserError: no such candidate (see `names.resolve`), or its texts are not here.
            DamageError: the texts, or the receipt, are damaged.
        """
        return outputs(self, candidate, evaluation)

    def show(
        self, candidate: str, item: str, evaluation: str | None = None, sample: int = 0
    ) -> Shown:
        """Return what a candidate and the parents answered to an item; see `outputs.show`."""
        return show(self, self._frames, candidate, item, evaluation, sample)

    def diff(
        self, a: str, b: str, evaluation: str | None = None, benchmark: str | None = None
    ) -> pl.DataFrame:
        """Return the items of which one of two is right; see `outputs.differences`."""
        return differences(self, self._frames, a, b, evaluation, benchmark)

    def cost(self) -> Cost:
        """Return what the run has cost so far."""
        return cost(self.state, self.receipts(), self.labels)

    def forensics(self) -> Forensics:
        """Return how the search went: genomes, generations, waits, genes."""
        return self._course

    @cached_property
    def _course(self) -> Forensics:
        from l2s_hpc.analysis.forensics import forensics

        return forensics(self)

    def noise(self) -> Noise | None:
        """Return how far scores differ by noise alone (`noise.Noise`); None if not measured."""
        from l2s_hpc.analysis.noise import noise

        return noise(self, self._frames)

    def nodes(self) -> list[Node]:
        """Return the nodes that made the accepted tables, by device and host."""
        return nodes(self.receipts())

    def receipts(self) -> list[Receipt]:
        """Return the receipts of all accepted tables, by evaluation."""
        return [
            self._frames.receipt(evaluation, candidate)
            for evaluation in self.evaluations
            for candidate in self._frames.usable(evaluation)
        ]

    @property
    def stage(self) -> str:
        """What the run is at, in a few words."""
        if self.state.completed:
            return "complete"
        if self.state.stopped:
            return "stopped"
        if self.info.purpose == "evaluate":
            return "evaluating"
        if self.state.stages:
            return f"in the {list(self.state.stages)[-1]} evaluation"
        return f"searching, {self.state.told} generations told"

    def __repr__(self) -> str:
        known = len({*self.state.genomes, *self.labels, *(c for _, c in self.state.accepted)})
        return f"<Run {self.info.id}: {self.stage}, {known} candidates>"

    def _repr_html_(self) -> str:
        return as_html(self)

    def _first(self) -> str:
        """Return the evaluation in which candidates came up."""
        return "search" if self.info.purpose == "search" else self.best_evaluation()
