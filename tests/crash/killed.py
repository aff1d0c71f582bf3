"""Runs `l2s`, and kills it with SIGKILL at the n-th place where a kill could hurt.

With `PLACE_SIGNAL=SIGSTOP` it only freezes there.

    python killed.py N LOG run JOB --site S --run DIR …

The places: before and after every durable step of a file (its temporary file, its link, its
rename) and before and after every submission. The place's name is appended to LOG before the kill.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from l2s_hpc.cluster import slurm
from l2s_hpc.store import files

COUNT = int(sys.argv[1])
LOG = Path(sys.argv[2])
passed = 0


def place(name: str) -> None:
    global passed
    passed += 1
    if passed == COUNT:
        with LOG.open("a", encoding="utf-8") as log:
            log.write(f"{name}\n")
        os.kill(os.getpid(), signal.Signals[os.environ.get("PLACE_SIGNAL", "SIGKILL")])


def around(owner: Any, name: str) -> None:
    """Make a function of a module or class two places."""
    real: Callable[..., Any] = getattr(owner, name)

    def watched(*arguments: Any, **options: Any) -> Any:
        place(f"before {name}")
        result = real(*arguments, **options)
        place(f"after {name}")
        return result

    setattr(owner, name, watched)


def main() -> None:
    around(files, "_write_text")
    around(files, "_link")
    around(files, "_fsync")
    around(files.Path, "replace")
    around(slurm.SlurmExecutor, "submit")
    around(slurm.SlurmExecutor, "_submit")
    sys.argv = ["l2s", *sys.argv[3:]]
    from l2s_hpc.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
