"""`l2s import`: make a run of foreign results, that reads like any other.

The verdicts that came with the files fill the score tables; ours are grades beside them. What the
files do not tell (tokens, why an answer ended) is null; a tokenizer counts tokens from the texts.
"""

from __future__ import annotations

import re
import secrets
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from l2s_hpc.analysis.compared import COUNTED, by_lack, left_out
from l2s_hpc.errors import IncompleteError, UserError, did_you_mean
from l2s_hpc.evaluation import qwen
from l2s_hpc.evaluation.imports import Aligned, Sheet, align, gather, items_of_files
from l2s_hpc.evaluation.tokens import TokenCounter
from l2s_hpc.records import Evaluation, Item, Protocol, Receipt
from l2s_hpc.store.files import create_json, write_json
from l2s_hpc.store.journal import Event
from l2s_hpc.store.layout import RunPaths, safe_name, task_key
from l2s_hpc.store.run import Imported, RunInfo, check_free, read_run
from l2s_hpc.store.scores import OUTPUTS, SCORES, content_sha256, read_table, write_table
from l2s_hpc.store.state import read_state

GRADER = "qwen2.5-math"
"""The grader whose verdicts came with the files."""

Row = dict[str, Any]
"""A row of a score table or of a table of outputs."""

_COUNTED = ("n_output_tokens", "n_charged_tokens")
"""What a tokenizer tells of a text."""

_SHARED = ("candidate", "benchmark", "item", "sample", "seed", *_COUNTED)
"""What a row of outputs has from its row of scores."""

_SETTINGS = re.compile(
    r"[^_]+_(?P<prompt>.+)_-?\d+_seed(?P<seed>\d+)_t(?P<temperature>\d+(?:\.\d+)?)_s\d+_e-?\d+"
)
"""How the evaluation names its files."""


@dataclass(frozen=True)
class Import:
    """What was imported.

    Attributes:
        info: the run.
        aligned: the files that were imported, and those that were not.
        notes: what a reader of the figures has to know besides.
    """

    info: RunInfo
    aligned: Aligned
    notes: tuple[str, ...]


def import_run(
    source: Path,
    folder: Path,
    parents: Mapping[str, str] | None = None,
    benchmarks: Path | None = None,
    name: str = "imported",
    command: str = "",
    tokenizer: Path | None = None,
) -> Import:
    """Make a run of a folder of foreign results; the same again does nothing, or ends what began.

    Args:
        source: the folder; a model is named by its path below it.
        folder: the run directory to make.
        parents: which models are the parents, by name, the slow one first.
        benchmarks: a folder of `NAME.jsonl`, whose order that of the files is.
        name: how the run calls this evaluation.
        command: what the user typed, for the record.
        tokenizer: the folder of one, with which tokens are counted from the texts: approximately
            those that were generated (see `tokens.TokenCounter`).

    Raises:
        UserError: there is nothing to import or to count, a parent or the tokenizer is not there,
            or the folder holds something else; nothing is written.
        IncompleteError: no file at all is sound.
    """
    paths = RunPaths(folder)
    paths.evaluation(name)  # a name that cannot be one is said before anything is read
    counter = TokenCounter(tokenizer) if tokenizer else None
    aligned = align(gather(source), items_of_files(benchmarks) if benchmarks else {})
    if not aligned.sheets:
        first = aligned.faults[0]
        raise IncompleteError(
            f"none of the {len(aligned.faults)} files could be imported; the first: "
            f"{first.file}: {first.message}",
            path=source,
        )
    if counter and not aligned.texts:
        raise UserError("no tokens to count: no file holds texts", path=source)
    evaluation = _evaluation(name, aligned)
    wanted = _info(source, folder, aligned, parents or {}, command, counter)
    info = _begin(paths, wanted, evaluation)
    state, journal = read_state(paths, tables_first=True)
    # All, or those of a damaged table that `l2s verify --quarantine` has moved away.
    wanting = [c for c in aligned.candidates if (name, c) not in state.accepted]
    if wanting:
        attempts = {c: 1 + len(state.attempts.get((name, c), ())) for c in wanting}
        events = [
            _write(paths, info, evaluation, c, attempt, *_rows(aligned, c, source, counter))
            for c, attempt in attempts.items()
        ]
        journal.append(_entry(f"import-{len(state.batches) + 1}", events))
    return Import(info, aligned, _notes(aligned, counter))


def _info(
    source: Path,
    folder: Path,
    aligned: Aligned,
    parents: Mapping[str, str],
    command: str,
    counter: TokenCounter | None,
) -> RunInfo:
    for label, candidate in parents.items():
        safe_name(label)
        if candidate not in aligned.candidates:
            raise UserError(
                f"parent '{label}': no model '{candidate}' was imported",
                hint=did_you_mean(candidate, aligned.candidates),
                path=source,
            )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.absolute().name).strip("-._") or "imported"
    return RunInfo(
        purpose="import",
        id=f"{name}-{secrets.token_hex(4)}",
        name=name,
        created=_now(),
        command=command,
        versions={"l2s_hpc": version("l2s-hpc")},
        git=None,
        config={
            "name": name,
            "description": f"Imported from {source.absolute().name}",
            "objectives": ["accuracy"],
            "constraints": [],
            "benchmarks": list(aligned.items),
        },
        site={},
        models={},
        identities={},
        frozen={},
        liveness="",
        references={},
        science={},
        imported=Imported(
            parents=dict(parents),
            files={sheet.file: sheet.sha256 for sheet in aligned.sheets.values()},
            lacks=aligned.lacks(),
            faults={fault.file: fault.message for fault in aligned.faults},
            tokenizer=counter.sha256 if counter else "",
        ),
    )


def _begin(paths: RunPaths, wanted: RunInfo, evaluation: Evaluation) -> RunInfo:
    """Write evaluation and run.json, or find that this very import has begun before."""
    if not paths.run_json.exists():
        check_free(paths.folder)
        write_json(paths.evaluation(evaluation.name), evaluation.model_dump(mode="json"))
        create_json(paths.run_json, wanted.model_dump(mode="json"))
    there = read_run(paths.folder)
    same = there.imported == wanted.imported and paths.evaluation(evaluation.name).exists()
    if not same:
        raise UserError(
            "the run directory holds another run, or an import of other files, with other parents "
            "or another tokenizer",
            hint="name another directory with --run",
            path=paths.folder,
        )
    return there


def _evaluation(name: str, aligned: Aligned) -> Evaluation:
    """Return the evaluation, as far as the names of the files tell its protocol."""
    files = Counter(sheet.settings for sheet in aligned.sheets.values() if sheet.settings)
    usual = _SETTINGS.fullmatch(files.most_common(1)[0][0]) if files else None
    protocol = Protocol(
        prompt=usual["prompt"] if usual else "unknown",
        max_tokens=0,
        temperature=float(usual["temperature"]) if usual else 0.0,
        top_p=1.0,
        samples=max(len(sheet.judged[0]) for sheet in aligned.sheets.values()),
        seed=int(usual["seed"]) if usual else 0,
        stop_ids=(),
        tokenizer="",
        chunk_items=len(next(iter(aligned.items.values()))),
        engine="imported",
        engine_settings={"files": sorted(files)},
        merge_device="",
    )
    items = tuple(item for found in aligned.items.values() for item in found)
    return Evaluation(name=name, protocol=protocol, items=items)


def _write(
    paths: RunPaths,
    info: RunInfo,
    evaluation: Evaluation,
    candidate: str,
    attempt: int,
    scored: Sequence[Row],
    outputs: Sequence[Row],
) -> Event:
    """Write a candidate's tables and receipt, and return the event that accepts them."""
    started, where = _now(), (evaluation.name, 0, candidate)
    own = {
        "run": info.id,
        "evaluation": evaluation.name,
        "protocol": evaluation.protocol.hash,
        "generation": 0,
    }
    scores = [own | row for row in scored]
    found = {
        "rows": len(scores),
        "file_sha256": write_table(paths.scores(*where), scores, SCORES),
        "content_sha256": content_sha256(read_table(paths.scores(*where))),
        "outputs_sha256": write_table(paths.outputs(*where), [*outputs], OUTPUTS)
        if outputs
        else "",
    }
    receipt = Receipt(
        **own,
        **found,
        candidate=candidate,
        attempt=attempt,
        grader=GRADER,
        host=socket.gethostname(),
        device="imported",
        versions=info.versions,
        seconds={},
        started=started,
        ended=_now(),
    )
    write_json(paths.receipt(*where), receipt.model_dump(mode="json"))
    return {
        "event": "accepted",
        "evaluation": evaluation.name,
        "generation": 0,
        "candidate": candidate,
        "attempt": attempt,
        "content_sha256": receipt.content_sha256,
        "rows": receipt.rows,
        "node": "",
        "seconds": 0.0,
    }


def _rows(
    aligned: Aligned, candidate: str, source: Path, counter: TokenCounter | None
) -> tuple[list[Row], list[Row]]:
    """Return a candidate's rows of scores and of outputs; none of these where there is no text."""
    scores: list[Row] = []
    outputs: list[Row] = []
    for benchmark, items in aligned.items.items():
        sheet = aligned.sheets.get((candidate, benchmark))
        if sheet is None:
            continue
        rows, texts = _score_rows(sheet, items), _texts(sheet, source)
        if counter and texts:
            counts = zip(rows, counter.count(texts), strict=True)
            rows = [row | dict.fromkeys(_COUNTED, count) for row, count in counts]
        scores += rows
        pairs = zip(rows, texts, strict=True) if texts else ()
        outputs += [{key: row.get(key) for key in _SHARED} | {"text": text} for row, text in pairs]
    return scores, outputs


def _score_rows(sheet: Sheet, items: tuple[Item, ...]) -> list[Row]:
    told = _SETTINGS.fullmatch(sheet.settings)
    silent = sheet.asked is None
    return [
        {
            "candidate": sheet.candidate,
            "benchmark": sheet.benchmark,
            "item": item.item,
            "sample": sample,
            "seed": int(told["seed"]) if told else 0,
            "correct": one.correct,
            "gradable": item.gradable,
            "extracted": one.extracted,
            "gold": item.gold or None,
            "grader": GRADER,
            "grade_status": "ok" if one.correct or one.extracted or silent else "no_answer",
        }
        for item, samples in zip(items, sheet.judged, strict=True)
        for sample, one in enumerate(samples)
    ]


def _texts(sheet: Sheet, source: Path) -> list[str]:
    """Return the texts in the order of the rows; none where the file holds verdicts alone."""
    if sheet.asked is None:
        return []
    return [text for texts in qwen.texts(source / sheet.file, sheet.sha256) for text in texts]


def _entry(batch: str, accepted: list[Event]) -> list[Event]:
    """Return the events of an import: a batch of one task, whose attempts are all accepted."""
    keys = ("evaluation", "generation", "candidate", "attempt")
    task = {"key": task_key(batch, 0), "candidates": [[e[k] for k in keys] for e in accepted]}
    return [
        {"event": "intent", "batch": batch, "tasks": [task]},
        *accepted,
        {"event": "closed", "batch": batch},
        {"event": "completed"},
    ]


def _notes(aligned: Aligned, counter: TokenCounter | None) -> tuple[str, ...]:
    notes = [left_out(*group) for group in by_lack(aligned.lacks()).items()]
    settings = sorted({sheet.settings for sheet in aligned.sheets.values() if sheet.settings})
    if len(settings) > 1:
        notes.append(f"the files were not made alike: {', '.join(settings)}")
    if counter:
        notes.append(COUNTED)
    return tuple(notes)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
