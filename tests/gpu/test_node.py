"""A GPU node, seen by `l2s doctor --node`."""

from __future__ import annotations

import json
import subprocess
import sys


def test_two_candidates_go_through_the_live_engine() -> None:
    words = ["doctor", "--node", "--json", "--set", "site.device=cuda", "--set", "site.engine=vllm"]
    done = subprocess.run(
        [sys.executable, "-m", "l2s_hpc.cli.main", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 0, rows
    assert rows["GPU"]["result"] == rows["vllm"]["result"] == "ok"
    assert rows["self-test task_arithmetic"]["found"].startswith("16 answers, ")
