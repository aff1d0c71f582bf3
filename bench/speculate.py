"""What does n-gram speculation change? `python bench/speculate.py --out speculate.json`.

The toy family's parents and two merges of them answer greedily, with `vllm.speculate` = 0, 3 and 5.
Prints what differs from the answers with 0: ids, and verdicts of the project's own grader. Beside
them stands what a neutral change does, the same prompts in two halves: on a GPU, rounding depends
on what shares a batch. Each number of guesses is a process of its own. Needs vLLM; about 150 s on a
GPU, and with `--device cpu --items 40` a minute on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from l2s_hpc.controller.resolve import load, resolve
from l2s_hpc.evaluation.grading import Grader
from l2s_hpc.evaluation.prompts import build
from l2s_hpc.recipes.recipe import average, single_model
from l2s_hpc.records import Recipe

GUESSES = (0, 3, 5)
HALVES = "0, in two halves"
NAMES = dict.fromkeys(("slow", "fast", "base"), "")


def recipes() -> dict[str, Recipe]:
    """Return the parents, their average, and a TIES merge of both."""
    own = {"weight": 0.7, "density": 0.6}
    models = [{"model": name, "parameters": own} for name in ("slow", "fast")]
    ties = {"merge_method": "ties", "base_model": "base", "models": models}
    ties |= {"parameters": {"normalize": True}, "dtype": "float32", "out_dtype": "bfloat16"}
    return {
        "slow": single_model("slow", NAMES),
        "fast": single_model("fast", NAMES),
        "average": average({"slow": 1.0, "fast": 1.0}, NAMES),
        "ties": Recipe(config=ties, identities=NAMES),
    }


def stage(guesses: int, device: str, count: int, out: Path) -> None:
    """Let one engine answer, and write ids, verdicts and seconds; in a process of its own."""
    from l2s_hpc.task import vllm_engine

    settings = {"engine": "vllm", "device": device, "threads": 2}
    settings |= {"vllm.speculate": guesses, "vllm.kv_cache_tokens": 65_536}
    job, site = load("toy", "local", [f"site.{key}={value}" for key, value in settings.items()])
    resolved = resolve(job, site, frozen={})
    items = [item for evaluation in resolved.evaluations.values() for item in evaluation.items]
    items = items[:: max(len(items) // count, 1)][:count]
    began = time.perf_counter()
    engine = vllm_engine.VllmEngine(resolved.evaluations["search"].protocol, resolved.models)
    started = time.perf_counter() - began
    generated: list[list[int]] = []
    answer = vllm_engine.answer

    def noted(*given: Any) -> Any:
        generated.append(list(given[2]))
        return answer(*given)

    vllm_engine.answer = noted
    prompts = [build("chat", item.question, engine.tokenizer) for item in items]
    found: dict[str, Any] = {}
    with Grader() as grader:
        for name, recipe in recipes().items():
            engine.load(recipe)
            engine.generate(prompts[:8])
            for way in (str(guesses), HALVES)[: 2 if guesses == 0 else 1]:
                generated.clear()
                engine._steps = engine._running = 0  # as after `load`
                half = len(prompts) // 2 if way == HALVES else 0
                begin = time.perf_counter()
                rows = engine.generate(prompts[:half]) if half else []
                rows += engine.generate(prompts[half:])
                seconds = time.perf_counter() - begin
                verdicts = grader.grade([a for (a,) in rows], items)
                found.setdefault(way, {})[name] = {
                    "ids": list(generated),
                    "correct": [verdict.correct for verdict in verdicts],
                    "seconds": seconds,
                    "steps": engine._steps,
                    "tokens_per_step": sum(map(len, generated)) / engine._running,
                }
    print(f"speculate = {guesses} on {engine.device}: start {started:.1f} s", flush=True)
    out.write_text(json.dumps(found), encoding="utf-8")


def table(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each way and candidate, compared with the answers without guesses."""
    rows = []
    for way, candidates in found.items():
        for name, one in candidates.items():
            count = len(one["ids"])
            ids, flips = (
                sum(a != b for a, b in zip(one[key], found["0"][name][key], strict=True))
                for key in ("ids", "correct")
            )
            rows.append(
                {
                    "speculate": way,
                    "model": name,
                    "answers": count,
                    "other ids": round(ids / count, 4),
                    "other verdicts": round(flips / count, 4),
                    "accuracy": round(sum(one["correct"]) / count, 4),
                    "tokens": sum(map(len, one["ids"])),
                    **{key: round(one[key], 2) for key in ("seconds", "steps")},
                    "tokens a step": round(one["tokens_per_step"], 3),
                }
            )
    return rows


def main() -> None:
    """Run the stages one after another and print what they found as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--items", type=int, default=360)
    parser.add_argument("--out", help="a JSON file for all rows")
    for name, kind in (("--stage", int), ("--work", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage is not None:
        stage(given.stage, given.device, given.items, given.work)
        os._exit(0)  # the engine's threads are nobody's business now
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for guesses in GUESSES:
            out = Path(folder) / f"{guesses}.json"
            own = ["--stage", str(guesses), "--work", str(out)]
            subprocess.run([sys.executable, *sys.argv, *own], check=True)
            found |= json.loads(out.read_text(encoding="utf-8"))
    rows = table(found)
    for cells in (list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)):
        print("|", " | ".join(map(str, cells)), "|")
    if given.out:
        Path(given.out).write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
