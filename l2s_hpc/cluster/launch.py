"""What is submitted: a function that submitit finds by name, and that becomes the worker."""

from __future__ import annotations

import os
import sys


def launch(run: str, task: str) -> None:
    """Replace this process by the worker of one task.

    `exec` instead of a child: Slurm's signals reach the worker itself, and no result is pickled.
    The truth of a task is its receipts.
    """
    os.execv(sys.executable, [sys.executable, "-m", "l2s_hpc.task.worker", run, task])
