"""A run accepts one kind of GPU, unless the site says that it may be several, and one engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from l2s_hpc.controller.actions import Accept, Action, Fail, Submit
from l2s_hpc.controller.decide import MOST_ATTEMPTS, decide
from l2s_hpc.controller.judge import Observed
from l2s_hpc.errors import IncompleteError
from l2s_hpc.store.state import RunState
from tests.unit.events import (
    NOTHING,
    POLICY,
    RUNNING,
    accepted,
    again,
    failed,
    receipt,
    started,
    state_of,
)

FIRST = [*RUNNING, *(accepted(c, device="H100") for c in ("slow", "fast"))]
OF_A, OF_B = ("search", "a", 1), ("search", "b", 1)


OLD, NEW = ({"vllm": v, "torch": "2.13.0", "mergekit": "0.1.5"} for v in ("0.26.0", "0.32.0"))
BY_OLD = [
    *RUNNING,
    *(accepted(c, device="H100", engine=receipt(versions=OLD).engine) for c in ("slow", "fast")),
]


def decided(
    state: RunState,
    a: str,
    b: str,
    mixed: bool = False,
    versions: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
) -> list[Action]:
    """What is decided of tables of a and b, made on these devices, with these versions."""
    receipts = {
        OF_A: receipt("a", device=a, host="n7", versions=dict(versions[0])),
        OF_B: receipt("b", device=b, versions=dict(versions[1])),
    }
    return decide(state, Observed(receipts, {}), replace(POLICY, allow_mixed_gpus=mixed))


def test_a_table_of_another_gpu_does_not_count_and_is_nobodys_fault() -> None:
    other, same = decided(state_of(*FIRST), "A100", "H100")
    assert isinstance(other, Fail) and isinstance(same, Accept)
    assert (other.kind, other.counted, other.node) == ("device", False, "n7")
    assert other.message == "made on A100, and the run's scores are from H100"


def test_the_first_table_decides_also_among_those_of_one_look() -> None:
    first, second = decided(state_of(*RUNNING), "A100", "H100")[-2:]
    assert isinstance(first, Accept) and isinstance(second, Fail)
    assert second.message == "made on H100, and the run's scores are from A100"


def test_a_site_may_accept_several() -> None:
    found = decided(state_of(*FIRST), "A100", "H100", mixed=True)
    assert [type(action) for action in found] == [Accept, Accept]


def test_runs_of_before_take_the_kind_of_their_next_table() -> None:
    old = [*RUNNING, *(accepted(c) for c in ("slow", "fast"))]
    assert state_of(*old).device == ""
    assert [type(a) for a in decided(state_of(*old), "A100", "A100")] == [Accept, Accept]


def test_it_is_tried_on_another_node_and_then_the_search_pauses() -> None:
    wrong = {"kind": "device", "counted": False, "node": "n7"}
    once = [*FIRST, accepted("b", device="H100"), failed("a", **wrong)]
    (action,) = [a for a in decide(state_of(*once), NOTHING, POLICY) if isinstance(a, Submit)]
    assert action.candidates == (("a", 0, 2),) and action.avoid == ("n7",)
    often = state_of(*once, *again("a", 2, **wrong), *again("a", 3, **wrong))
    with pytest.raises(IncompleteError, match="another kind of GPU: try 3, node n7") as error:
        decide(often, NOTHING, POLICY)
    assert "site.allow_mixed_gpus=true" in (error.value.hint or "")


def test_a_table_of_another_engine_does_not_count_whatever_the_site_says() -> None:
    for mixed in (False, True):
        other, same = decided(state_of(*BY_OLD), "H100", "H100", mixed, (NEW, OLD))
        assert isinstance(other, Fail) and isinstance(same, Accept)
        assert (other.kind, other.counted) == ("version", False)
        assert other.message == (
            "made on mergekit 0.1, torch 2.13.0, vllm 0.32.0, and the run's scores are from "
            "mergekit 0.1, torch 2.13.0, vllm 0.26.0"
        )


def test_what_decides_no_token_may_change() -> None:
    other = OLD | {"python": "3.13.0", "transformers": "5.20.0", "mergekit": "0.1.9"}
    found = decided(state_of(*BY_OLD), "H100", "H100", versions=(other, OLD))
    assert [type(action) for action in found] == [Accept, Accept]


def test_runs_of_before_take_the_engine_of_their_next_table() -> None:
    assert state_of(*FIRST).engine == ""
    first, second = decided(state_of(*FIRST), "H100", "H100", versions=(NEW, OLD))
    assert isinstance(first, Accept) and isinstance(second, Fail)


def test_another_engine_pauses_the_search_and_says_what_to_do() -> None:
    wrong = {"kind": "version", "counted": False, "node": "n7"}
    once = [*BY_OLD, accepted("b", device="H100"), failed("a", **wrong)]
    (action,) = [a for a in decide(state_of(*once), NOTHING, POLICY) if isinstance(a, Submit)]
    assert action.avoid == (), "all nodes share the installation"
    often = [*once, *again("a", 2, **wrong), *again("a", 3, **wrong)]
    with pytest.raises(IncompleteError, match="another version of the engine: try 3") as error:
        decide(state_of(*often), NOTHING, POLICY)
    assert error.value.hint == "install the version of the run on the nodes, or start a new run"
    mended = decide(state_of(*often, started()), NOTHING, POLICY)
    assert [type(action) for action in mended] == [Submit]


def test_a_node_is_forgiven_its_gpu_when_the_command_is_given_again() -> None:
    """The site may allow it by now."""
    wrong = {"kind": "device", "counted": False, "node": "n7"}
    once = [*FIRST, accepted("b", device="H100"), failed("a", **wrong), started()]
    (action,) = [a for a in decide(state_of(*once), NOTHING, POLICY) if isinstance(a, Submit)]
    assert action.avoid == ()


@pytest.mark.parametrize("kind", ["device", "version"])
def test_however_often_no_candidate_is_given_up_for_it(kind: str) -> None:
    wrong = {"kind": kind, "counted": False, "node": "n7"}
    events = [*FIRST, accepted("b", device="H100"), failed("a", **wrong)]
    for number in range(2, MOST_ATTEMPTS + 3):
        events += again("a", number, **wrong)
    mended = decide(state_of(*events, started()), NOTHING, POLICY)
    assert [type(action) for action in mended] == [Submit]
