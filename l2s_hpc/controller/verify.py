"""`l2s verify`: re-hash and re-check everything that a run's numbers rest on."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from l2s_hpc.controller.compact import claim, rejoin
from l2s_hpc.errors import DamageError
from l2s_hpc.records import GradeReceipt, Receipt
from l2s_hpc.store.files import link_durably, move_to_quarantine, quarantined
from l2s_hpc.store.journal import Journal
from l2s_hpc.store.layout import Group, RunPaths, Where
from l2s_hpc.store.run import read_evaluation, read_run
from l2s_hpc.store.scores import OUTPUTS, verify_outputs
from l2s_hpc.store.state import Accepted, RunState, read_state
from l2s_hpc.store.tables import Place, Tables


@dataclass(frozen=True)
class Damage:
    """One thing that is not what it should be.

    Attributes:
        path: the file.
        message: what is wrong.
        accepted: those whose tables or texts are lost.
        joined: the generation whose joined tables have to be written anew.
        spare: files on which no score rests.
    """

    path: Path
    message: str
    accepted: tuple[Accepted, ...] = ()
    joined: Group | None = None
    spare: tuple[Path, ...] = ()


def verify(folder: Path) -> tuple[int, list[Damage]]:
    """Check a run; return the number of accepted tables and all damage that was found.

    Checked: the journal has no gap and no torn entry; every accepted table, its receipt and its
    outputs agree by sha256 with each other and with the journal, in files of their own or joined;
    no table is there that was never accepted; every table has the rows of its evaluation; every
    table of a grader's verdicts agrees with its receipt, and tells of as many outputs.

    Raises:
        UserError: the folder is not a run directory.
    """
    info = read_run(folder)
    paths = RunPaths(folder)
    try:
        state, _ = read_state(paths)
    except DamageError as error:
        return 0, [Damage(Path(str(error.path)), error.message)]
    check = _Check(paths)
    # Joined tables are read file by file.
    for accepted in sorted(state.accepted.values(), key=lambda a: (a.evaluation, a.generation)):
        check.table(accepted, info.lacks.get(accepted.candidate, ()))
        check.grades(accepted)
    return len(state.accepted), [*check.found, *check.losses(), *_strangers(paths, state)]


def quarantine(folder: Path, damage: list[Damage]) -> int:
    """Move damaged tables out of the way, so that the next `l2s run` evaluates them again.

    What is sound in a damaged file of joined tables is written anew, and counts on. Damaged joined
    verdicts of a grader stay where they are: what `l2s grade` makes again is read instead.

    Args:
        folder: the run directory.
        damage: what `verify` has found; what is sound by now is left alone.

    Returns:
        The number of candidates that were reopened.

    Raises:
        UserError: another process compacts the run, or moves damage out of the way.
    """
    paths = RunPaths(folder)
    with claim(paths, "moving damaged tables of the run to quarantine"):
        return _quarantine(paths, damage)


def _quarantine(paths: RunPaths, damage: Sequence[Damage]) -> int:
    journal = Journal(paths.journal)
    reopened = _still_lost(paths, {accepted for d in damage for accepted in d.accepted})
    groups = [d.joined for d in damage if d.joined is not None]
    groups += [accepted.group for accepted in reopened]
    files = {d.path for d in damage}
    for group in dict.fromkeys(groups):
        _mend(paths, group, {a.candidate for a in reopened if a.group == group}, files)
    for path in dict.fromkeys(path for d in damage for path in d.spare):
        move_to_quarantine(path, paths.quarantine)
    events = []
    for accepted in sorted(reopened, key=lambda a: (a.evaluation, a.candidate)):
        where = accepted.where
        for path in (paths.scores(*where), paths.outputs(*where), paths.receipt(*where)):
            move_to_quarantine(path, paths.quarantine)
        move_to_quarantine(paths.attempt(*where, accepted.attempt).folder, paths.quarantine)
        events.append(
            {
                "event": "quarantined",
                "evaluation": accepted.evaluation,
                "candidate": accepted.candidate,
                "reason": reopened[accepted],
            }
        )
    while events:
        journal.refresh()
        if journal.append(events):
            break
    return len(events)


def _still_lost(paths: RunPaths, found: Collection[Accepted]) -> dict[Accepted, str]:
    """Return whose tables are damaged, and why; others had time to join or to mend them."""
    state, _ = read_state(paths)
    lacks = read_run(paths.folder).lacks
    check = _Check(paths)
    for accepted in found:
        if state.accepted.get((accepted.evaluation, accepted.candidate)) == accepted:
            check.table(accepted, lacks.get(accepted.candidate, ()))
    return {accepted: message for accepted, (_, message) in check.lost.items()}


def _mend(paths: RunPaths, group: Group, lost: Collection[str], damaged: Collection[Path]) -> None:
    """Write the joined tables of a generation, if there are any, anew without what is lost."""
    state, _ = read_state(paths)
    for kind in ("scores", "outputs"):
        parts, manifest = paths.joined_parts(kind, *group), paths.joined(kind, *group)
        for path in {*parts, manifest}.intersection(damaged):
            if path.exists():
                link_durably(path, quarantined(path, paths.quarantine))
        try:
            if parts or manifest.exists():
                rejoin(paths, state, group, kind, lost)
        except DamageError:
            # Without its manifest nobody knows whose rows lie where: all of them are lost.
            for path in (manifest, *parts):
                move_to_quarantine(path, paths.quarantine)


class _Check:
    """Checks the tables of a run one after another, a file of joined tables once.

    Attributes:
        found: damage that by itself costs no table.
        lost: whose tables or texts are lost, in which file and why.
    """

    def __init__(self, paths: RunPaths) -> None:
        self.found: list[Damage] = []
        self.lost: dict[Accepted, tuple[Path, str]] = {}
        self._paths = paths
        self._tables = Tables(paths)
        self._damaged: dict[Path, bool] = {}
        self._spoilt: set[Path] = set()
        self._items: dict[str, frozenset[tuple[str, str]] | None] = {}

    def table(self, accepted: Accepted, lacks: Collection[str]) -> None:
        """Check an accepted table, its receipt and its outputs."""
        where = accepted.where
        try:
            receipt = self._tables.receipt(where)
            place = self._tables.scores(where)
            if receipt.content_sha256 != accepted.content_sha256:
                raise DamageError("its receipt is not the accepted one", path=place.path)
            self._scores(where, place, receipt, lacks)
            self._outputs(where, receipt)
        except OSError as error:
            self.lost[accepted] = Path(str(error.filename)), "missing or unreadable"
        except DamageError as error:
            self.lost[accepted] = Path(str(error.path)), error.message

    def losses(self) -> Iterator[Damage]:
        """Yield what costs tables: once for each file and what is wrong with it."""
        together: dict[tuple[Path, str], list[Accepted]] = {}
        for accepted, said in self.lost.items():
            together.setdefault(said, []).append(accepted)
        for (path, message), lost in together.items():
            if self._paths.is_joined(path):
                names = ", ".join(accepted.candidate for accepted in lost)
                text = f"{message.rstrip('.')}: lost are the rows of {names}"
                yield Damage(path, text, tuple(lost), lost[0].group)
            else:
                yield Damage(path, message, tuple(lost))

    def grades(self, accepted: Accepted) -> None:
        """Check the verdicts of every grader on an accepted candidate's outputs.

        No score rests on them: they reopen nothing.
        """
        where = accepted.where
        for grader in self._paths.graders():
            own = self._paths.grades(grader, *where)
            files = (own, own.with_suffix(".json"))
            try:
                self._grades(grader, where, files)
            except OSError as error:
                self._note_grades(Path(str(error.filename)), "missing or unreadable", files)
            except DamageError as error:
                self._note_grades(Path(str(error.path)), error.message, files)

    def _grades(self, grader: str, where: Where, files: tuple[Path, ...]) -> None:
        place = self._tables.grades(grader, where)
        if place.path in self._spoilt:
            return
        if place.table is None and not any(path.exists() for path in files):
            return
        receipt = place.path if place.table else files[1]
        try:
            said = GradeReceipt.model_validate(self._tables.grade_receipt(grader, where))
        except ValidationError as error:
            text = f"not a receipt of grades: {error.errors()[0]['msg']}"
            raise DamageError(text, path=receipt) from None
        if (said.evaluation, said.generation, said.candidate) != where:
            raise DamageError("its receipt is another candidate's", path=receipt)
        rows = self._tables.verified_grades(grader, where, said.file_sha256).num_rows
        if rows != said.rows:
            raise DamageError(f"{rows} rows, the receipt says {said.rows}", path=place.path)

    def _note_grades(self, path: Path, message: str, files: tuple[Path, ...]) -> None:
        if path not in self._spoilt:
            self._spoilt.add(path)
            text = f"{message}; `l2s grade` makes verdicts of the present grader again"
            self.found.append(Damage(path, text, spare=files if path in files else ()))

    def _scores(self, where: Where, place: Place, receipt: Receipt, lacks: Collection[str]) -> None:
        if place.table is None:
            table = self._tables.verified_scores(where, receipt)
        else:
            self._file(place, where)
            table = self._tables.salvaged_scores(place, receipt)
        asked = self._expected(where[0])
        if asked is None:
            return
        found = set(zip(*(table.column(n).to_pylist() for n in ("benchmark", "item")), strict=True))
        expected = {item for item in asked if item[0] not in lacks}
        if found != expected:
            missing, foreign = len(expected - found), len(found - expected)
            text = f"{missing} items are missing, {foreign} are foreign"
            raise DamageError(text, path=place.path)

    def _outputs(self, where: Where, receipt: Receipt) -> None:
        """Check full texts; they may be dropped, but must not differ."""
        place = self._tables.outputs(where)
        if place.table is not None:
            self._tables.check_owner(place, receipt)
            if self._file(place, where):
                self._tables.rows(place, OUTPUTS)
        elif place.path.exists():
            verify_outputs(place.path, receipt)

    def _file(self, place: Place, where: Where) -> bool:
        """Hash a file of joined tables; return whether it is damaged, which is said once."""
        if place.path not in self._damaged:
            try:
                self._tables.check_file(place)
                self._damaged[place.path] = False
            except DamageError as error:
                self._damaged[place.path] = True
                self.found.append(Damage(place.path, error.message, joined=where[:2]))
        return self._damaged[place.path]

    def _expected(self, evaluation: str) -> frozenset[tuple[str, str]] | None:
        """Return the items of an evaluation, read once; None, which is said, if nobody can tell.

        That costs no table: those that would be made again could not be checked either.
        """
        if evaluation not in self._items:
            self._items[evaluation] = None
            try:
                items = read_evaluation(self._paths.folder, evaluation).items
                self._items[evaluation] = frozenset((item.benchmark, item.item) for item in items)
            except DamageError as error:
                self.found.append(Damage(Path(str(error.path)), f"{error.message}: {error.hint}"))
        return self._items[evaluation]


def _strangers(paths: RunPaths, state: RunState) -> Iterator[Damage]:
    tables = Tables(paths)
    known: set[Path] = set()
    for accepted in state.accepted.values():
        where = accepted.where
        known.add(paths.scores(*where))
        # A damaged manifest is said of its candidates.
        with contextlib.suppress(DamageError):
            known.add(tables.scores(where).path)
    for path in sorted(paths.all_scores()):
        if path not in known:
            joined = paths.is_joined(path)
            text = (
                "joined tables that no manifest names (`l2s compact` was ended before it was done?)"
                if joined
                else "a score table that was never accepted"
            )
            yield Damage(path, f"{text}; it is not read")
