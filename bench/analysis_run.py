"""A synthetic run of any size for bench/analysis.py, which `l2s verify` calls sound.

Rates, lengths and answers are drawn so that they look like the recorded searches: items differ in
how hard they are, lengths are log-normal with a cap, right answers equal the gold.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from l2s_hpc.config import SearchConfig
from l2s_hpc.recipes.genes import space
from l2s_hpc.recipes.recipe import average, make_recipe, single_model
from l2s_hpc.records import Evaluation, Item, Protocol, Receipt
from l2s_hpc.store.files import create_json, write_json
from l2s_hpc.store.journal import Event, Journal
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import RunInfo
from l2s_hpc.store.scores import SCORES, content_sha256, write_arrow

IDENTITIES = {"slow": "aa", "fast": "bb", "base": "cc"}
SHARES = {
    "college_math": 0.502, "gsm8k": 0.235, "olympiadbench": 0.12, "math500": 0.089,
    "minerva_math": 0.0485, "aime24": 0.0055,
}  # fmt: skip
"""The seven benchmarks' shares of 5,614 items, math left out."""

POPULATION = 20
CAP = 10240


@dataclass(frozen=True)
class Size:
    """How large a run is; its rows are the product."""

    candidates: int
    items: int
    samples: int

    @property
    def rows(self) -> int:
        return self.candidates * self.items * self.samples


def make_run(folder: Path, size: Size) -> None:
    """Write a complete run: parents, average, and a search by generations of 20."""
    config = _config()
    paths, rng = RunPaths(folder), np.random.default_rng(size.rows)
    references = {
        "parent.slow": single_model("slow", IDENTITIES),
        "parent.fast": single_model("fast", IDENTITIES),
        "average": average({"slow": 1.0, "fast": 1.0}, IDENTITIES),
    }
    info = RunInfo(
        id="bench-00000000",
        name="bench",
        created="2026-01-01T00:00:00+00:00",
        command="bench/analysis.py",
        versions={},
        git=None,
        config=config.model_dump(mode="json"),
        site={"engine": "scripted"},
        models={},
        identities=IDENTITIES,
        frozen={},
        liveness="not measured",
        references=references,
        science={"seed": 0},
    )
    create_json(paths.run_json, info.model_dump(mode="json"))
    writer = _Writer(paths, size, rng)
    journal = Journal(paths.journal)
    _append(journal, [{"event": "started", "command": info.command}])
    first = [recipe.candidate for recipe in references.values()]
    number, left = 0, size.candidates - len(first)
    while left > 0:
        genomes = rng.random((min(POPULATION, left), 2)).round(6).tolist()
        names = [make_recipe(config, space(config), g, IDENTITIES).candidate for g in genomes]
        asked = {"event": "asked", "generation": number, "genomes": genomes, "candidates": names}
        everyone = [*(first if number == 0 else ()), *names]
        batch = f"l2s-bench-{number:06d}"
        tries = [["search", number, name, 1] for name in everyone]
        intent: Event = {"event": "intent", "batch": batch}
        intent["tasks"] = [{"key": f"search-{number:06d}-0000", "candidates": tries}]
        accepted = [writer.candidate(number, name) for name in everyone]
        told = {
            "event": "told",
            "generation": number,
            "objectives": [writer.objectives[name] for name in names],
            "violations": [[0.0] for _ in names],
        }
        closed = {"event": "closed", "batch": batch}
        _append(journal, [asked, intent])
        _append(journal, [*accepted, closed, told])
        number, left = number + 1, left - len(names)


class _Writer:
    """Writes score tables; the items and how hard they are stay the same."""

    def __init__(self, paths: RunPaths, size: Size, rng: np.random.Generator) -> None:
        self._paths, self._size, self._rng = paths, size, rng
        self.objectives: dict[str, list[float]] = {}
        counts = {name: max(int(size.items * share), 1) for name, share in SHARES.items()}
        counts["college_math"] += size.items - sum(counts.values())
        golds = rng.lognormal(4, 3, size.items).astype(np.int64).astype(str).tolist()
        names = [name for name, count in counts.items() for _ in range(count)]
        self._items = [
            Item(
                benchmark=name,
                item=hashlib.sha256(f"{number}".encode()).hexdigest()[:16],
                question=f"question {number}",
                gold=gold,
                question_hash=hashlib.sha256(f"q{number}".encode()).hexdigest()[:16],
            )
            for number, (name, gold) in enumerate(zip(names, golds, strict=True))
        ]
        self._protocol = _protocol(size.samples)
        described = Evaluation(name="search", protocol=self._protocol, items=tuple(self._items))
        write_json(paths.evaluation("search"), described.model_dump(mode="json"))
        self._hard = rng.random(size.items)
        self._same = self._repeated()

    def _repeated(self) -> dict[str, Any]:
        """Return the columns that all candidates have in common."""
        size, rng = self._size, self._rng
        rows = size.items * size.samples

        def each(values: list[str]) -> pa.Array:
            return pa.array(np.repeat(np.array(values, dtype=object), size.samples))

        return {
            "benchmark": each([item.benchmark for item in self._items]),
            "item": each([item.item for item in self._items]),
            "gold": each([item.gold for item in self._items]),
            "sample": pa.array(np.tile(np.arange(size.samples, dtype=np.int32), size.items)),
            "seed": pa.array(rng.integers(0, 1 << 32, rows)),
            "n_prompt_tokens": pa.array(
                np.repeat(rng.integers(60, 400, size.items), size.samples), pa.int32()
            ),
        }

    def candidate(self, generation: int, candidate: str) -> Event:
        """Write a candidate's table and receipt, and return the event that accepts it."""
        table = self._table(generation, candidate)
        where = ("search", generation, candidate)
        sha256, content = write_arrow(self._paths.scores(*where), table), content_sha256(table)
        receipt = Receipt(
            run="bench-00000000",
            evaluation="search",
            generation=generation,
            candidate=candidate,
            attempt=1,
            protocol=self._protocol.hash,
            grader="bench",
            host="node1",
            device="none",
            versions={"numpy": np.__version__},
            seconds={"merge": 1.0, "generate": 60.0, "grade": 1.0},
            started="2026-01-01T00:00:00+00:00",
            ended="2026-01-01T00:01:02+00:00",
            rows=table.num_rows,
            file_sha256=sha256,
            content_sha256=content,
        )
        write_json(self._paths.receipt(*where), receipt.model_dump(mode="json"))
        return {
            "event": "accepted",
            "evaluation": "search",
            "generation": generation,
            "candidate": candidate,
            "attempt": 1,
            "content_sha256": content,
            "rows": table.num_rows,
        }

    def _table(self, generation: int, candidate: str) -> pa.Table:
        rng, rows = self._rng, self._size.items * self._size.samples
        hard = np.repeat(self._hard, self._size.samples)
        correct = rng.random(rows) < hard ** rng.uniform(0.5, 2)
        tokens = rng.lognormal(rng.uniform(5.5, 7.5), 0.7, rows).astype(np.int64) + 1
        tokens = np.minimum(tokens, CAP)
        cut = tokens == CAP
        right = rng.random(rows) < 0.97
        gold = self._same["gold"].to_numpy(zero_copy_only=False)
        wrong = rng.integers(0, 3000, rows).astype(str).astype(object)
        self.objectives[candidate] = [-float(correct.mean()), float(tokens.mean())]
        columns: dict[str, Any] = {
            "run": _same("bench-00000000", rows),
            "evaluation": _same("search", rows),
            "protocol": _same(self._protocol.hash, rows),
            "generation": pa.array(np.full(rows, generation, dtype=np.int32)),
            "candidate": _same(candidate, rows),
            "correct": pa.array(correct),
            "gradable": pa.array(np.ones(rows, dtype=np.bool_)),
            "extracted": pa.array(np.where(correct, gold, wrong)),
            "grader": _same("bench", rows),
            "grade_status": pa.array(np.where(right | correct, "ok", "no_answer").astype(object)),
            "n_output_tokens": pa.array(tokens, pa.int32()),
            "n_charged_tokens": pa.array(tokens, pa.int32()),
            "finish_reason": pa.array(np.where(cut, "length", "stop").astype(object)),
            "truncated": pa.array(cut),
            **self._same,
        }
        return pa.table([columns[name] for name in SCORES.names], schema=SCORES)


def _same(word: str, rows: int) -> pa.Array:
    return pa.array([word]).take(pa.array(np.zeros(rows, dtype=np.int64)))


def _append(journal: Journal, events: list[Event]) -> None:
    if not journal.append(events):
        raise SystemExit("the journal of the synthetic run has another writer")


def _protocol(samples: int) -> Protocol:
    return Protocol(
        prompt="chat",
        max_tokens=CAP,
        temperature=0.0 if samples == 1 else 0.6,
        top_p=1.0,
        samples=samples,
        seed=0,
        stop_ids=(0,),
        tokenizer="slow",
        chunk_items=1024,
        engine="scripted",
        engine_settings={},
        merge_device="cpu",
    )


def _config() -> SearchConfig:
    return SearchConfig.model_validate(
        {
            "name": "bench",
            "parents": {"slow": "/models/slow", "fast": "/models/fast"},
            "merge": {"method": "task_arithmetic", "base": "/models/base"},
            "genes": [{"parameter": "weight", "low": 0.0, "high": 1.0}],
            "benchmarks": list(SHARES),
        }
    )
