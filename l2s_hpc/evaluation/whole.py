"""All items of benchmarks, undivided: what `l2s evaluate` asks of a checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from l2s_hpc.evaluation.benchmarks import load
from l2s_hpc.evaluation.manifests import source
from l2s_hpc.evaluation.splits import draw, first_questions
from l2s_hpc.records import Item


def all_items(
    names: Sequence[str],
    files: Mapping[str, str],
    seed: int = 0,
    most: int | None = None,
    other_snapshots: Collection[str] = (),
) -> tuple[Item, ...]:
    """Return the items of benchmarks, whatever split they may belong to in a search.

    They stand benchmark by benchmark, in the order of the seed's draw; all copies of a question
    stand together.

    Args:
        names: of the benchmarks.
        files: the site's local files by benchmark name.
        seed: orders the questions of each benchmark.
        most: at most so many questions of each benchmark, the first in that order; None: all.
        other_snapshots: those whose problems may be others than the published ones.

    Raises:
        UserError: a benchmark is unknown, not here or not as published.
    """
    found: list[Item] = []
    for name in names:
        problems = load(source(name, files), files, name in other_snapshots)
        items = [problem.item for problem in problems]
        items.sort(key=lambda item: (draw(seed, item.question_hash), item.item))
        found += first_questions(items, most)
    return tuple(found)
