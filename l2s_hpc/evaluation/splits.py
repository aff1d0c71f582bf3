"""How the questions of a job are divided into search, selection and report."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction

from l2s_hpc.config import SearchConfig, SplitsConfig
from l2s_hpc.errors import UserError
from l2s_hpc.evaluation.benchmarks import SPLITS, Benchmark, Problem
from l2s_hpc.records import Item

Drawn = dict[str, str | None]
"""The split of each question, by its hash; None: in none of them."""


def splits(
    config: SearchConfig, benchmarks: Mapping[str, Benchmark]
) -> dict[str, tuple[Item, ...]]:
    """Return the items of each split of a job.

    A question falls into one split wherever it stands, so copies and overlapping benchmarks cannot
    leak. The seed draws which questions, and of each level or subject of a benchmark a split gets
    its share within one question. Benchmarks are drawn from the smallest to the largest; a question
    that was drawn already stays where it is. The first items of a split are a fair sample of it.

    Args:
        config: the job.
        benchmarks: the job's benchmarks by name.

    Raises:
        UserError: a split is empty, or the splits that benchmarks bring overlap.
    """
    problems = {name: benchmarks[name].problems for name in config.benchmarks}
    drawn = _own(problems)
    sizes = {name: len({p.item.question_hash for p in problems[name]}) for name in problems}
    for name in sorted(problems, key=lambda name: (sizes[name], name)):
        if not _has_own(problems[name]):
            levels = _levels(problem.item for problem in problems[name])
            _draw_split(levels, config.splits, _seed(config), drawn)
    divided: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for name in config.benchmarks:
        for split, chosen in divided.items():
            items = [p.item for p in problems[name] if drawn[p.item.question_hash] == split]
            chosen += _ordered(items, config, split, not _has_own(problems[name]))
    for split, found in divided.items():
        if not found:
            raise UserError(
                f"the split '{split}' is empty", hint=f"raise splits.{split}.share in the job"
            )
    return {split: tuple(found) for split, found in divided.items()}


def _seed(config: SearchConfig) -> int:
    own = config.splits.seed
    return config.seed if own is None else own


def draw(seed: int, question: str) -> float:
    """Return a number in [0, 1) that depends on seed and question hash alone."""
    digest = hashlib.sha256(f"{seed}:{question}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def another_order(items: Sequence[Item], seed: int) -> tuple[Item, ...]:
    """Return the items of a split in another order, drawn by the seed over all benchmarks.

    Chunks then hold other items, and within a chunk other prompts share running batches: for the
    scores that is a neutral change.
    """
    found = sorted(items, key=lambda i: draw(seed, f"noise:{i.benchmark}:{i.item}"))
    return tuple(reversed(items) if found == list(items) else found)


def first_questions(items: Sequence[Item], most: int | None) -> list[Item]:
    """Return the items of the first `most` questions (all: None), copies of a question together."""
    questions = list(dict.fromkeys(item.question_hash for item in items))[:most]
    place = {question: number for number, question in enumerate(questions)}
    kept = [item for item in items if item.question_hash in place]
    return sorted(kept, key=lambda item: (place[item.question_hash], item.item))


def _has_own(problems: Sequence[Problem]) -> bool:
    """Whether a benchmark brings its own splits."""
    return any(problem.split for problem in problems)


def _own(problems: Mapping[str, Sequence[Problem]]) -> Drawn:
    """Return the splits that benchmarks bring; they must not contradict each other."""
    owner: dict[str, tuple[str, str]] = {}
    for name, found in problems.items():
        for problem in found:
            if problem.split is None:
                continue
            item = problem.item
            first = owner.setdefault(item.question_hash, (problem.split, name))
            if first[0] != problem.split:
                raise UserError(
                    f"splits overlap: a question of {name}/{problem.split} stands in "
                    f"{first[1]}/{first[0]} too: {item.question[:60]!r}",
                    hint="mend the 'split' fields of the benchmark's file",
                )
    return {question: split for question, (split, _) in owner.items()}


def _levels(items: Iterable[Item]) -> dict[str, list[str]]:
    """Return the questions of each level; one that stands at several belongs to the first."""
    level_of: dict[str, str] = {}
    for item in items:
        level = item.level or ""
        level_of[item.question_hash] = min(level, level_of.get(item.question_hash, level))
    found: dict[str, list[str]] = {level: [] for level in sorted(set(level_of.values()))}
    for question, level in level_of.items():
        found[level].append(question)
    return found


def _draw_split(
    levels: Mapping[str, Sequence[str]], wanted: SplitsConfig, seed: int, drawn: Drawn
) -> None:
    """Draw a benchmark's questions that are not drawn yet into the splits, level by level."""
    columns = [*SPLITS, None]
    shares = [Fraction(str(getattr(wanted, split).share)) for split in SPLITS]
    shares.append(max(1 - sum(shares, Fraction(0)), Fraction(0)))
    targets = _targets([len(questions) for questions in levels.values()], shares)
    for questions, target in zip(levels.values(), targets, strict=True):
        there = Counter(drawn[question] for question in questions if question in drawn)
        free = sorted((q for q in questions if q not in drawn), key=lambda q: (draw(seed, q), q))
        room = [max(t - there[column], 0) for t, column in zip(target, columns, strict=True)]
        while sum(room) > len(free):  # questions drawn before have filled another split too much
            room[room.index(max(room))] -= 1
        places = [column for column, count in zip(columns, room, strict=True) for _ in range(count)]
        drawn.update(zip(free, places, strict=True))


def _targets(sizes: Sequence[int], shares: Sequence[Fraction]) -> Iterator[list[int]]:
    """Yield how many questions of each level every split gets: its share, rounded up or down.

    What rounding leaves over goes to the splits that lack most so far, so that the splits get their
    share of the whole benchmark too, and not of the large levels alone.
    """
    lack = [Fraction(0)] * len(shares)
    for size in sizes:
        exact = [share * size for share in shares]
        given = [int(value) for value in exact]
        lack = [old + e - g for old, e, g in zip(lack, exact, given, strict=True)]
        uneven = [n for n, value in enumerate(exact) if value.denominator > 1]
        uneven.sort(key=lambda n: -lack[n])
        for n in uneven[: size - sum(given)]:
            given[n] += 1
            lack[n] -= 1
        yield given


def _ordered(items: Sequence[Item], config: SearchConfig, split: str, mixed: bool) -> list[Item]:
    """Return a split's items of one benchmark in the order of their draw, at most so many.

    Where they are `mixed`, the first of them hold each level's share, wherever one cuts.
    """
    by_draw = sorted(items, key=lambda i: (draw(_seed(config), i.question_hash), i.item))
    if mixed:
        place = {q: number for number, q in enumerate(_mixed(_levels(by_draw)))}
        by_draw.sort(key=lambda i: place[i.question_hash])
    return first_questions(by_draw, getattr(config.splits, split).max_items)


def _mixed(levels: Mapping[str, Sequence[str]]) -> list[str]:
    """Return all questions in one order in which each level keeps its share within one question.

    Of the levels that are not ahead of their share, the next is the one that would fall behind
    first: earliest deadline first, as for tasks that share a processor in fixed proportions.
    """
    queues = [list(questions) for questions in levels.values()]
    total = sum(map(len, queues))
    taken = [0] * len(queues)
    found = []
    for step in range(1, total + 1):
        due = [
            (-(-(taken[n] + 1) * total // len(queue)), n)
            for n, queue in enumerate(queues)
            if taken[n] < len(queue) and taken[n] * total < step * len(queue)
        ]
        _, level = min(due)
        found.append(queues[level][taken[level]])
        taken[level] += 1
    return found
