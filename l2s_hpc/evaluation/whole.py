"""All items of benchmarks, undivided: what `l2s evaluate` asks of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from l2s_hpc.evaluation.benchmarks import Benchmark
from l2s_hpc.evaluation.splits import draw, first_questions
from l2s_hpc.records import Item


def all_items(
    benchmarks: Mapping[str, Benchmark], seed: int = 0, most: int | None = None
) -> tuple[Item, ...]:
    """Return the items of benchmarks, whatever split they may belong to in a search.

    They stand benchmark by benchmark, in the order of the seed's draw; all copies of a question
    stand together.

    Args:
        benchmarks: by name.
        seed: orders the questions of each benchmark.
        most: at most so many questions of each benchmark, the first in that order; None: all.
    """
    found: list[Item] = []
    for benchmark in benchmarks.values():
        items = [problem.item for problem in benchmark.problems]
        items.sort(key=lambda item: (draw(seed, item.question_hash), item.item))
        found += first_questions(items, most)
    return tuple(found)
