"""Merge slow- and fast-thinking language models by evolutionary search on a Slurm cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l2s_hpc.analysis.run import Run, open_run
    from l2s_hpc.analysis.runs import Runs, open_runs

__all__ = ["Run", "Runs", "open_run", "open_runs"]


def __getattr__(name: str) -> Any:
    # Importing the package must stay cheap: polars comes with the first use.
    if name in __all__:
        from l2s_hpc.analysis import run, runs

        return getattr(runs, name) if hasattr(runs, name) else getattr(run, name)
    raise AttributeError(f"module 'l2s_hpc' has no attribute '{name}'")
