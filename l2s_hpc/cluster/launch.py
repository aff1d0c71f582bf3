"""What a Slurm job runs: `python -m l2s_hpc.cluster.launch RUN TASKS`, which becomes the worker.

TASKS is what the keys of the array's tasks begin with; the element's index is the rest.
"""

from __future__ import annotations

import os
import sys

from l2s_hpc.store.layout import task_key


def launch(run: str, task: str) -> None:
    """Replace this process by the worker of one task.

    `exec` instead of a child: Slurm's signals reach the worker itself. The truth of a task is its
    receipts.
    """
    os.execv(sys.executable, [sys.executable, "-uPm", "l2s_hpc.task.worker", run, task])


if __name__ == "__main__":
    # An array of one is no array to Slurm.
    launch(sys.argv[1], task_key(sys.argv[2], int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)))
