"""A run accepts one kind of GPU, unless the site says that it may be several, and one engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from l2s_hpc.controller.actions import Accept, Action, Fail, Submit
from l2s_hpc.controller.decide import MOST_ATTEMPTS, bad_nodes, decide
from l2s_hpc.controller.judge import Observed
from l2s_hpc.errors import IncompleteError
from l2s_hpc.records import engine_line
from l2s_hpc.store.state import RunState
from tests.unit.events import (
    NOTHING,
    POLICY,
    RUNNING,
    accepted,
    again,
    asked,
    failed,
    failure,
    intent,
    job,
    receipt,
    shared,
    started,
    state_of,
    submitted,
)

OF_A, OF_B = ("search", "a", 1), ("search", "b", 1)
OLD, NEW = ({"vllm": v, "torch": "2.13.0", "mergekit": "0.1.5"} for v in ("0.26.0", "0.32.0"))
FIRST = [
    *RUNNING,
    *(accepted(c, device="H100", engine=engine_line(OLD)) for c in ("slow", "fast")),
]


def decided(
    state: RunState,
    a: str,
    b: str,
    mixed: bool = False,
    versions: tuple[Mapping[str, str], Mapping[str, str]] = (OLD, OLD),
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


def test_others_wait_until_the_first_table_counts() -> None:
    """It may be damaged, and then nothing is known of the run yet."""
    (first,) = decided(state_of(*RUNNING), "A100", "H100")
    assert isinstance(first, Accept) and first.attempt.candidate == "a"
    torn = failed("a", kind="damaged", counted=False)
    (second,) = decided(state_of(*RUNNING, torn), "A100", "H100")
    assert isinstance(second, Accept) and second.attempt.candidate == "b"
    whole = accepted("a", device="A100", engine=engine_line(OLD))
    (other,) = decided(state_of(*RUNNING, whole), "A100", "H100")
    assert isinstance(other, Fail)
    assert other.message == "made on H100, and the run's scores are from A100"


def test_a_site_may_accept_several() -> None:
    found = decided(state_of(*FIRST), "A100", "H100", mixed=True)
    assert [type(action) for action in found] == [Accept, Accept]


def test_runs_of_before_take_the_kind_of_their_next_table() -> None:
    old = [*RUNNING, *(accepted(c) for c in ("slow", "fast"))]
    assert state_of(*old).device == ""
    assert [type(a) for a in decided(state_of(*old), "A100", "H100")] == [Accept]


def test_it_is_tried_on_another_node_and_then_the_search_pauses() -> None:
    wrong = {"kind": "device", "counted": False, "node": "n7"}
    once = [*FIRST, accepted("b", device="H100"), failed("a", **wrong)]
    (action,) = [a for a in decide(state_of(*once), NOTHING, POLICY) if isinstance(a, Submit)]
    assert action.candidates == (("a", 0, 2),) and action.avoid == ("n7",)
    often = state_of(*once, *again("a", 2, **wrong), *again("a", 3, **wrong))
    with pytest.raises(IncompleteError, match="another kind of GPU: try 3, node n7") as error:
        decide(often, NOTHING, POLICY)
    hint = error.value.hint or ""
    assert "site.allow_mixed_gpus=true" in hint
    assert hint.endswith("came from the rarer GPU, start a new run on the other kind (--run)")


@pytest.mark.parametrize("between", ["interrupted", "lost", "version"])
def test_other_failures_between_do_not_hide_another_gpu(between: str) -> None:
    """Not more than three engines are started in vain, whatever befalls a candidate besides."""
    wrong, other = {"kind": "device", "counted": False}, {"kind": between, "counted": False}
    events = [*FIRST, accepted("b", device="H100"), failed("a", **wrong)]
    events += [*again("a", 2, **other), *again("a", 3, **wrong), *again("a", 4, **other)]
    if between != "version":
        assert [type(action) for action in decide(state_of(*events), NOTHING, POLICY)] == [Submit]
        events += again("a", 5, **wrong)
    with pytest.raises(IncompleteError, match="tasks run on another"):
        decide(state_of(*events), NOTHING, POLICY)


def test_a_table_of_another_engine_does_not_count_whatever_the_site_says() -> None:
    for mixed in (False, True):
        other, same = decided(state_of(*FIRST), "H100", "H100", mixed, (NEW, OLD))
        assert isinstance(other, Fail) and isinstance(same, Accept)
        assert (other.kind, other.counted) == ("version", False)
        assert other.message == (
            "made on mergekit 0.1, torch 2.13.0, vllm 0.32.0, and the run's scores are from "
            "mergekit 0.1, torch 2.13.0, vllm 0.26.0"
        )


def test_what_decides_no_token_may_change() -> None:
    other = OLD | {"python": "3.13.0", "transformers": "5.20.0", "mergekit": "0.1.9"}
    found = decided(state_of(*FIRST), "H100", "H100", versions=(other, OLD))
    assert [type(action) for action in found] == [Accept, Accept]


def test_where_gpus_are_mixed_builds_of_one_version_are_alike() -> None:
    """GPUs of several kinds may need several builds of torch."""
    build, other = OLD | {"torch": "2.13.0+cu126"}, NEW | {"torch": "2.13.0+cu126"}
    one, another = decided(state_of(*FIRST), "A100", "A100", True, (build, other))
    assert isinstance(one, Accept) and isinstance(another, Fail) and another.kind == "version"
    strict, _ = decided(state_of(*FIRST), "H100", "H100", False, (build, OLD))
    assert isinstance(strict, Fail) and strict.kind == "version"
    cu130 = accepted("slow", device="H100", engine=engine_line(OLD | {"torch": "2.13.0+cu130"}))
    built, _ = decided(state_of(*RUNNING, cu130), "A100", "H100", True, (build, OLD))
    assert isinstance(built, Accept)


def test_another_engine_pauses_the_search_and_says_what_to_do() -> None:
    wrong = {"kind": "version", "counted": False, "node": "n7"}
    once = [*FIRST, accepted("b", device="H100"), failed("a", **wrong)]
    (action,) = [a for a in decide(state_of(*once), NOTHING, POLICY) if isinstance(a, Submit)]
    assert action.avoid == ("n7",), "one node may be stale"
    often = [*once, *again("a", 2, **wrong), *again("a", 3, **wrong)]
    with pytest.raises(IncompleteError, match="another version of the engine: try 3") as error:
        decide(state_of(*often), NOTHING, POLICY)
    assert error.value.hint == (
        "install the version of the run on the nodes, or start a new run (--run)"
    )
    (mended,) = decide(state_of(*often, started()), NOTHING, POLICY)
    assert isinstance(mended, Submit) and mended.avoid == (), "it may be installed by now"


@pytest.mark.parametrize(("mixed", "avoided"), [(False, ("n7",)), (True, ())])
def test_a_node_with_another_gpu_is_avoided_until_the_site_allows_it(
    mixed: bool, avoided: tuple[str, ...]
) -> None:
    """By all candidates: also by those that were not refused there."""
    wrong = {"kind": "device", "counted": False, "node": "n7"}
    other = failed("b", counted=False, kind="interrupted")
    elsewhere = [intent("a", attempt=2, batch="b2"), accepted("a", attempt=2, node="n8")]
    for events in ([], elsewhere):
        state = state_of(*FIRST, failed("a", **wrong), other, started(), *events)
        (action,) = decide(state, NOTHING, replace(POLICY, allow_mixed_gpus=mixed))
        assert isinstance(action, Submit) and action.avoid == avoided
        assert len(action.candidates) == (1 if events else 2)


@pytest.mark.parametrize(("mixed", "bad"), [(False, ["n7"]), (True, [])])
def test_a_node_with_another_gpu_is_bad_until_the_site_allows_it(
    mixed: bool, bad: list[str]
) -> None:
    wrong = {"kind": "device", "counted": False, "node": "n7"}
    state = state_of(*FIRST, failed("a", **wrong), failed("b", **wrong), started())
    assert bad_nodes(state, 2, mixed) == bad


@pytest.mark.parametrize("kind", ["device", "version"])
def test_what_a_node_refuses_itself_is_nobodys_fault_either(kind: str) -> None:
    why = {"kind": kind, "message": "this node has an A100"}
    found = receipt("a", host="n7", failure=why)
    (fail,) = decide(state_of(*FIRST), Observed({OF_A: found}, {}), POLICY)
    assert isinstance(fail, Fail)
    assert (fail.kind, fail.counted, fail.node) == (kind, False, "n7")
    assert fail.message == "this node has an A100"


def test_who_waited_behind_a_refused_one_is_sent_to_another_node_with_it() -> None:
    why = {"kind": "device", "message": "this node has an A100"}
    found = receipt("a", host="n7", failure=why)
    over = Observed({OF_A: found}, job("ended", "COMPLETED", "n7", task="b1-0"), {OF_A: 0})
    known = [accepted(c, device="H100", engine=engine_line(OLD)) for c in ("slow", "fast")]
    before = [asked(0, "a", "b"), intent("slow", "fast", batch="b0"), shared("a", "b"), *known]
    fails = decide(state_of(*before, submitted()), over, POLICY)
    said = [(f.kind, f.counted) for f in fails if isinstance(f, Fail)]
    assert said == [("device", False), ("interrupted", False)]
    ends = [
        failed(f.attempt.candidate, kind=f.kind, counted=f.counted, node=f.node)
        for f in fails
        if isinstance(f, Fail)
    ]
    (action,) = decide(state_of(*before, submitted(), *ends), NOTHING, POLICY)
    assert action == Submit("search", (("a", 0, 2), ("b", 0, 2)), ("n7",))


def test_a_time_limit_is_no_fault_where_chunks_were_made_anew_on_another_gpu() -> None:
    """Five chunks of an H100 are none on an A100: two and then two more come further too."""
    events = [asked(0, "a"), intent("a"), submitted()]
    events += [failed("a", 1, False, "timeout", chunks=5)]
    for number, (made, chunks, counted) in enumerate(
        [(2, 2, False), (2, 4, False), (0, 4, True)], 2
    ):
        batch = f"b{number}"
        events += [intent("a", attempt=number, batch=batch), submitted(batch)]
        key = ("search", "a", number)
        told = receipt("a", number, failure=failure("timeout"), chunks=chunks)
        over = job("ended", "TIMEOUT", task=f"{batch}-a")
        seen = Observed({key: told}, over, {key: made})
        (fail,) = decide(state_of(*events), seen, POLICY)
        assert isinstance(fail, Fail) and (fail.kind, fail.counted) == ("timeout", counted)
        events += [failed("a", number, fail.counted, "timeout", chunks=fail.chunks)]


@pytest.mark.parametrize("kind", ["device", "version"])
def test_however_often_no_candidate_is_given_up_for_it(kind: str) -> None:
    wrong = {"kind": kind, "counted": False, "node": "n7"}
    events = [*FIRST, accepted("b", device="H100"), failed("a", **wrong)]
    for number in range(2, MOST_ATTEMPTS + 3):
        events += again("a", number, **wrong)
    mended = decide(state_of(*events, started()), NOTHING, POLICY)
    assert [type(action) for action in mended] == [Submit]
