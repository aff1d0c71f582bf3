"""The nodes of a run side by side: what they took, and which of them answers unlike the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc import open_run
from l2s_hpc.analysis.nodes import differences, nodes
from l2s_hpc.controller.forecast import speed_from
from l2s_hpc.records import Receipt
from l2s_hpc.store.files import read_json, write_json

from .test_analysis_builder import SmallRun

USAGE = {"tokens_per_second": 900.0, "gpu_idle": 0.25, "batch_occupancy": 0.5, "peak_gpu_gb": 30.0}


def receipt(host: str, fingerprint: str = "", device: str = "H100", **more: Any) -> Receipt:
    known: dict[str, Any] = {
        "run": "r",
        "evaluation": "search",
        "generation": 0,
        "candidate": "c",
        "attempt": 1,
        "protocol": "p",
        "host": host,
        "device": device,
        "versions": {},
        "seconds": {"start": 40.0, "generate": 60.0},
        "started": "",
        "ended": "",
        "fingerprint": fingerprint,
    }
    return Receipt.model_validate(known | more)


def said(*prints: tuple[str, str]) -> list[str]:
    return differences(nodes(receipt(host, fingerprint) for host, fingerprint in prints))


def test_medians_and_peaks() -> None:
    one, two, other = nodes(
        [
            receipt("n2", "f"),
            receipt("n1", "f", usage=USAGE),
            receipt("n1", "f", usage=USAGE | {"tokens_per_second": 500.0, "peak_gpu_gb": 40.0}),
            receipt("n1", "f", usage={"tokens_per_second": 100.0, "peak_gpu_gb": 20.0}),
            receipt("n1", "g", device="A100"),
        ]
    )
    assert (one.device, one.host, one.candidates) == ("A100", "n1", 1)
    assert (two.host, two.candidates, two.fingerprint) == ("n1", 3, "f")
    assert (two.tokens_per_second, two.gpu_idle, two.batch_occupancy) == (500.0, 0.25, 0.5)
    assert (two.peak_gpu_gb, two.peak_host_gb) == (40.0, None)
    assert (other.host, other.tokens_per_second, other.gpu_idle) == ("n2", None, None)


def test_what_a_warm_worker_skips_is_in_no_median() -> None:
    seconds = {"start": 40.0, "merge": 1.0, "other": 7.0}
    warm = {"start": 0.01, "merge": 3.0}
    (node,) = nodes([receipt("n", seconds=s) for s in (warm, seconds, warm)])
    assert node.seconds == {"start": 40.0, "merge": 3.0, "other": 7.0}
    assert list(node.seconds) == ["start", "merge", "other"]
    (idle,) = nodes([receipt("n", seconds={"start": 0.0})])
    assert idle.seconds == {"start": 0.0}


def test_equal_nodes_are_not_named() -> None:
    assert said() == said(("n1", "f")) == said(("n1", "f"), ("n2", "f"), ("n3", "")) == []


def test_the_one_that_differs_is_named() -> None:
    peers = [(f"n{n}", "f") for n in range(5)]
    (sentence,) = said(*peers, ("n9", "other"))
    assert sentence == (
        "Node n9 answers the canary differently from the 5 other nodes with the same device "
        "(H100): its results may not be comparable; not refused."
    )
    two = said(*peers, ("n8", "x"), ("n9", "y"))
    assert [s.split()[1] for s in two] == ["n8", "n9"]
    assert all("differently from 5 of the 6 other nodes" in s for s in two)


def test_other_devices_may_answer_otherwise() -> None:
    found = [receipt("n1", "f"), receipt("n2", "f"), receipt("n3", "g", device="A100")]
    assert differences(nodes(found)) == []


def test_without_a_majority_nobody_is_the_odd_one() -> None:
    (sentence,) = said(("n1", "f"), ("n2", "g"))
    assert "The 2 nodes with H100 answer the canary in 2 ways" in sentence
    assert "results of n1, n2 may not be comparable" in sentence


def test_a_node_that_contradicts_itself_is_named() -> None:
    (sentence,) = said(("n1", "f"), ("n1", "f"), ("n1", "g"), ("n2", "f"))
    assert sentence.startswith("Node n1 has answered the canary in 2 ways")


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=9))
def test_named_are_those_outside_the_majority(prints: list[str]) -> None:
    named = said(*((f"n{n}", fingerprint) for n, fingerprint in enumerate(prints)))
    few = min(set(prints), key=prints.count)
    if len(set(prints)) == 1:
        assert named == []
    elif prints.count("a") == prints.count("b"):
        assert len(named) == 1 and "none of them" in named[0]
    else:
        assert [s.split()[1] for s in named] == [
            f"n{n}" for n, fingerprint in enumerate(prints) if fingerprint == few
        ]


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    """A run whose receipts tell what engines tell; the second worker was warm."""
    small = SmallRun(tmp_path / "run")
    small.search(generations=1)
    for number, path in enumerate(sorted((tmp_path / "run" / "receipts").rglob("*.json"))):
        found = read_json(path)
        found |= {"host": f"n{number % 3}", "fingerprint": "odd" if number % 3 == 2 else "usual"}
        found["usage"] = USAGE | {"gpu_idle": 0.1 * (number % 2)}
        start = 40.0 * (number % 2 == 0)
        found["seconds"] = {"start": start, "merge": 2.0, "load": 1.0, "generate": 24.0}
        found["seconds"] |= {"grade": 50.0, "write": 7.0}
        found["device_seconds"] = start + 30.0
        write_json(path, found)
    return small


def test_a_run_shows_its_nodes(run: SmallRun) -> None:
    found = open_run(run.paths.folder).nodes()
    assert [(node.host, node.candidates) for node in found] == [("n0", 2), ("n1", 2), ("n2", 2)]
    (sentence,) = differences(found)
    assert "Node n2 answers the canary differently from the 2 other nodes" in sentence


def test_idle_time_is_weighted_by_device_time(run: SmallRun) -> None:
    """Three tables took 70 s each and tell 0 %, three took 30 s and tell 10 %."""
    assert open_run(run.paths.folder).cost().gpu_idle == pytest.approx(0.1 * 30 / (70 + 30))


def test_grading_beside_the_next_candidate_costs_no_device(run: SmallRun) -> None:
    found = open_run(run.paths.folder).cost()
    assert found.device_hours == pytest.approx(3 * (70 + 30) / 3600)
    assert found.evaluations == {"search": 300.0} and found.seconds_per_candidate == 50.0
    assert found.seconds["grade"] == 6 * 50.0


def test_an_answer_costs_what_the_device_was_there_for_it(run: SmallRun) -> None:
    """All but start, merge and load: 27 s for 12 answers."""
    speed = speed_from(run.paths.folder, "p")
    assert speed is not None
    assert (speed.start, speed.candidate, speed.answer) == (40.0, 3.0, 27 / 12)
