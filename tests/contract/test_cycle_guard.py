"""The cycle guard in the transformers engine, on a toy merge that may never end."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from l2s_hpc.evaluation.prompts import build
from l2s_hpc.recipes.recipe import average
from l2s_hpc.task.cycles import CycleGuard
from l2s_hpc.task.engines import Generated, open_engine
from tests.helpers import toy_items, toy_models, toy_protocol

MIDDLE = average({"slow": 1.0, "fast": 1.5}, {"slow": "", "fast": ""})
NEVER = 0
"""An id that the toy does not generate: without an end token it goes on to its budget."""


@cache
def answered(max_tokens: int, guard: int) -> list[tuple[Generated, list[int]]]:
    """Each answer, and its ids: the toy's tokenizer finds them again in the text."""
    engine = open_engine(
        toy_protocol(
            max_tokens=max_tokens,
            cycle_guard=guard,
            stop_ids=(NEVER,),
            engine_settings={"batch_size": 8, "threads": 1},
        ),
        toy_models(),
    )
    engine.load(MIDDLE)
    prompts = [build("chat", item.question, engine.tokenizer) for item in toy_items(8)]
    rows = [row[0] for row in engine.generate(prompts)]
    encode = engine.tokenizer.encode
    found = [(row, list(encode(row.text, add_special_tokens=False))) for row in rows]
    engine.close()
    assert all(row.n_output_tokens == len(ids) for row, ids in found)
    return found


def test_an_answer_is_cut_where_the_guard_would_have_ended_it() -> None:
    free, guarded = answered(300, 0), answered(300, 32)
    assert {row.finish_reason for row, _ in free} == {"length"}
    keeps = [CycleGuard(32).feed(ids) for _, ids in free]
    assert len(set(keeps) - {None}) > 1 and None in keeps
    for (before, ids), (after, kept), keep in zip(free, guarded, keeps, strict=True):
        assert kept == ids[:keep]
        reason = "length" if keep is None else "cycle"
        assert after == replace(
            before, text=after.text, n_output_tokens=keep or 300, finish_reason=reason
        )


def test_an_answer_whose_budget_ends_with_the_cycle_ran_to_its_budget() -> None:
    first = min(keep for _, ids in answered(300, 0) if (keep := CycleGuard(32).feed(ids)))
    assert {row.finish_reason for row, _ in answered(first, 32)} == {"length"}
    assert {row.finish_reason for row, _ in answered(first + 1, 32)} == {"length", "cycle"}
