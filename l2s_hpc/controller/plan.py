"""`l2s plan`: what a run would do, without doing anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from l2s_hpc.cluster.resources import allocation_notes, gpus_of
from l2s_hpc.config import SiteConfig
from l2s_hpc.controller.forecast import (
    Counts,
    Forecast,
    Speed,
    at_once,
    first_generation,
    forecast,
    speed_from,
    stage,
    stages,
    within_budget,
)
from l2s_hpc.controller.memory import Need, as_json, check_memory, memory_notes
from l2s_hpc.controller.packing import advice
from l2s_hpc.controller.resolve import Resolved, engine_of
from l2s_hpc.errors import Unreachable
from l2s_hpc.evaluation.benchmarks import SPLITS
from l2s_hpc.recipes.genes import base_name
from l2s_hpc.recipes.methods import method
from l2s_hpc.recipes.placement import placement
from l2s_hpc.records import Evaluation
from l2s_hpc.store.layout import RunPaths, safe_name

_BYTES_PER_TOKEN = 1.3
"""Stored bytes per generated token, outputs and scores together, measured on the toy family."""

_LIVE_SHARE = 1 / 5
"""What answers under way hold of their budgets where they hold most: of 500 recorded answers, at
most 10,240 tokens each and 256 at a time, 501 thousand tokens."""


def plan(resolved: Resolved, paths: RunPaths) -> dict[str, Any]:
    """Return what a run would do: models, genes, items, first generation, tasks, cost.

    GPU-hours come from receipts of the run directory, or of its smoke tests; they are `None` where
    nobody has measured this protocol.

    Raises:
        UserError: the search cannot run like this: a model that needs several GPUs, a name that
            cannot be a folder's.
    """
    config, site = resolved.config, resolved.site
    safe_name(config.name)
    memory = check_memory(resolved)
    first = first_generation(resolved)
    counts = first.counts
    speed = speed_from(paths.folder, resolved.evaluations["search"].protocol.hash)
    cost = None if speed is None else forecast(resolved, counts, speed)
    answers = _answers(resolved, counts)
    return {
        "job": config.name,
        "site": site.name,
        "method": config.merge.method,
        "tested": method(config.merge.method).tested,
        "models": _models(resolved),
        "memory": as_json(memory, site),
        "placement": placement(resolved.models, site, memory.weights, memory.cache),
        "genes": _genes(resolved),
        "liveness": resolved.liveness,
        "objectives": list(config.objectives),
        "constraints": list(config.constraints),
        "items": {split: _by_benchmark(resolved, split) for split in SPLITS},
        "engine": _engine(resolved),
        "protocol": resolved.evaluations["search"].protocol.model_dump(mode="json"),
        "first_generation": [
            {"candidate": recipe.candidate, "genome": list(genome)}
            for recipe, genome in zip(first.recipes, first.genomes, strict=True)
        ],
        "references": {label: r.candidate for label, r in resolved.references.items()},
        "candidates": counts.search,
        "candidates_after_search": counts.final,
        "answers": answers,
        "largest_output_bytes": int(_most_tokens(resolved, answers) * _BYTES_PER_TOKEN),
        "tasks_of_first_generation": stage(counts.first, 0, site).tasks,
        "tasks": _tasks(site, counts),
        "candidates_per_task": advice(site, speed, stages(resolved, counts)),
        "gpu_hours": None if cost is None else round(cost.total, 3),
        "cost": _cost(cost, speed),
        "budget": within_budget(config, counts, cost),
        "notes": [*_notes(resolved, memory), *_time_notes(site, cost)],
        "sbatch": _sbatch(resolved, paths, stage(counts.first, 0, site).tasks),
    }


def _models(resolved: Resolved) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "role": "base" if name == base_name(resolved.config) else "parent",
            "folder": str(model.folder),
            "parameters": model.parameters,
            "tied_head": model.tied,
            "context": model.config.get("max_position_embeddings"),
            "identity": model.identity,
        }
        for name, model in resolved.models.items()
    ]


def _genes(resolved: Resolved) -> list[dict[str, Any]]:
    return [
        {
            "gene": gene.name,
            "low": gene.low,
            "high": gene.high,
            "step": gene.step,
            "frozen": resolved.space.frozen.get(gene.name),
        }
        for gene in resolved.space.genes
    ]


def _by_benchmark(resolved: Resolved, split: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in resolved.evaluations[split].items:
        found[item.benchmark] = found.get(item.benchmark, 0) + 1
    return found


def _answers(resolved: Resolved, counts: Counts) -> dict[str, int]:
    """Return the answers of each evaluation, at the most."""
    candidates = {
        "search": counts.search,
        "selection": counts.final,
        "noise": counts.twins,
        "report": counts.final,
    }
    samples = resolved.config.protocol.samples
    return {
        name: candidates[name] * len(evaluation.items) * samples
        for name, evaluation in resolved.evaluations.items()
    }


def _most_tokens(resolved: Resolved, answers: dict[str, int]) -> int:
    """Return the tokens of all answers, if each uses its whole budget."""
    total = 0
    for name, evaluation in resolved.evaluations.items():
        budgets = [evaluation.protocol.budget(item.benchmark) for item in evaluation.items]
        total += answers[name] * sum(budgets) // max(len(budgets), 1)
    return total


def _engine(resolved: Resolved) -> dict[str, Any]:
    """Return the engine of a run, what is fixed of it, and why it is this one."""
    site, protocol = resolved.site, resolved.evaluations["search"].protocol
    why = f'site.engine = "{site.engine}"'
    if site.engine != engine_of(site):
        why += f', site.device = "{site.device}"'
    return {"name": protocol.engine, "why": why, "fixed": protocol.engine_settings}


def _tasks(site: SiteConfig, counts: Counts) -> dict[str, Any]:
    """Return how generations become tasks, and say it in a sentence."""
    found = {
        name: stage(candidates, 0, site).tasks
        for name, candidates in (
            ("first_generation", counts.first),
            ("later_generation", counts.later),
            ("selection", counts.final),
            ("noise", counts.twins),
            ("report", counts.final),
        )
    }
    per_task, workers = site.candidates_per_task, site.workers_per_task
    said = f"{_many(counts.first, 'candidate')} of the first generation"
    said += f" in {_many(found['first_generation'], 'task')}, at most {per_task} each"
    if workers > 1:
        said += f"; a task has {workers} workers with a GPU each, which share its candidates"
    said += f"; at most {_many(at_once(site), 'task')} at once"
    return {**found, "meaning": said}


def _cost(cost: Forecast | None, speed: Speed | None) -> dict[str, Any] | None:
    if cost is None or speed is None:
        return None
    return {
        "search": round(sum(cost.generations), 3),
        "selection": round(cost.selection, 3),
        "noise": round(cost.noise, 3),
        "report": round(cost.report, 3),
        "clock_hours": round(cost.hours, 3),
        "start_seconds": round(speed.start, 3),
        "candidate_seconds": round(speed.candidate, 3),
        "answer_seconds": round(speed.answer, 5),
        "longest_task_minutes": round(cost.longest_task / 60, 2),
        "measured_on": speed.receipts,
        "from": list(speed.places),
    }


def _notes(resolved: Resolved, memory: Need) -> list[str]:
    """Return what a user should know before submitting."""
    config, site, notes = resolved.config, resolved.site, []
    if not method(config.merge.method).tested:
        notes.append(f"the method {config.merge.method} is untested here: try --smoke first")
    for name, value in resolved.space.frozen.items():
        notes.append(f"the gene {name} changes nothing; it is frozen at {value:g}")
    notes += memory_notes(resolved, memory) + _live_notes(resolved)
    return notes + _allocation_notes(site)


def _live_notes(resolved: Resolved) -> list[str]:
    """Say where the cache of keys and values may be too small for the answers under way."""
    vllm = resolved.site.vllm
    if engine_of(resolved.site) != "vllm":
        return []
    wanted = max(_live_tokens(e, vllm.max_num_seqs) for e in resolved.evaluations.values())
    if wanted <= vllm.kv_cache_tokens:
        return []
    return [
        f"site.vllm.kv_cache_tokens = {vllm.kv_cache_tokens} may be too few: the answers under way "
        f"can hold {wanted} tokens together, and vLLM drops some to compute them again; set it to "
        "that where there is room"
    ]


def _live_tokens(evaluation: Evaluation, most: int) -> int:
    """Return what the answers of one chunk may hold, if so many are generated at a time."""
    protocol, items = evaluation.protocol, evaluation.items
    live = min(most, min(len(items), protocol.chunk_items) * protocol.samples)
    budgets = sum(protocol.budget(item.benchmark) for item in items)
    return int(_LIVE_SHARE * live * budgets / max(len(items), 1))


def _allocation_notes(site: SiteConfig) -> list[str]:
    """Return what does not fit in what a task asks for, or that several workers do fit."""
    notes = allocation_notes(site)
    workers, gpus = site.workers_per_task, gpus_of(site)
    if workers > 1 and not notes:
        asked = f"asks for {gpus} GPUs" if gpus else "asks for a whole node"
        notes.append(f"a task {asked} and has {workers} workers, one on each GPU: that fits")
    return notes


def _time_notes(site: SiteConfig, cost: Forecast | None) -> list[str]:
    """Warn of tasks that will be cut: finished chunks are kept, but it costs starts and waiting."""
    if site.executor != "slurm" or cost is None or cost.longest_task <= 60 * site.minutes:
        return []
    return [
        f"the longest task is expected to take {cost.longest_task / 60:.0f} minutes, and "
        f"site.minutes = {site.minutes}: it would be cut and go on in another job; raise "
        "site.minutes, or lower site.candidates_per_task"
    ]


def _sbatch(resolved: Resolved, paths: RunPaths, tasks: int) -> list[dict[str, Any]]:
    """Return the sbatch texts of the first generation: one for each size of array, and how many.

    Where the cluster can be asked, arrays are split at its MaxArraySize; where not, only at the
    site's own limit.
    """
    site = resolved.site
    if site.executor != "slurm":
        return []
    from l2s_hpc.cluster.slurm import SlurmExecutor

    executor = SlurmExecutor(paths, site)
    try:
        largest: int | None = executor.most_tasks
    except Unreachable:
        largest = None
    size = min(tasks, largest or tasks, site.max_jobs or tasks)
    name = f"l2s-{resolved.config.name}-XXXXXXXX-000003"
    return [
        {
            "arrays": arrays,
            "tasks": length,
            "largest_array_of_cluster": largest,
            "text": executor.preview(name, length),
        }
        for arrays, length in _parts(tasks, size)
    ]


def _parts(tasks: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (number of arrays, tasks of each) of a generation: the full ones, and the rest."""
    whole, rest = divmod(tasks, size)
    if whole:
        yield whole, size
    if rest:
        yield 1, rest


def _many(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
