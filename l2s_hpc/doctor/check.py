"""One thing that was looked at, what was found, and what to do about it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from l2s_hpc.errors import L2SError


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    result: Literal["ok", "warning", "failure"]
    found: str
    remedy: str = ""

    def row(self) -> dict[str, Any]:
        """Return it as a row of a table."""
        return asdict(self)


def ok(name: str, found: str) -> Check:
    """Return that all is well."""
    return Check(name, "ok", found)


def warning(name: str, found: str, remedy: str) -> Check:
    """Return that something may go wrong."""
    return Check(name, "warning", found, remedy)


def failure(name: str, found: str, remedy: str) -> Check:
    """Return that a search cannot run like this."""
    return Check(name, "failure", found, remedy)


def guarded(name: str, check: Callable[[], str | Check], remedy: str) -> Check:
    """Return a check's result; a known error is a failure, with its own hint where it has one."""
    try:
        found = check()
    except L2SError as error:
        where = f" in {error.path}" if error.path else ""
        return failure(name, error.message + where, error.hint or remedy)
    except (OSError, subprocess.SubprocessError) as error:
        return failure(name, str(error), remedy)
    return found if isinstance(found, Check) else ok(name, found)
