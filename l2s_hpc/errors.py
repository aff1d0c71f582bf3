"""Every error that a user can cause, with what went wrong, where, and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a full disk, a reached quota, and a disk that became read-only."""

NO_ROOM_EXIT = 75
"""The exit code of a worker that could not even leave a receipt (EX_TEMPFAIL)."""


class L2SError(Exception):
    """Something went wrong and we know what: the command prints it without a traceback.

    Attributes:
        hint: what the user can do about it.
        path: the file or folder that it is about.
        exit_code: the exit code of the command (1 = ours, 2 = the input is wrong, 3 = incomplete).
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", path: Path | str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.path = path

    def __str__(self) -> str:
        where = f"\n  in {self.path}" if self.path else ""
        hint = f"\n  Hint: {self.hint}" if self.hint else ""
        return f"{self.message}{where}{hint}"


class UserError(L2SError):
    """The user's input is wrong; nothing was written."""

    exit_code = 2


class IncompleteError(L2SError):
    """The run cannot go on now, and goes on with the same command once the cause is mended."""

    exit_code = 3


class Unreachable(IncompleteError):
    """Slurm gives no answer at the moment; nothing is known, so nothing is done or failed."""


class DamageError(L2SError):
    """A stored file is not what its receipt says."""

    exit_code = 3


class SubmitError(L2SError):
    """Slurm refused a job; the message is Slurm's own. The run stands and can go on."""

    exit_code = 2


class LimitError(SubmitError):
    """Slurm takes no more jobs now (a submit limit): fewer may fit, or the same ones later."""


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Return a hint that names the nearest valid word, or all of them if none is near."""
    options = sorted(valid)
    near = get_close_matches(word, options, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"valid: {', '.join(options)}"
