"""Writes and finishes in the background what was generated, while the engine goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType


class Ended(BaseException):
    """What was done in the background has ended the task, as it would have in the foreground."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class Outcome:
    """Keeps the first error of what is done under it, for who asks later."""

    def __init__(self) -> None:
        self._error: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._error = self._error or error
        return True

    def check(self) -> None:
        """Raise what was kept, if anything was."""
        if self._error is not None:
            raise self._error


class Background:
    """A thread that does one thing after another, for a main thread that hears signals.

    At most one thing is under way: who gives another waits for the one before. The main thread may
    be interrupted anywhere: nothing but the queue decides what was given.
    """

    def __init__(self, name: str = "background") -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def give(self, work: Callable[[], None]) -> None:
        """Have this done, once what was given before is done.

        Args:
            work: catches all that it raises itself; see `fail`.

        Raises:
            Ended: what was given before has failed; this is not done.
        """
        self.wait()
        self._work.put(work)

    def fail(self, error: BaseException) -> None:
        """Let the main thread know, by its next call, that this ends the task."""
        self._error = error

    def check(self) -> None:
        """Raise `Ended` if something has failed that was not told yet."""
        error, self._error = self._error, None
        if error is not None:
            raise Ended(error)

    def wait(self) -> None:
        """Wait until nothing is under way, and `check`."""
        self.settled()
        self.check()

    def settled(self, seconds: float | None = None) -> bool:
        """Wait, at most so many seconds; return whether nothing is under way."""
        done = threading.Event()
        self._work.put(done.set)
        return done.wait(seconds)

    def _run(self) -> None:
        while True:
            self._work.get()()
