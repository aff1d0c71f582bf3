"""The cycle guard against a naive reading of its formula, and on recorded answers that cycle."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import count, pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from l2s_hpc.task.cycles import COPIES, CycleGuard

RECORDED = Path(__file__).parents[3] / "shared" / "upstream" / "sweep-1.5B" / "math500" / "0.2"


def windows(tokens: int, length: int) -> Iterator[tuple[int, int]]:
    """The windows that an answer of some length can fill, and how often each is looked at."""
    for k in count():
        window, step = tokens * 2**k, max(1, tokens // 8) * 2**k
        if window > length:
            return
        yield window, step


def has_period(ids: Sequence[int], period: int) -> bool:
    return all(ids[i] == ids[i - period] for i in range(period, len(ids)))


def naive(ids: Sequence[int], tokens: int) -> int | None:
    """The formula, word for word: every length, every window, every period, every id."""
    for n in range(1, len(ids) + 1):
        for window, step in windows(tokens, n):
            tail = ids[n - window : n]
            if n % step == 0 and any(has_period(tail, p) for p in range(1, window // COPIES + 1)):
                return n
    return None


def fed(ids: Sequence[int], tokens: int, size: int = 1) -> int | None:
    """Feed an answer in parts of one size until the guard ends it."""
    guard = CycleGuard(tokens)
    for start in range(0, len(ids), size):
        keep = guard.feed(ids[start : start + size])
        if keep is not None:
            return keep
    return None


letters = st.lists(st.integers(0, 1), max_size=12)
parts = st.tuples(letters, st.integers(1, 12))
texts = st.lists(parts, max_size=5).map(lambda ps: [x for part, n in ps for x in part * n])


@settings(max_examples=200)
@given(texts, st.integers(1, 24))
@example([0, 0, 1] * 9, 24)
@example([0, 1] + [0] * 11, 12)
def test_it_is_its_formula(ids: list[int], tokens: int) -> None:
    assert fed(ids, tokens, max(1, len(ids))) == naive(ids, tokens)


@given(texts, st.integers(1, 24), st.lists(st.integers(0, 60), max_size=9))
def test_the_division_into_feeds_does_not_matter(
    ids: list[int], tokens: int, cuts: list[int]
) -> None:
    guard, found = CycleGuard(tokens), None
    places = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    for start, end in pairwise(places):
        found = guard.feed(ids[start:end])
        assert found is None or found <= end
    assert found == CycleGuard(tokens).feed(ids) == fed(ids, tokens)


@given(
    st.lists(st.integers(0, 150_000), max_size=300),
    st.lists(st.integers(0, 3) | st.just(151_643), min_size=1, max_size=90),
    st.integers(1, 300),
)
def test_a_cycle_that_never_ends_is_found_in_time(
    before: list[int], part: list[int], tokens: int
) -> None:
    window, step = tokens, max(1, tokens // 8)
    while window < COPIES * len(part):
        window, step = 2 * window, 2 * step
    latest = len(before) + window + step
    ids = before + part * (latest // len(part) + 1)
    keep = fed(ids, tokens, 7)
    assert keep is not None and tokens <= keep <= latest


@given(st.integers(1, 40), st.integers(0, 3000))
def test_what_repeats_nothing_is_never_ended(tokens: int, length: int) -> None:
    assert fed(range(length), tokens, 97) is None


def test_long_repetition_that_is_not_exact_goes_on() -> None:
    ids = [token for n in range(400) for token in (7, 7, 7, 7, 7, 1000 + n)]
    assert fed(ids, 64) is None
    assert fed([7] * 200 + ids, 64) == 64


@pytest.mark.parametrize(("copies", "keep"), [(2, None), (3, 96)])
def test_two_copies_are_no_cycle(copies: int, keep: int | None) -> None:
    assert fed([*range(32)] * copies + [*range(99, 150)], 96) == keep


def test_once_found_it_stays() -> None:
    guard = CycleGuard(8)
    assert guard.feed([5] * 7) is None
    assert [guard.feed([5]), guard.feed([1, 2, 3]), guard.feed([])] == [8, 8, 8]


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_guard_needs_a_length(tokens: int) -> None:
    message = f"a cycle guard needs a positive number of tokens, not {tokens}"
    with pytest.raises(ValueError, match=message):
        CycleGuard(tokens)


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded answers are not here")
def test_recorded_answers_that_cycle_are_ended() -> None:
    """A merge's answers to 500 problems, 48 of which ran to the limit. Words stand for tokens."""
    (file,) = RECORDED.rglob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    words: dict[str, int] = {}
    ended = 0
    for line in lines:
        pieces = re.findall(r"\w+|\s+|[^\w\s]", line["code"][0])
        ids = [words.setdefault(piece, len(words)) for piece in pieces]
        keep = fed(ids, 256, 100)
        if keep is not None:
            ended += 1
            assert "".join(pieces[keep - 256 // COPIES : keep]) in "".join(pieces[: keep - 1])
    assert (len(lines), ended) == (500, 46)
