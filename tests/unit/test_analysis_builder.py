"""A small run directory, made by the store's own functions; the tests of analysis share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc.config import SearchConfig
from l2s_hpc.recipes.genes import space
from l2s_hpc.recipes.recipe import average, make_recipe, single_model
from l2s_hpc.records import Receipt
from l2s_hpc.store.files import create_json, link_durably, write_json
from l2s_hpc.store.journal import Event, Journal
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import RunInfo, read_run
from l2s_hpc.store.scores import SCORES, content_sha256, read_table, write_table

HOSTILE = "merge: </script><script>alert('x')</script><img src=https://evil.example/x.png>"

IDENTITIES = {"slow": "aa", "fast": "bb", "base": "cc"}
CONFIG = SearchConfig.model_validate(
    {
        "name": "small",
        "description": "Two <b>parents</b>, two genes",
        "parents": {"slow": "/models/slow", "fast": "/models/fast"},
        "merge": {"method": "task_arithmetic", "base": "/models/base"},
        "genes": [{"parameter": "weight", "low": 0.0, "high": 1.0, "step": 0.1}],
        "benchmarks": ["alpha", "beta"],
        "references": {"sweep": 3},
    }
)
ITEMS = [("alpha", f"a{n}") for n in range(8)] + [("beta", f"b{n}") for n in range(4)]
GENOMES = {
    "good": (1.0, 0.2), "short": (0.2, 1.0), "beaten": (0.5, 0.5), "broken": (0.9, 0.9),
    "rubbish": (0.1, 0.1),
}  # fmt: skip
CANDIDATES = {
    name: make_recipe(CONFIG, space(CONFIG), genome, IDENTITIES).candidate
    for name, genome in GENOMES.items()
}
REFERENCES = {
    "parent.slow": single_model("slow", IDENTITIES),
    "parent.fast": single_model("fast", IDENTITIES),
    "average": average({"slow": 1.0, "fast": 1.0}, IDENTITIES),
    "sweep.0": average({"slow": 0.0, "fast": 1.0}, IDENTITIES),
    "sweep.0.5": average({"slow": 0.5, "fast": 0.5}, IDENTITIES),
    "sweep.1": average({"slow": 1.0, "fast": 0.0}, IDENTITIES),
}
IDS = CANDIDATES | {
    "slow": REFERENCES["parent.slow"].candidate,
    "fast": REFERENCES["parent.fast"].candidate,
    "average": REFERENCES["average"].candidate,
}
# Which of a0…a7 and b0…b3 each model solves, and its tokens per answer.
ANSWERS = {
    "slow": ("11111111 1100", 100),
    "fast": ("11110000 0010", 20),
    "average": ("11111100 1000", 60),
    "good": ("11111111 1010", 70),
    "short": ("11110000 0011", 25),
    "beaten": ("11110000 0011", 80),
    "rubbish": ("11000000 0000", 5),
}
Rows = list[dict[str, Any]]
GENERATIONS = (("good", "short", "beaten"), ("broken", "rubbish", "good"))


class SmallRun:
    """Writes the run; each method adds what a controller and its nodes would leave.

    `change` may make other rows of those of each score table.
    """

    def __init__(self, folder: Path, change: Callable[[Rows], Rows] = list) -> None:
        self.paths = RunPaths(folder)
        self._change = change
        info = RunInfo(
            id="small-00000000",
            name="small",
            created="2025-01-01T00:00:00+00:00",
            command="l2s run small.toml",
            versions={"numpy": "2"},
            git=None,
            config=CONFIG.model_dump(mode="json"),
            site={"engine": "scripted"},
            models={"slow": {"path": "/models/slow", "revision": None}},
            identities=IDENTITIES,
            frozen={},
            liveness="not measured",
            references=REFERENCES,
            science={"seed": 0},
        )
        create_json(self.paths.run_json, info.model_dump(mode="json"))
        self.info = read_run(folder)
        self._journal = Journal(self.paths.journal)
        self.append({"event": "started", "command": "l2s run small.toml"})

    def append(self, *events: Event) -> None:
        assert self._journal.append(list(events))

    def ask(self, generation: int) -> None:
        names = GENERATIONS[generation]
        self.append(
            {
                "event": "asked",
                "generation": generation,
                "genomes": [list(GENOMES[name]) for name in names],
                "candidates": [IDS[name] for name in names],
            }
        )

    def evaluate(self, evaluation: str, name: str, extra_tokens: int = 0) -> None:
        """Leave an accepted score table and its receipt."""
        candidate = IDS[name]
        self.intend(evaluation, candidate)
        where = (evaluation, 0, candidate)
        attempt = self.paths.attempt(*where, 1)
        rows = self._change(_rows(evaluation, name, extra_tokens))
        sha256 = write_table(attempt.scores, rows, SCORES)
        content = content_sha256(read_table(attempt.scores))
        receipt = _receipt(evaluation, candidate, file_sha256=sha256, content_sha256=content)
        told = receipt.model_dump(mode="json") | {"rows": len(rows)}
        write_json(attempt.receipt, told)
        link_durably(attempt.scores, self.paths.scores(*where))
        link_durably(attempt.receipt, self.paths.receipt(*where))
        self.append(
            {
                "event": "accepted",
                "evaluation": evaluation,
                "generation": 0,
                "candidate": candidate,
                "attempt": 1,
                "content_sha256": content,
                "rows": len(rows),
            }
        )

    def intend(self, evaluation: str, candidate: str, attempt: int = 1) -> None:
        task = {
            "key": f"{evaluation}-{candidate}-{attempt}",
            "candidates": [[evaluation, 0, candidate, attempt]],
        }
        batch = f"l2s-{evaluation}-{candidate}-{attempt}"
        self.append({"event": "intent", "batch": batch, "tasks": [task]})

    def give_up(self, evaluation: str, name: str, reason: str) -> None:
        candidate = IDS[name]
        for attempt in (1, 2):
            self.intend(evaluation, candidate, attempt)
            failed = {"event": "failed", "evaluation": evaluation, "candidate": candidate}
            self.append(
                failed | {"attempt": attempt, "kind": "merge", "message": reason, "counted": True}
            )
        self.append(
            {
                "event": "penalised",
                "evaluation": evaluation,
                "candidate": candidate,
                "reason": reason,
            }
        )

    def tell(self, generation: int) -> None:
        names = GENERATIONS[generation]
        floor = accuracy("fast")
        known = [name in ANSWERS for name in names]
        self.append(
            {
                "event": "told",
                "generation": generation,
                "objectives": [
                    [-accuracy(name), float(ANSWERS[name][1])] if there else [0.0, 10240.0]
                    for name, there in zip(names, known, strict=True)
                ],
                "violations": [
                    [floor - accuracy(name)] if there else [1.0]
                    for name, there in zip(names, known, strict=True)
                ],
            }
        )

    def search(self, generations: int = 2) -> None:
        """Run the search as far as `generations`."""
        self.ask(0)
        for name in ("slow", "fast", "average", *GENERATIONS[0]):
            self.evaluate("search", name)
        self.tell(0)
        if generations == 2:
            self.ask(1)
            self.give_up("search", "broken", HOSTILE)
            self.evaluate("search", "rubbish")
            self.tell(1)

    def choose(self) -> None:
        """Evaluate the search's front on the selection items, and fix front and picks."""
        chosen = ("good", "short", "slow", "fast", "average")
        stage = {"event": "stage", "candidates": [IDS[name] for name in chosen]}
        self.append(stage | {"evaluation": "selection"})
        for name in chosen:
            self.evaluate("selection", name)
        picks = {"knee": IDS["short"], "most_accurate": IDS["good"]}
        self.append({"event": "fixed", "front": [IDS["good"], IDS["short"]], "picks": picks})
        self.append(stage | {"evaluation": "report"})

    def report(self) -> None:
        """Evaluate the choice on the report items, where every answer is a token longer."""
        for name in ("good", "short", "slow", "fast", "average"):
            self.evaluate("report", name, extra_tokens=1)
        self.append({"event": "completed"})

    def table(self, evaluation: str, name: str) -> Path:
        """Return the path of an accepted score table."""
        return self.paths.scores(evaluation, 0, IDS[name])


def complete(folder: Path, change: Callable[[Rows], Rows] = list) -> SmallRun:
    """Make a run that is complete."""
    run = SmallRun(folder, change)
    run.search()
    run.choose()
    run.report()
    return run


def accuracy(name: str) -> float:
    return ANSWERS[name][0].count("1") / len(ITEMS)


def by_name(rows: list[dict[str, Any]]) -> Mapping[str, dict[str, Any]]:
    """Return the rows by the names that this module gives candidates."""
    names = {candidate: name for name, candidate in IDS.items()}
    return {names[row["candidate"]]: row for row in rows}


def test_the_small_run_is_a_run(tmp_path: Path) -> None:
    run = complete(tmp_path / "run")
    assert len(set(IDS.values())) == len(IDS) == 8
    assert len(list(run.paths.journal.glob("*/*.json"))) > 30
    with pytest.raises(FileExistsError):
        run.paths.run_json.open("x")


def doubtful(rows: Rows) -> Rows:
    """Make b2 and b3 ungradable; no wrong a6 has an answer, and no wrong a7 a decision."""
    wrong = {"a6": "no_answer", "a7": "timeout"}
    return [
        row
        | {"gradable": row["item"] not in ("b2", "b3")}
        | {"grade_status": "ok" if row["correct"] else wrong.get(row["item"], "ok")}
        for row in rows
    ]


def _rows(evaluation: str, name: str, extra_tokens: int) -> Rows:
    verdicts, tokens = ANSWERS[name]
    return [
        {
            "run": "small-00000000",
            "evaluation": evaluation,
            "protocol": "p",
            "generation": 0,
            "candidate": IDS[name],
            "benchmark": benchmark,
            "item": item,
            "sample": 0,
            "seed": 0,
            "correct": verdict == "1",
            "gradable": True,
            "extracted": "1",
            "gold": "1",
            "grader": "g",
            "grade_status": "ok",
            "n_prompt_tokens": 10,
            # Lengths differ from item to item, and their mean is the model's.
            "n_output_tokens": tokens + extra_tokens + (1 if index % 2 else -1),
            "n_charged_tokens": tokens + extra_tokens + (1 if index % 2 else -1),
            "finish_reason": "stop",
            "truncated": False,
        }
        for index, ((benchmark, item), verdict) in enumerate(
            zip(ITEMS, verdicts.replace(" ", ""), strict=True)
        )
    ]


def _receipt(evaluation: str, candidate: str, **hashes: str) -> Receipt:
    return Receipt(
        run="small-00000000",
        evaluation=evaluation,
        generation=0,
        candidate=candidate,
        attempt=1,
        protocol="p",
        grader="g",
        host="node1",
        device="cpu",
        versions={"torch": "2"},
        seconds={"merge": 1.0, "generate": 3.0},
        started="2025-01-01T00:00:00+00:00",
        ended="2025-01-01T00:00:04+00:00",
        rows=len(ITEMS),
        **hashes,
    )
