"""Many swaps in one engine: the live model is the merged one, and answers as a fresh engine does.

Ids are compared, never accuracy: a model with a stale head is almost as accurate.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from l2s_hpc.recipes.recipe import average
from l2s_hpc.records import Recipe
from l2s_hpc.task.vllm_engine import VllmEngine
from tests.engine.common import (
    BLOCK,
    asked,
    fresh_ids,
    ids_of,
    merged,
    opened,
    saved,
    spied,
    task_arithmetic,
)
from tests.engine.live import hash_of, live_hash
from tests.helpers import recipe_of, search_config, toy_models

TIES = search_config(
    "ties",
    [{"parameter": "weight"}, {"parameter": "density", "low": 0.05, "high": 1.0}],
    parameters={"normalize": False},
)
DARE = search_config(
    "dare_ties",
    [{"parameter": "weight"}, {"parameter": "density", "low": 0.05, "high": 1.0}],
    parameters={"normalize": False},
    seed=5,
)
SLERP = search_config("slerp", [{"parameter": "t", "low": 0.0, "high": 1.0}], base="slow")
PAIRS = (
    (0.18, 0.76),
    (2.0, 2.0),
    (0.9, 0.2),
    (-0.12, 1.16),
    (2.6, 1.4),
    (0.1, 0.9),
    (1.4, 2.6),
    (0.3, 0.6),
)
"""Weights of slow and fast: some make good models, some make texts that one wrong bit changes."""
OTHERS = (
    average({"slow": 2.0, "fast": 1.0}, {"slow": "", "fast": ""}),
    recipe_of(SLERP, (0.4,)),
    recipe_of(DARE, (0.7, 0.6, 0.5, 0.4)),
    average({"slow": 0.5, "fast": 1.0}, {"slow": "", "fast": ""}),
    recipe_of(SLERP, (0.8,)),
    recipe_of(DARE, (2.0, 0.4, 1.6, 0.8)),
)
COMPARED = (2, 3, 16, 17)
"""The swaps after which a fresh engine is asked too: two of task arithmetic, two of TIES."""


def recipes() -> list[Recipe]:
    """Task arithmetic and TIES by turns, with the other methods in between."""
    found: list[Recipe] = []
    for n, (slow, fast) in enumerate(PAIRS):
        ties = recipe_of(TIES, (slow, 0.3 + 0.08 * n, fast, 0.9 - 0.08 * n))
        found += [task_arithmetic(slow, fast), ties, *OTHERS[n - 2 : n - 1 if n > 1 else 0]]
    return found


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    shared = opened()
    yield shared
    shared.close()


def test_every_swap_makes_the_merged_model_the_live_one(engine: VllmEngine, tmp_path: Path) -> None:
    models, candidates = toy_models(), recipes()
    methods = [recipe.config["merge_method"] for recipe in candidates]
    assert len({recipe.candidate for recipe in candidates}) == len(candidates) >= 20
    assert [methods[n] for n in COMPARED] == 2 * ["task_arithmetic", "ties"]
    assert {"linear", "slerp", "dare_ties"} <= set(methods)
    answers = []
    for number, recipe in enumerate(candidates):
        answers.append(ids_of(engine, recipe))
        assert live_hash(engine._llm) == hash_of(merged(recipe, models)), f"swap {number}"
    for number in COMPARED:
        folder = saved(tmp_path / str(number), candidates[number], models)
        assert answers[number] == fresh_ids(folder, asked(engine)), f"swap {number}"
    # What is left of another candidate would be seen: they answer in different ways.
    assert len({str(answers[n]) for n in COMPARED}) == len(COMPARED)
    assert len(set(map(str, answers))) >= 8


def test_the_prompts_hit_the_cache(engine: VllmEngine) -> None:
    """Without this the test above would show nothing about the cache."""
    prompts = asked(engine)
    assert all(len(prompt) > BLOCK for prompt in prompts)
    engine.load(task_arithmetic(0.1, 0.9))
    with spied(engine) as spy:
        engine.generate(prompts)
    # The first of each three is computed; the others find its block, within the same chunk.
    assert [spy.cached[n] for n in range(6)] == [0, BLOCK, BLOCK] * 2


def test_the_reader_sees_a_single_changed_weight(engine: VllmEngine) -> None:
    """The hash of the live model is no better than what it reads."""
    recipe = task_arithmetic(0.4, 0.5)
    tensors = merged(recipe, toy_models())
    for name in ("model.layers.2.self_attn.k_proj.weight", "model.layers.0.mlp.up_proj.weight"):
        changed = tensors | {name: tensors[name].clone()}
        changed[name][-1, -1] += 1.0
        engine._swap(iter(changed.items()), "changed")
        assert live_hash(engine._llm) == hash_of(changed) != hash_of(tensors)
    engine.load(recipe)
    assert live_hash(engine._llm) == hash_of(tensors)
