"""A GPU node, seen by `l2s doctor --node`."""

from __future__ import annotations

from tests.helpers import doctor_node, findings


def test_two_candidates_go_through_the_live_engine() -> None:
    done = doctor_node("--json", "--set", "site.device=cuda", "--set", "site.engine=vllm")
    rows = findings(done)
    assert done.returncode == 0, rows
    assert rows["GPU"]["result"] == rows["vllm"]["result"] == "ok"
    assert rows["self-test task_arithmetic"]["found"].startswith("16 answers, ")
