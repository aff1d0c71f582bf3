"""`l2s verify`: re-hash and re-check everything that a run's numbers rest on."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from l2s_hpc.errors import DamageError
from l2s_hpc.records import Evaluation, Receipt
from l2s_hpc.store.files import move_to_quarantine, read_json, sha256_file
from l2s_hpc.store.journal import Journal
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import read_run
from l2s_hpc.store.scores import verify_table
from l2s_hpc.store.state import Accepted, RunState, read_state


@dataclass(frozen=True)
class Damage:
    """One thing that is not what it should be."""

    path: Path
    message: str
    accepted: Accepted | None = None


def verify(folder: Path) -> tuple[int, list[Damage]]:
    """Check a run; return the number of accepted tables and all damage that was found.

    Checked: the journal has no gap and no torn entry; every accepted table, its receipt and its
    outputs agree by sha256 with each other and with the journal; no table is there that was never
    accepted; every table has the rows of its evaluation.

    Raises:
        UserError: the folder is not a run directory.
    """
    info = read_run(folder)
    paths = RunPaths(folder)
    try:
        state, _ = read_state(paths)
    except DamageError as error:
        return 0, [Damage(Path(str(error.path)), error.message)]
    found: list[Damage] = []
    for accepted in state.accepted.values():
        found += _table_damage(paths, accepted, info.lacks.get(accepted.candidate, ()))
    found += _strangers(paths, state)
    return len(state.accepted), found


def quarantine(folder: Path, damage: list[Damage]) -> int:
    """Move damaged tables out of the way, so that the next `l2s run` evaluates them again.

    Returns:
        The number of candidates that were reopened.
    """
    paths = RunPaths(folder)
    journal = Journal(paths.journal)
    reopened = {d.accepted for d in damage if d.accepted is not None}
    events = []
    for accepted in sorted(reopened, key=lambda a: (a.evaluation, a.candidate)):
        where = (accepted.evaluation, accepted.generation, accepted.candidate)
        for path in (paths.scores(*where), paths.outputs(*where), paths.receipt(*where)):
            move_to_quarantine(path, paths.quarantine)
        move_to_quarantine(paths.attempt(*where, accepted.attempt).folder, paths.quarantine)
        reason = next(d.message for d in damage if d.accepted == accepted)
        events.append(
            {
                "event": "quarantined",
                "evaluation": accepted.evaluation,
                "candidate": accepted.candidate,
                "reason": reason,
            }
        )
    while events:
        journal.refresh()
        if journal.append(events):
            break
    return len(events)


def _table_damage(paths: RunPaths, accepted: Accepted, lacks: Collection[str]) -> list[Damage]:
    where = (accepted.evaluation, accepted.generation, accepted.candidate)
    try:
        receipt = Receipt.model_validate(read_json(paths.receipt(*where)))
        if receipt.content_sha256 != accepted.content_sha256:
            raise DamageError("its receipt is not the accepted one", path=paths.receipt(*where))
        table = verify_table(paths.scores(*where), receipt)
        _check_items(
            paths,
            accepted,
            set(zip(*(table.column(n).to_pylist() for n in ("benchmark", "item")), strict=True)),
            lacks,
        )
        outputs = paths.outputs(*where)
        if outputs.exists() and sha256_file(outputs) != receipt.outputs_sha256:
            raise DamageError("the sha256 differs from the receipt's", path=outputs)
    except OSError as error:
        return [Damage(Path(str(error.filename)), "missing or unreadable", accepted)]
    except ValidationError:
        return [Damage(paths.receipt(*where), "not a receipt", accepted)]
    except DamageError as error:
        return [Damage(Path(str(error.path)), error.message, accepted)]
    return []


def _check_items(
    paths: RunPaths, accepted: Accepted, found: set[tuple[str, str]], lacks: Collection[str]
) -> None:
    """Compare items with the evaluation's, but for benchmarks that an import found no file of."""
    evaluation = Evaluation.model_validate(read_json(paths.evaluation(accepted.evaluation)))
    items = [item for item in evaluation.items if item.benchmark not in lacks]
    expected = {(item.benchmark, item.item) for item in items}
    if found != expected:
        path = paths.scores(accepted.evaluation, accepted.generation, accepted.candidate)
        raise DamageError(
            f"{len(expected - found)} items are missing, {len(found - expected)} are foreign",
            path=path,
        )


def _strangers(paths: RunPaths, state: RunState) -> Iterator[Damage]:
    known = {paths.scores(a.evaluation, a.generation, a.candidate) for a in state.accepted.values()}
    for path in sorted((paths.folder / "scores").rglob("*.parquet")):
        if path not in known:
            yield Damage(path, "a score table that was never accepted; it is not read")
