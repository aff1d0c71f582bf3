"""Small builders that several test folders share."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from l2s_hpc.config import ModelSource, SearchConfig, load_job
from l2s_hpc.evaluation.benchmarks import load_all
from l2s_hpc.evaluation.splits import splits
from l2s_hpc.recipes.genes import space
from l2s_hpc.recipes.models import Model
from l2s_hpc.recipes.recipe import make_recipe
from l2s_hpc.records import Item, Protocol, Recipe

ROOT = Path(__file__).parents[1]
TOY = ROOT / "data" / "toy"
QUARTERS = {
    "ends": ("embeddings", "final_norm", "head"),
    "low": ("layers.0-1",),
    "mid": ("layers.2",),
    "top": ("layers.3",),
}


def toy_models(*names: str) -> dict[str, Model]:
    """Return models of the toy family by name."""
    return {name: Model(name, TOY / name) for name in names or ("slow", "fast", "base")}


def search_config(
    method: str,
    genes: Iterable[Mapping[str, Any]],
    parents: Sequence[str] = ("slow", "fast"),
    base: str | None = "base",
    **merge: Any,
) -> SearchConfig:
    """Return a job over the toy family; genes lie between -8 and 8 unless they say otherwise."""
    return SearchConfig(
        name="test",
        parents={name: ModelSource(path=f"shipped:toy/{name}") for name in parents},
        merge={
            "method": method,
            "base": base if base in (None, *parents) else f"shipped:toy/{base}",
            "groups": QUARTERS,
            **merge,
        },
        genes=[{"low": -8, "high": 8, **gene} for gene in genes],
        benchmarks=("toy_easy",),
    )


def recipe_of(
    config: SearchConfig, values: Sequence[float], identities: Mapping[str, str] | None = None
) -> Recipe:
    """Return the canonical recipe of a genome, given as its genes' values in order."""
    genes = space(config)
    names = (*config.parents, "base")
    return make_recipe(config, genes, genes.genome(values), identities or dict.fromkeys(names, ""))


def toy_items(count: int) -> tuple[Item, ...]:
    """Return the first search items of the toy job, of its benchmarks in turn."""
    job = load_job(ROOT / "jobs" / "toy.toml")
    found = splits(job, load_all(job.benchmarks, {}))["search"]
    names = dict.fromkeys(item.benchmark for item in found)
    rows = zip(*([i for i in found if i.benchmark == name] for name in names), strict=True)
    return tuple(item for row in rows for item in row)[:count]


def toy_protocol(**changes: Any) -> Protocol:
    """Return the toy's protocol on one CPU thread, greedy, with some changes."""
    settings: dict[str, Any] = {
        "prompt": "chat",
        "max_tokens": 120,
        "temperature": 0.0,
        "top_p": 1.0,
        "samples": 1,
        "seed": 0,
        "stop_ids": (454,),
        "tokenizer": "slow",
        "chunk_items": 1024,
        "engine": "transformers",
        "engine_settings": {"batch_size": 6, "threads": 1},
        "merge_device": "cpu",
    }
    return Protocol(**settings | changes)


def doctor_node(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `l2s doctor --node` with further words."""
    command = [sys.executable, "-m", "l2s_hpc.cli.main", "doctor", "--node", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    """Return what a doctor has found, by name, if it was asked with `--json`."""
    return {row["name"]: row for row in json.loads(done.stdout)}


def sums(count: int) -> tuple[Item, ...]:
    """Items whose question ends in the answer, as the scripted engine likes it."""
    return tuple(
        Item(
            benchmark="sums",
            item=f"{n:016x}",
            question=f"{n}+{n}={2 * n}",
            gold=str(2 * n),
            question_hash=f"{n:016x}",
        )
        for n in range(count)
    )
