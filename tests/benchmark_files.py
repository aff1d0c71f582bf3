"""Small jobs on benchmarks, and files of problems, for the tests of benchmarks and splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc.config import SearchConfig, validate
from l2s_hpc.evaluation import splits as splitting
from l2s_hpc.evaluation.benchmarks import load_all
from l2s_hpc.records import Item

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "benchmarks"
COUNTS = {
    "gsm8k": 1319,
    "aime24": 30,
    "math": 5000,
    "math500": 500,
    "minerva_math": 272,
    "olympiadbench": 675,
    "college_math": 2818,
}


def job(*benchmarks: str, **changes: Any) -> SearchConfig:
    """A job on these benchmarks; changes are its `seed`, or settings of splits by their names."""
    own = {name: changes[name] for name in changes if name in ("seed", "other_snapshots")}
    shares = {name: changes[name] for name in changes if name not in own}
    data: dict[str, Any] = {
        "name": "small",
        "benchmarks": benchmarks,
        "parents": {"slow": "x", "fast": "y"},
        "merge": {"method": "linear"},
        "genes": [{"parameter": "weight", "low": 0, "high": 1}],
    }
    return validate(SearchConfig, data | own | ({"splits": shares} if shares else {}))


def splits(config: SearchConfig, files: dict[str, str]) -> dict[str, tuple[Item, ...]]:
    """The splits of a job on a site with these files."""
    benchmarks = load_all(config.benchmarks, files, config.other_snapshots)
    return splitting.splits(config, benchmarks)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def numbered(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"question": f"What is {n}?", "answer": str(n)} for n in range(start, start + count)]


def owners(divided: dict[str, tuple[Item, ...]]) -> dict[str, set[str]]:
    """The splits in which each question stands."""
    found: dict[str, set[str]] = {}
    for split, items in divided.items():
        for item in items:
            found.setdefault(item.question_hash, set()).add(split)
    return found


def shared_files() -> dict[str, str]:
    """The files of the published benchmarks; the test is skipped where they are not."""
    files = {name: str(SHARED / f"{name}.jsonl") for name in COUNTS}
    missing = [name for name, file in files.items() if not Path(file).exists()]
    if missing:
        pytest.skip(f"no files of published benchmarks in {SHARED}: {', '.join(missing)}")
    return files
