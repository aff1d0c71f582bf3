"""Foreign results: what a folder of Qwen2.5-Math outputs and of `*_scores.pt` files says.

    found = gather(folder)              # every file, read and checked
    sheets = align(found, benchmarks)   # those that can be compared, item by item

A file that is torn, doubled or out of step with the others is no reason to lose the rest: it
becomes a `Fault` that names it, and the candidate lacks that benchmark.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from l2s_hpc.errors import DamageError, UserError
from l2s_hpc.evaluation import qwen
from l2s_hpc.evaluation.benchmarks import load, read
from l2s_hpc.evaluation.manifests import Source, source, sources
from l2s_hpc.evaluation.qwen import Asked, Judged
from l2s_hpc.evaluation.torch_file import read_bytes_tensor
from l2s_hpc.records import Item

SCORES = "_scores.pt"
"""How the name of a file of bare verdicts ends; it begins with the benchmark's."""


@dataclass(frozen=True)
class Fault:
    """A file that was not imported, by its path below the folder, and why."""

    file: str
    candidate: str
    benchmark: str
    message: str


@dataclass(frozen=True)
class Sheet:
    """What one file says of one model on one benchmark, in the order of the benchmark.

    Attributes:
        candidate: the model's path below the imported folder (see `_name`).
        file: the file's path there. sha256: of the file.
        asked: the questions; None in a file of bare verdicts.
        judged: upstream's verdicts, `[item][sample]`.
        settings: the file's name without ending, which tells prompt, seed and temperature.
    """

    candidate: str
    benchmark: str
    file: str
    sha256: str
    asked: tuple[Asked, ...] | None
    judged: tuple[tuple[Judged, ...], ...]
    settings: str = ""


@dataclass(frozen=True)
class Found:
    """All files of a folder: those that are sound by themselves, and those that are not."""

    folder: Path
    sheets: tuple[Sheet, ...]
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Aligned:
    """What can be compared: one list of items for each benchmark, the same for all candidates."""

    items: dict[str, tuple[Item, ...]]
    sheets: dict[tuple[str, str], Sheet]
    faults: tuple[Fault, ...]

    @property
    def candidates(self) -> list[str]:
        """The models that have at least one benchmark."""
        return sorted({candidate for candidate, _ in self.sheets})

    @property
    def texts(self) -> bool:
        """Whether there are texts, whose answers can be graded and whose tokens counted."""
        return any(sheet.asked is not None for sheet in self.sheets.values())

    def lacks(self) -> dict[str, tuple[str, ...]]:
        """Return the benchmarks that each incomplete candidate has no sound file of."""
        missing = {
            candidate: tuple(b for b in self.items if (candidate, b) not in self.sheets)
            for candidate in self.candidates
        }
        return {candidate: lacking for candidate, lacking in missing.items() if lacking}


def gather(folder: Path) -> Found:
    """Read every output file and every file of scores below a folder.

    Raises:
        UserError: there is no such folder, or none of these files is in it.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise UserError("there is no such folder to import", path=folder)
    files = sorted(
        path
        for path in (*folder.rglob("*.jsonl"), *folder.rglob(f"*{SCORES}"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise UserError(
            f"nothing to import: neither *.jsonl nor *{SCORES} is below it",
            hint="name the folder that holds the models' folders",
            path=folder,
        )
    sheets: list[Sheet] = []
    faults: list[Fault] = []
    for (candidate, benchmark), paths in _by_place(folder, files).items():
        names = [str(path.relative_to(folder)) for path in paths]
        if len(paths) > 1:
            text = f"several files for one model and benchmark: {', '.join(names)}"
            faults += [Fault(name, candidate, benchmark, text) for name in names]
            continue
        try:
            sheets.append(_read(paths[0], candidate, benchmark, names[0]))
        except (DamageError, OSError) as error:
            text = error.message if isinstance(error, DamageError) else str(error)
            faults.append(Fault(names[0], candidate, benchmark, text))
    return Found(folder, tuple(sheets), tuple(faults))


def align(found: Found, benchmarks: Mapping[str, tuple[Item, ...]]) -> Aligned:
    """Give all candidates of a benchmark the same items; who does not fit becomes a fault.

    Args:
        found: what `gather` returned.
        benchmarks: the items of benchmarks that the user named, in the order of their files;
            of others the items are those that most candidates have (of equally many, the longest).
    """
    items: dict[str, tuple[Item, ...]] = {}
    sheets: dict[tuple[str, str], Sheet] = {}
    faults = list(found.faults)
    for benchmark in sorted({sheet.benchmark for sheet in found.sheets}):
        mine = [sheet for sheet in found.sheets if sheet.benchmark == benchmark]
        mine = [sheet for sheet in mine if _is_sound(sheet, faults)]
        if not mine:
            continue
        known = _known(benchmark, mine, benchmarks) or _usual(mine)
        items[benchmark] = known
        for sheet in mine:
            message = _misaligned(sheet, known)
            if message:
                faults.append(Fault(sheet.file, sheet.candidate, benchmark, message))
            else:
                sheets[sheet.candidate, benchmark] = sheet
    return Aligned(items, sheets, tuple(sorted(faults, key=lambda fault: fault.file)))


def _by_place(folder: Path, files: Iterable[Path]) -> dict[tuple[str, str], list[Path]]:
    """Return the files of each candidate on each benchmark, told by where they stand."""
    places = {path: _place(path) for path in files}
    below: dict[Path, set[str]] = {}
    for model, benchmark in places.values():
        for above in model.parents:
            below.setdefault(above, set()).add(benchmark)
    found: dict[tuple[str, str], list[Path]] = {}
    for path, (model, benchmark) in places.items():
        found.setdefault((_name(folder, model, below), benchmark), []).append(path)
    return found


def _place(path: Path) -> tuple[Path, str]:
    """Return a file's model, which is a folder, and its benchmark.

    `MODEL/scores/BENCHMARK_scores.pt` and `MODEL/BENCHMARK/test_….jsonl`.
    """
    if path.name.endswith(SCORES):
        model = path.parent.parent if path.parent.name == "scores" else path.parent
        return model, path.name.removesuffix(SCORES)
    return path.parent.parent, path.parent.name


def _name(folder: Path, model: Path, below: Mapping[Path, set[str]]) -> str:
    """Return the name of a model: its path below the folder, or its own if it is no part of it.

    A folder above the model's that is called like the one benchmark below it sorts files and names
    nobody: `aime24/0.5/aime24/…` and `math500/0.5/math500/…` are the same model, `0.5`.
    """
    above = [p for p in reversed(model.parents) if p != folder and p.is_relative_to(folder)]
    parts = [path.name for path in above if below[path] != {path.name}]
    return os.fsencode("/".join([*parts, model.name])).decode("utf-8", "replace")


def _read(path: Path, candidate: str, benchmark: str, file: str) -> Sheet:
    if path.name.endswith(SCORES):
        values = read_bytes_tensor(path)
        if set(values) - {0, 1}:
            raise DamageError("it holds other values than 0 and 1", path=path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        judged = tuple((Judged(value == 1, None),) for value in values)
        return Sheet(candidate, benchmark, file, sha256, None, judged)
    outputs = qwen.read_outputs(path)
    settings = sys.intern(path.stem)
    return Sheet(
        candidate, benchmark, file, outputs.sha256, outputs.asked, outputs.judged, settings
    )


def _is_sound(sheet: Sheet, faults: list[Fault]) -> bool:
    """Whether a sheet's questions can be items; else a fault says why not."""
    try:
        _items(sheet)
    except UserError as error:
        faults.append(Fault(sheet.file, sheet.candidate, sheet.benchmark, error.message))
        return False
    return True


def _known(
    benchmark: str, sheets: Iterable[Sheet], benchmarks: Mapping[str, tuple[Item, ...]]
) -> tuple[Item, ...]:
    """Return the items that the user named for a benchmark, under the benchmark's own name.

    Where the file of that name has another length than what most candidates have, another one
    whose name begins so and that has this length is meant: upstream calls MATH-500 `math`.
    """
    usual = Counter(len(sheet.judged) for sheet in sheets).most_common(1)[0][0]
    named = [benchmark, *sorted(name for name in benchmarks if name.startswith(benchmark))]
    there = [benchmarks[name] for name in named if name in benchmarks]
    fitting = [items for items in there if len(items) == usual] or there[:1]
    return tuple(i.model_copy(update={"benchmark": benchmark}) for i in next(iter(fitting), ()))


def _usual(sheets: Iterable[Sheet]) -> tuple[Item, ...]:
    """Return the items that most candidates have, and of those equally many the longest list.

    Questions come before bare positions: they say more.
    """
    lists = Counter(_items(sheet) for sheet in sheets)
    questions = {items: count for items, count in lists.items() if items[0].question}
    chosen = questions or lists
    return max(chosen, key=lambda items: (chosen[items], len(items)))


def _items(sheet: Sheet) -> tuple[Item, ...]:
    if sheet.asked is None:
        return _positions(sheet.benchmark, len(sheet.judged))
    return items_of(sheet.benchmark, sheet.asked)


@cache
def _positions(benchmark: str, count: int) -> tuple[Item, ...]:
    """Return items of which nothing but the place is known."""
    names = [f"{benchmark}-{position:05d}" for position in range(count)]
    return tuple(
        Item(benchmark=benchmark, item=name, question="", gold="", question_hash=name)
        for name in names
    )


@cache
def items_of(benchmark: str, asked: tuple[Asked, ...]) -> tuple[Item, ...]:
    """Return the items of questions, as if they were read from the benchmark's source.

    Raises:
        UserError: a question or a gold answer is empty.
    """
    entry = sources().get(benchmark) or Source(benchmark, level="level")
    rows = [{"question": one.question, "answer": one.gold, "level": one.level} for one in asked]
    return tuple(problem.item for problem in read(entry, rows, benchmark))


def items_of_files(folder: Path) -> dict[str, tuple[Item, ...]]:
    """Return the items of each `NAME.jsonl` of a folder of benchmarks, in the order of its rows.

    Raises:
        UserError: there is none, or one is no benchmark.
    """
    files = {path.stem: str(path) for path in sorted(folder.glob("*.jsonl"))}
    if not files:
        raise UserError("no benchmark is there: no NAME.jsonl", path=folder)
    return {
        name: tuple(p.item for p in load(source(name, files), files, other_snapshot=True).problems)
        for name in files
    }


def _misaligned(sheet: Sheet, items: tuple[Item, ...]) -> str:
    """Return why a file does not fit a benchmark's items; nothing if it does."""
    if len(sheet.judged) != len(items):
        return f"{len(sheet.judged)} items, the benchmark has {len(items)}: misaligned"
    if sheet.asked is None or not items[0].question:
        return ""
    pairs = zip(items_of(sheet.benchmark, sheet.asked), items, strict=True)
    for position, (mine, theirs) in enumerate(pairs):
        if mine.question_hash != theirs.question_hash:
            return f"item {position} asks another question than the benchmark: misaligned"
    return ""
