"""The one module that knows the path names of a run directory and of what the package ships."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from l2s_hpc.errors import UserError

Group = tuple[str, int]
"""(evaluation, generation): whose tables lie together."""

Where = tuple[str, int, str]
"""(evaluation, generation, candidate): whose table it is."""

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name: str) -> Path:
    """Return a shipped folder (`jobs`, `hpc/sites` or `data`), in a wheel or in a checkout."""
    in_wheel = _PACKAGE / name
    return in_wheel if in_wheel.exists() else _PACKAGE.parent / name


def safe_name(word: str) -> str:
    """Return a word that is safe as a file name and in a shell, or raise `UserError`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", word):
        raise UserError(
            f"'{word}' cannot be a name here",
            hint="use letters, digits, '.', '_' and '-', and begin with a letter or digit",
        )
    return word


def file_name(word: str) -> str:
    """Return a file name for any id: itself if it is safe as one, else escaped as in a URL.

    A name that is too long for a file ends in a hash of the whole.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", word):
        return word
    escaped = quote(word, safe="").replace(".", "%2E", word.startswith("."))
    if len(escaped) <= 160:
        return escaped
    return f"{escaped[:120]}.{hashlib.sha256(word.encode()).hexdigest()[:16]}"


def task_key(tasks: str, index: int) -> str:
    """Return the key of one task of a batch: what all its keys begin with, and the index."""
    return f"{tasks}-{index:04d}"


@dataclass(frozen=True)
class AttemptPaths:
    """What a node writes for one attempt; analysis never reads it."""

    folder: Path

    @property
    def scores(self) -> Path:
        return self.folder / "scores.parquet"

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs.parquet"

    @property
    def receipt(self) -> Path:
        return self.folder / "receipt.json"

    @property
    def engine_log(self) -> Path:
        """What the engine said while the attempt ran."""
        return self.folder / "engine.log"

    def chunk(self, number: int) -> Path:
        return self.folder / f"chunk-{number:04d}.parquet"

    def chunk_tables(self) -> list[Path]:
        """Return the answers of each chunk that are there; the whole table repeats them."""
        return sorted(self.folder.glob("chunk-*.parquet"))

    def chunks(self) -> int:
        """Return how many chunks this attempt has made durable itself."""
        return len(list(self.folder.glob("chunk-*.json")))

    def owner(self, number: int) -> Path:
        """The claim of the process that was the n-th to begin the attempt, from 0."""
        return self.folder / f"owner-{number:04d}.json"

    def owners(self) -> list[Path]:
        """Return the claims in order; none: nobody began it."""
        return sorted(self.folder.glob("owner-*.json"))


@dataclass(frozen=True)
class RunPaths:
    """The names inside `results/<run>/`."""

    folder: Path

    @property
    def run_json(self) -> Path:
        return self.folder / "run.json"

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def quarantine(self) -> Path:
        return self.folder / "quarantine"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def evaluation(self, name: str) -> Path:
        return self.folder / "evaluations" / f"{safe_name(name)}.json"

    @property
    def models(self) -> Path:
        """The checkpoints that a run of `l2s evaluate` has got, a file each."""
        return self.folder / "models"

    @property
    def heartbeat(self) -> Path:
        """What the controller says of itself, for people; no decision but waiting rests on it."""
        return self.folder / "controller.json"

    @property
    def controller_script(self) -> Path:
        """What a detached controller is submitted with, again and again."""
        return self.folder / "controller.sbatch"

    @property
    def controller_log(self) -> Path:
        return self.logs / "controller.log"

    @property
    def news(self) -> Path:
        """What the user was told last through `site.controller.notify`."""
        return self.folder / "notified.json"

    def task(self, key: str) -> Path:
        """A task's file; a key ends in its batch's number and its index in the batch."""
        batch = safe_name(key).rpartition("-")[0]
        return self.folder / "tasks" / batch / f"{key}.json"

    def progress(self, key: str, worker: str = "") -> Path:
        """How far a task is while it runs; the workers of a team have one each."""
        name = f"{key}.{worker}" if worker else key
        return self.task(key).with_name(f"{name}.progress.json")

    def all_progress(self, key: str) -> list[Path]:
        """Return what the running tasks of one submission, that of `key`, say of themselves."""
        return sorted(self.task(key).parent.glob("*.progress.json"))

    def attempt(
        self, evaluation: str, generation: int, candidate: str, attempt: int
    ) -> AttemptPaths:
        parent = self.attempts(evaluation, generation) / file_name(candidate)
        return AttemptPaths(parent / str(attempt))

    def scores(self, evaluation: str, generation: int, candidate: str) -> Path:
        return self._accepted("scores", evaluation, generation, candidate, "parquet")

    def all_scores(self) -> Iterator[Path]:
        """Yield the score tables that are there, joined or not, accepted or not."""
        return (self.folder / "scores").rglob("*.parquet")

    def outputs(self, evaluation: str, generation: int, candidate: str) -> Path:
        return self._accepted("outputs", evaluation, generation, candidate, "parquet")

    def receipt(self, evaluation: str, generation: int, candidate: str) -> Path:
        return self._accepted("receipts", evaluation, generation, candidate, "json")

    def grades(self, grader: str, evaluation: str, generation: int, candidate: str) -> Path:
        """The verdicts of a grader on stored outputs; its receipt ends in `.json`."""
        kind = self.grades_kind(grader)
        return self._accepted(kind, evaluation, generation, candidate, "parquet")

    def joined(self, kind: str, evaluation: str, generation: int) -> Path:
        """The manifest of the joined tables of a kind: `scores`, `outputs` or `grades/<grader>`."""
        return Path(f"{self.folder}/{kind}/{evaluation}/{generation:04d}.json")

    def joined_part(self, kind: str, evaluation: str, generation: int, part: int) -> Path:
        """The tables that a manifest maps; each joining of a generation makes the next part."""
        return self.folder / kind / evaluation / f"{generation:04d}-{part}.parquet"

    def joined_parts(self, kind: str, evaluation: str, generation: int) -> list[Path]:
        """Return the parts that are there, those included that no manifest names."""
        return sorted((self.folder / kind / evaluation).glob(f"{generation:04d}-*.parquet"))

    def is_joined(self, path: Path) -> bool:
        """Whether a path is a manifest or a part; files of their own lie one folder deeper."""
        return path.parent.parent.parent == self.folder

    def attempts(self, evaluation: str, generation: int) -> Path:
        """All attempts of a generation in an evaluation."""
        return self.folder / "attempts" / evaluation / f"{generation:04d}"

    def batch_logs(self, batch: str) -> list[Path]:
        """Return the files and folders of what was logged by the workers of a submission."""
        return sorted(self.logs.glob(f"{batch}*"))

    def archive(self, evaluation: str, generation: int, part: int) -> Path:
        """What nodes wrote for a closed generation, but for what the joined tables hold."""
        return self.folder / "attempts" / evaluation / f"{generation:04d}-{part}.tar.gz"

    @property
    def compacting(self) -> Path:
        """The claim of the process that joins tables."""
        return self.folder / "compacting.json"

    def grades_kind(self, grader: str) -> str:
        """The kind of the tables of a grader's verdicts, as `joined` takes it."""
        return f"grades/{file_name(grader)}"

    def graders(self) -> list[str]:
        """Return the graders that have judged stored outputs."""
        folders = (self.folder / "grades").glob("*")
        return sorted(unquote(path.name) for path in folders if path.is_dir())

    def _accepted(
        self, kind: str, evaluation: str, generation: int, candidate: str, ending: str
    ) -> Path:
        # One path in one go: long searches ask for many thousands.
        name = f"{file_name(candidate)}.{ending}"
        return Path(f"{self.folder}/{kind}/{evaluation}/{generation:04d}/{name}")
