"""The cycle guard: it sees that an answer repeats itself exactly, and where to end it."""

from __future__ import annotations

from collections.abc import Sequence

COPIES = 3
"""So often, at least, the repeated part must stand at the end."""


class CycleGuard:
    """Follows one answer while it is generated.

    The answer x is looked at in windows of w(k) = `tokens` * 2^k ids, k = 0, 1, …; window k each
    time that another step(k) = max(1, `tokens` // 8) * 2^k ids are there. It is ended at the first
    length n, a multiple of step(k), at which for some k the last w(k) ids have a period p of at
    most w(k) / COPIES: x[i] = x[i - p] for all i with n - w(k) + p <= i < n.

    So at least `tokens` ids at the end are three or more copies of one part. An exact cycle of
    any period p that begins at s and never ends is found: no later than at s + w + step, with w
    the smallest window of at least 3 p ids. A longer window takes longer cycles, and is looked at
    less often in proportion: the work per id grows with the logarithm of the answer's length.

    Where an answer is ended depends on its ids alone, not on how they were divided into feeds.
    """

    def __init__(self, tokens: int) -> None:
        """Make a guard that ends no answer which repeats itself for fewer than `tokens` ids.

        Raises:
            ValueError: `tokens` is not positive.
        """
        if tokens < 1:
            raise ValueError(f"a cycle guard needs a positive number of tokens, not {tokens}")
        self._tokens = tokens
        self._step = max(1, tokens // 8)
        self._next = self._step
        # One character for each id, because the search of `str` is linear and in C.
        self._text = ""
        self._new: list[int] = []
        self._length = 0
        self._keep: int | None = None

    def feed(self, ids: Sequence[int]) -> int | None:
        """Take the ids that follow; return how many of all ids to keep, None while all is well.

        Once a number was returned it stays. It may be smaller than the number of ids that were fed,
        where several came at once.

        Args:
            ids: generated token ids, each below 1,114,112.
        """
        if self._keep is None:
            self._new.extend(ids)
            self._length += len(ids)
            if self._length >= self._next:
                self._look()
        return self._keep

    def _look(self) -> None:
        """Look at every place that was reached, until a cycle is found."""
        self._text += "".join(map(chr, self._new))
        self._new.clear()
        while self._keep is None and self._next <= self._length:
            window, step = self._tokens, self._step
            while window <= self._next and self._next % step == 0:
                if _repeats(self._text, self._next - window, self._next):
                    self._keep = self._next
                    break
                window, step = 2 * window, 2 * step
            self._next += self._step


def _repeats(text: str, start: int, end: int) -> bool:
    """Whether text[start:end], of length w, has a period of at most w / COPIES.

    Its last w - w // COPIES characters are searched for further to the left. If the whole has such
    a period, the leftmost place gives one: the part that is searched for is at least twice as long
    as any such period, so by Fine and Wilf's theorem all its periods up to there are multiples of
    the smallest one, which then is the whole's too.
    """
    longest = (end - start) // COPIES
    last = start + longest
    found = text.find(text[last:end], start, end - 1)
    if found < 0:
        return False
    period = last - found
    return text[start + period : end] == text[start : end - period]
