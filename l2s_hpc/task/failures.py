"""What went wrong with a candidate, as its receipt says it."""

from __future__ import annotations

import traceback
from typing import Literal

from l2s_hpc.errors import L2SError
from l2s_hpc.records import Failure
from l2s_hpc.task.engines import EngineError, MergeError
from l2s_hpc.task.node import NoRoom


def failure_of(error: Exception) -> Failure:
    """Return what a receipt says of an error; of one that is not ours, the end of its trace."""
    if isinstance(error, NoRoom):
        # Nobody's fault: the candidate comes again when there is room. Another disk that is full,
        # the node's own, is an error like any other.
        return Failure(kind="interrupted", message=f"no room: {error}")
    trace = "" if isinstance(error, L2SError) else traceback.format_exc()[-4000:]
    return Failure(kind=_kind(error), message=f"{type(error).__name__}: {error}", trace=trace)


def _kind(error: Exception) -> Literal["merge", "engine", "write", "other"]:
    match error:
        case MergeError():
            return "merge"
        case EngineError():
            return "engine"
        case OSError():
            return "write"
    return "other"
