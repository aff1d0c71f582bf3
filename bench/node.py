"""What does a candidate cost on a node? `python bench/node.py --shape 7B --out node-7B.json`.

Two pipelines on the same machine, with the same settings of vLLM and the same prompts: the one
through checkpoints (mergekit writes the merged model to disk, a fresh process starts vLLM on it)
and ours (the engine of this package, which stays warm). Models have random weights of real shapes;
how long answers are is taken from recorded ones (`bench/shapes.py`). Prints Markdown tables and
checks; asserts nothing. Needs a GPU, vLLM and mergekit, and for 7B 48 GB of memory or disk for the
parents and 16 GB for the checkpoint; with `--shape toy` a CPU will do.

Each pipeline is a process of its own (`--stage`), so that it finds the GPU free. What is favourable
to the checkpoints: they are in the page cache when vLLM reads them, importing mergekit is not
counted, and vLLM finds its compiled code, which our engine has paid for before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import shapes
from node_report import report
from node_stages import STAGES, Plan, cache, save

METHODS = ("task_arithmetic", "ties")
_LATE_SECONDS = 25.0
"""How long a stage may go on when the time is over."""


def main() -> None:
    """Measure both pipelines, or do one stage of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=shapes.SHAPES, default="toy")
    parser.add_argument("--method", choices=(*METHODS, "both"), default="both")
    parser.add_argument("--candidates", type=int, default=5, help="of each method, ours")
    parser.add_argument("--full", type=int, default=1, help="of them generate whole answers")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=540, help="no new step after these")
    parser.add_argument("--placement", choices=("device", "host"), help="of the parents, forced")
    parser.add_argument("--folder", help="for parents and checkpoints, instead of a temporary one")
    parser.add_argument("--out", help="a JSON file for all figures; logs go beside it")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--born", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        plan = json.loads((arguments.work / "plan.json").read_text(encoding="utf-8"))
        STAGES[arguments.stage](plan | {"born": arguments.born})
        sys.stdout.flush()
        os._exit(0)  # the engine's threads are nobody's business now
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Do stage after stage while there is time; print and write what there is."""
    methods = METHODS if arguments.method == "both" else (arguments.method,)
    found: dict[str, Any] = {"shape": arguments.shape, "seed": {}}
    with folders(arguments.shape, arguments.folder) as (work, parents, merged):
        plan: Plan = {
            **{name: getattr(arguments, name) for name in ("shape", "candidates", "full", "items")},
            "placement": arguments.placement,
            "methods": methods,
            "work": str(work),
            "parents": str(parents),
            "merged": str(merged),
            "deadline": time.time() + arguments.seconds,
        }
        stages = Stages(plan, Path(arguments.out) if arguments.out else None)
        found["make"] = stages.run("make")
        plan["device"] = found["make"].get("device", "cpu")
        found["ours"] = stages.run("ours")
        generate = [c["generate"] for c in found["ours"].get("candidates", ()) if c["full"]]
        for method in reversed(methods) if generate else ():
            started = time.time()
            plan["method"] = method
            found["seed"][method] = stages.run("merge")
            if found["seed"][method].get("done") and exchange(plan):
                found["seed"][method] |= stages.run("fresh")
            if plan["deadline"] - time.time() < 1.1 * (time.time() - started):
                break
        found["same"] = {m: same(work, m) for m in methods if m in found["seed"]}
    found["failed"] = stages.failed
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(report(found))


@contextmanager
def folders(shape: str, given: str | None) -> Iterator[tuple[Path, Path, Path]]:
    """Yield folders for results, parents and a checkpoint, where there is room; then remove them.

    Parents go to memory if they fit there, the checkpoint goes to the disk.
    """
    size = shapes.model_bytes(shape)
    disk = given or tempfile.gettempdir()
    parents = _with_room({given: 3 * size} if given else {"/dev/shm": 3 * size, disk: 3 * size})
    beside = {parents: 3 * size}
    merged = _with_room({place: size + beside.get(place, 0) for place in (disk, "/dev/shm")})
    made = [Path(tempfile.mkdtemp(prefix="l2s-node-", dir=d)) for d in (disk, parents, merged)]
    try:
        yield made[0], made[1] / "parents", made[2] / "merged"
    finally:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)


def _with_room(sizes: Mapping[str, int]) -> str:
    for place, size in sizes.items():
        if Path(place).is_dir() and shutil.disk_usage(place).free > 1.03 * size + 2e8:
            return place
    wanted = (f"{size / 1e9:.0f} GB in {place}" for place, size in sizes.items())
    raise SystemExit(f"no room for {' or '.join(wanted)}")


class Stages:
    """Runs stages as processes; what one prints goes into a log of its own."""

    def __init__(self, plan: Plan, out: Path | None) -> None:
        self._plan, self._out = plan, out
        self.failed: dict[str, str] = {}

    def run(self, stage: str) -> dict[str, Any]:
        """Return what a stage has found until it ended, or until its time was over."""
        name = f"{stage}-{self._plan['method']}" if stage in ("merge", "fresh") else stage
        left = self._plan["deadline"] - time.time()
        if left < 0:
            self.failed[name] = "no time was left"
            return {}
        work = Path(self._plan["work"])
        save(work / "plan.json", self._plan)
        result = work / f"{stage}.json"
        result.unlink(missing_ok=True)
        log = self._out.with_suffix(f".{name}.log") if self._out else work / f"{name}.log"
        print(f"# {name} ({left:.0f} s left)", flush=True)
        started = time.time()
        command = [sys.executable, __file__, "--stage", stage, "--work", str(work)]
        with log.open("w", encoding="utf-8") as text:
            try:
                code = subprocess.run(
                    [*command, "--born", str(time.time())],
                    stdout=text,
                    stderr=subprocess.STDOUT,
                    env=self._environment(),
                    timeout=left + _LATE_SECONDS,
                ).returncode
            except subprocess.TimeoutExpired:
                code = -1
        if code:
            last = log.read_text(encoding="utf-8", errors="replace")[-3000:]
            self.failed[name] = f"exit code {code}" if code > 0 else "its time was over, or killed"
            print(f"# {name} failed: {self.failed[name]}\n{last}", flush=True)
        found = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
        return dict(found) | {"wall": time.time() - started}

    def _environment(self) -> dict[str, str]:
        # Sums over threads depend on how many there are, and torch counts them when it is imported.
        threads = {} if self._plan.get("device") == "cuda" else {"OMP_NUM_THREADS": "2"}
        return os.environ | {"TOKENIZERS_PARALLELISM": "false"} | threads


def exchange(plan: Plan) -> bool:
    """Put the checkpoint where our engine's model lay: vLLM keys its compiled code by the path."""
    merged = Path(plan["merged"])
    if "engine_folder" not in plan:
        (folder,) = (Path(cache(plan)) / "l2s-models").iterdir()
        plan["engine_folder"] = str(folder)
        shutil.copy(folder / "config.json", Path(plan["work"]) / "config.json")
        shutil.rmtree(folder)
        folder.symlink_to(merged)
    shutil.copy(Path(plan["work"]) / "config.json", merged)
    return True


def same(work: Path, method: str) -> dict[str, Any] | None:
    """Compare what the live engine and the fresh one generated for the same recipe."""
    files = [work / f"{pipeline}-{method}.ids" for pipeline in ("ours", "fresh")]
    if not all(file.exists() for file in files):
        return None
    mine, theirs = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    pairs = list(zip(mine, theirs, strict=True))
    other = [
        next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        for a, b in pairs
        if a != b
    ]
    return {
        "answers": len(pairs),
        "equal": len(pairs) - len(other),
        "tokens": sum(map(len, mine)),
        "first_differences": sorted(other)[:10],
    }


if __name__ == "__main__":
    main()
