"""The records that cross module borders, in the order of the data flow.

job file -> `Evaluation` (a `Protocol` applied to `Item`s) -> `Recipe` -> `CandidateTask` -> `Task`
-> `Output` -> `Verdict` -> score table -> `Receipt`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """An immutable record that is stored as JSON; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def short_hash(value: Any, digits: int = 16) -> str:
    """Return the first hexadecimal digits of the sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:digits]


class Item(Record):
    """One benchmark problem.

    `item` is the hash of question and gold, followed by `-2`, `-3`, … where a benchmark repeats
    the pair; `question_hash` depends on the question alone and keeps splits disjoint. `ungradable`
    says why no rule can judge answers to it: its gold is `prose`, or one of several in `conflict`.
    """

    benchmark: str
    item: str
    question: str
    gold: str
    question_hash: str
    level: str | None = None
    ungradable: Literal["", "prose", "conflict"] = ""

    @property
    def gradable(self) -> bool:
        """Whether a verdict on an answer to it says anything."""
        return not self.ungradable


class Protocol(Record):
    """All that can change a generated token; not the grader.

    `tokenizer` is the input model whose tokenizer and context all candidates get. Where it is
    empty, each candidate is an input model itself, alone in its engine, with a tokenizer, stop ids
    and a context of its own. `template` is the hash of the text that the prompt preset puts around
    a question; `shots` are the examples that stand before it, as questions and answers.
    """

    prompt: str
    max_tokens: int
    temperature: float
    top_p: float
    samples: int
    seed: int
    stop_ids: tuple[int, ...]
    tokenizer: str
    chunk_items: int
    engine: str
    engine_settings: dict[str, Any]
    merge_device: str
    budgets: dict[str, int] = {}
    cycle_guard: int = 0
    template: str = ""
    shots: tuple[tuple[str, str], ...] = ()

    @property
    def hash(self) -> str:
        """The hash that the score tables' `protocol` column holds; what is off is left out."""
        return short_hash(self.model_dump(mode="json", exclude_defaults=True))

    def budget(self, benchmark: str) -> int:
        """Return the longest answer to an item of a benchmark, in generated tokens."""
        return self.budgets.get(benchmark, self.max_tokens)

    def alone(self, recipe: Recipe) -> str:
        """Return the input model that a recipe is, if models are alone in their engine; or ''."""
        return "" if self.tokenizer else recipe.config["models"][0]["model"]


class Origin(Record):
    """Where the rows of a benchmark came from when items were drawn from them.

    Attributes:
        source: `package` (shipped), `file` (named in the site) or `hub`.
        place: the file, or the data set.
        revision: the commit whose snapshot was read; None where none was seen.
        rows_sha256: the hash of all its rows, as `l2s fetch` says it too.
        items: how many problems they are.
    """

    source: Literal["package", "file", "hub"]
    place: str
    revision: str | None = None
    rows_sha256: str
    items: int


class Evaluation(Record):
    """A protocol applied to items: `search`, `selection`, `noise`, `report` or a user's own.

    `noise` has the items of `selection` in another order. `origins` are those of the benchmarks, by
    name, as they were read when the evaluation began; nothing is compared with them, items are.
    """

    name: str
    protocol: Protocol
    items: tuple[Item, ...]
    origins: dict[str, Origin] = {}


class Recipe(Record):
    """A complete mergekit configuration in canonical form.

    `config` names models as the job file does (`slow`, `fast`, …); `identities` says which
    weights those names stand for, so that equal recipes of unequal parents differ.
    """

    config: dict[str, Any]
    identities: dict[str, str]
    seed: int = 0

    @cached_property
    def candidate(self) -> str:
        """The candidate id: 16 hexadecimal digits of the recipe's sha256."""
        return short_hash(self.model_dump(mode="json"))


class CandidateTask(Record):
    """One attempt of one candidate: what a node needs to know to make its score table."""

    evaluation: str
    generation: int
    candidate: str
    attempt: int
    recipe: Recipe


class Task(Record):
    """What one Slurm array task (or one turn of a local worker) does, one candidate after another.

    `key` is unique in the run and safe as a file name; `models` are the site's folders by hub id;
    `workers` share the candidates, each with a GPU of its own; a full disk is waited for at most
    `disk_seconds`; `scratch` and `cache` are the site's folders on the node's own disk; `device`
    and `engine` are those of the run, as `otherwise` compares them.
    """

    key: str
    models: dict[str, str] = {}
    workers: int = 1
    disk_seconds: float = 0.0
    scratch: str = ""
    cache: str = ""
    device: str = ""
    engine: str = ""
    candidates: tuple[CandidateTask, ...]


FinishReason = Literal["stop", "length", "cycle", "error"]


@dataclass(frozen=True)
class Output:
    """One generated answer. Token counts are counts of generated ids, the end token included."""

    benchmark: str
    item: str
    sample: int
    seed: int
    text: str
    n_prompt_tokens: int
    n_output_tokens: int
    n_charged_tokens: int
    finish_reason: FinishReason


GradeStatus = Literal["ok", "no_answer", "undecided", "timeout", "error"]
DECIDED: tuple[GradeStatus, ...] = ("ok", "no_answer")
"""What a rule has decided; the others count as wrong, and are shown."""


@dataclass(frozen=True)
class Verdict:
    """A grader's decision on one output; everything but a decided right answer is not correct."""

    correct: bool
    extracted: str | None
    status: GradeStatus


class Failure(Record):
    """Why an attempt left no score table.

    `interrupted` is nobody's fault and is not counted; `timeout` is, where no chunk was finished.
    `device` and `version` are the node's: it has another GPU or engine than the run.
    """

    kind: Literal[
        "merge", "engine", "write", "interrupted", "timeout", "device", "version", "other"
    ]
    message: str
    trace: str = ""

    @property
    def unfinished(self) -> bool:
        """Whether the attempt goes on if Slurm starts its job again."""
        return self.kind in ("interrupted", "timeout")

    @property
    def of_node(self) -> bool:
        """Whether it says nothing of the candidate: another node would have made its table."""
        return self.kind in ("device", "version")


def cold(seconds: Sequence[float]) -> list[float]:
    """Return those of some attempts' seconds of `start` that belong to a worker that started.

    In a warm one this phase takes no time.
    """
    longest = max(seconds, default=0.0)
    return [value for value in seconds if value >= longest / 10]


def deciding(versions: Mapping[str, str]) -> dict[str, str]:
    """Return those of an engine's versions on which its tokens depend.

    That is not Python's, not that of `transformers` where vLLM generates, and of mergekit the first
    two numbers.
    """
    unread = ("python", "transformers") if "vllm" in versions else ("python",)
    found = {name: text for name, text in sorted(versions.items()) if name not in unread}
    if "mergekit" in found:
        found["mergekit"] = ".".join(found["mergekit"].split(".")[:2])
    return found


def engine_line(versions: Mapping[str, str]) -> str:
    """Return the versions that decide the tokens, in a line; empty where none are known."""
    return ", ".join(f"{name} {text}" for name, text in deciding(versions).items())


def otherwise(
    device: str, engine: str, found_device: str, found_engine: str
) -> tuple[Literal["device", "version"], str] | None:
    """Return how a device and an engine differ from a run's, and say it; None if they do not.

    Args:
        device: of the run; empty where it may be any: then builds of one version (`2.11.0+cu126`)
            are alike too.
        engine: of the run, as `engine_line` gives it; empty while it is not known.
        found_device, found_engine: what is compared with them.
    """
    ours, theirs = engine, found_engine
    if not device:
        ours, theirs = (re.sub(r"\+[^,]*", "", line) for line in (ours, theirs))
    if engine and ours != theirs:
        return (
            "version",
            f"{found_engine or 'unknown versions'}, and the run's scores are from {engine}",
        )
    if device and device != found_device:
        return "device", f"{found_device}, and the run's scores are from {device}"
    return None


class Receipt(Record):
    """Written by the node after the score table; the only thing that the controller believes.

    `job` is the Slurm job (`123_4`) and `restart` how often Slurm had requeued it before; `chunks`
    counts the chunks that were durable when the attempt ended; `earlier_seconds` is what those
    incarnations of the job took that Slurm ended before. `usage` says what the engine was used
    (see `task.engines.Engine.usage`); `fingerprint` is that of its canary.

    `device_seconds` is for how long a device was this attempt's: from its start, or from when the
    candidate before it in its worker let the device go, until all was generated; where nothing
    comes after it, or it failed, until its receipt. So no second of a worker counts twice, although
    a candidate is graded and written while the next one generates.
    """

    run: str
    evaluation: str
    generation: int
    candidate: str
    attempt: int
    protocol: str
    grader: str = ""
    host: str
    job: str = ""
    restart: int = 0
    device: str
    versions: dict[str, str]
    seconds: dict[str, float]
    started: str
    ended: str
    chunks: int = 0
    earlier_seconds: float = 0.0
    device_seconds: float | None = None
    usage: dict[str, float] = {}
    fingerprint: str = ""
    rows: int = 0
    file_sha256: str = ""
    content_sha256: str = ""
    outputs_sha256: str = ""
    failure: Failure | None = None

    @property
    def reserved(self) -> float:
        """Its `device_seconds`; without them the time from start to end, 0 where that is none."""
        if self.device_seconds is not None:
            return self.device_seconds
        try:
            start, end = (datetime.fromisoformat(text) for text in (self.started, self.ended))
            return max((end - start).total_seconds(), 0.0)
        except (ValueError, TypeError):
            return 0.0

    @property
    def lasted(self) -> float:
        """Seconds of a device that the attempt has cost, earlier incarnations included."""
        return self.earlier_seconds + self.reserved

    @property
    def engine(self) -> str:
        """What made it (see `engine_line`)."""
        return engine_line(self.versions)


class GradeReceipt(Record):
    """What stands beside a table of grades: whose verdicts on which outputs, and its sha256."""

    run: str
    evaluation: str
    generation: int
    candidate: str
    grader: str
    outputs_sha256: str
    rows: int
    file_sha256: str
    host: str
    seconds: float
    ended: str
