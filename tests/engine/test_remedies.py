"""Each way in which a swap goes wrong silently has its remedy: one test for each.

Every test fails if its remedy is taken out of `swap`, or of the engine.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from l2s_hpc.recipes.recipe import single_model
from l2s_hpc.records import Recipe
from l2s_hpc.task.engines import EngineError, MergeError
from l2s_hpc.task.renewal import parents_may_stay
from l2s_hpc.task.swap import forget
from l2s_hpc.task.vllm_engine import VllmEngine
from tests.engine.common import BLOCK, asked, fresh_ids, ids_of, opened, spied
from tests.engine.live import live_tensors
from tests.helpers import TOY

SLOW, FAST = (single_model(name, {name: ""}) for name in ("slow", "fast"))
NORM = "model.norm.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def shared() -> Iterator[VllmEngine]:
    opening = opened()
    yield opening
    opening.close()


@pytest.fixture
def engine(shared: VllmEngine) -> Iterator[VllmEngine]:
    """A sound engine, whatever an earlier test did to it."""
    shared.broken = False
    shared.load(SLOW)
    yield shared
    shared.broken = False


@pytest.fixture(scope="module")
def fresh(shared: VllmEngine) -> list[list[int]]:
    """What a fresh engine on the fast parent's own checkpoint answers."""
    return fresh_ids(TOY / "fast", asked(shared))


def stored(name: str) -> Tensors:
    return load_file(TOY / name / "model.safetensors")


def test_the_cache_is_emptied_after_a_swap(engine: VllmEngine, fresh: list[list[int]]) -> None:
    engine.generate(asked(engine))
    engine.load(FAST)
    with spied(engine) as spy:
        engine.generate(asked(engine))
    assert spy.rows() == fresh
    assert (spy.cached[0], spy.cached[3]) == (0, 0)


def test_the_tied_head_is_repacked(engine: VllmEngine, fresh: list[list[int]]) -> None:
    assert ids_of(engine, FAST) == fresh
    live = live_tensors(engine._llm)
    fast, slow = (stored(name)["model.embed_tokens.weight"] for name in ("fast", "slow"))
    assert not torch.equal(fast, slow)
    assert torch.equal(live["model.embed_tokens.weight"], fast)
    assert torch.equal(live["lm_head.weight"], fast)


def test_a_warm_up_leaves_nothing_in_the_cache(engine: VllmEngine, fresh: list[list[int]]) -> None:
    engine.load(FAST)
    engine.generate(asked(engine)[:2])
    with spied(engine) as spy:
        engine.generate(asked(engine))
    assert [spy.cached[n] for n in range(6)] == [0, BLOCK, BLOCK] * 2
    assert spy.rows() == fresh


def test_a_chunk_is_one_batch(engine: VllmEngine) -> None:
    with spied(engine) as spy:
        engine.generate(asked(engine))
    first = spy.calls.index("step")
    assert spy.calls[:first] == ["ask"] * 6
    assert set(spy.calls[first:]) == {"step"}


def test_the_cache_is_not_emptied_under_a_request(engine: VllmEngine) -> None:
    from vllm import SamplingParams

    below = engine._llm.llm_engine
    prompt = {"prompt_token_ids": asked(engine)[0]}
    below.add_request("0", prompt, SamplingParams(max_tokens=8, detokenize=False))
    below.step()
    try:
        with pytest.raises(EngineError, match="does not empty its prefix cache"):
            forget(engine._llm)
    finally:
        below.abort_request(["0"])
    forget(engine._llm)


def lacking(tensors: Tensors) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor) for name, tensor in tensors.items() if name != NORM]


def with_more(tensors: Tensors) -> list[tuple[str, torch.Tensor]]:
    return [*tensors.items(), ("model.layers.4.mlp.up_proj.weight", tensors[NORM])]


def with_twice(tensors: Tensors) -> list[tuple[str, torch.Tensor]]:
    return [*tensors.items(), (NORM, tensors[NORM])]


def of_other_shape(tensors: Tensors) -> list[tuple[str, torch.Tensor]]:
    return list((tensors | {NORM: tensors[NORM][:64]}).items())


def of_other_type(tensors: Tensors) -> list[tuple[str, torch.Tensor]]:
    return list((tensors | {NORM: tensors[NORM].float()}).items())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lacking, r"1 tensors are missing, such as model\.norm\.weight"),
        (with_more, r"tensor model\.layers\.4\.mlp\.up_proj\.weight is unknown"),
        (with_twice, r"tensor model\.norm\.weight is there twice"),
        (of_other_shape, r"tensor model\.norm\.weight is \[64\] of torch\.bfloat16.*has \[128\]"),
        (of_other_type, r"tensor model\.norm\.weight is \[128\] of torch\.float32.*of torch\.bfl"),
    ],
)
def test_what_is_not_the_whole_model_is_refused(
    engine: VllmEngine, spoil: Any, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        engine._swap(iter(spoil(stored("fast"))), "fast")
    refuses(engine)


def test_a_merge_that_fails_half_way_breaks_the_engine(engine: VllmEngine) -> None:
    filters = [{"filter": "layers.2", "value": 3e38}, {"filter": "*", "value": 0.3}]
    config = {
        "merge_method": "linear",
        "models": [{"model": "slow", "parameters": {"weight": filters}}],
        "parameters": {"normalize": False},
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    with pytest.raises(MergeError, match="not finite"):
        engine.load(Recipe(config=config, identities={}))
    refuses(engine)


@pytest.mark.parametrize("last", [NORM, ""])
def test_an_error_that_vllm_ignores_breaks_the_engine(
    engine: VllmEngine, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that comes after the last tensor, as that of a merge that is not finite."""
    call = engine._llm.collective_rpc

    def ignoring(name: str, **given: Any) -> Any:
        with contextlib.suppress(MergeError):
            return call(name, **given)

    def spoilt() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in stored("fast").items():
            if name == last:
                break
            yield name, tensor
        raise MergeError("not finite")

    monkeypatch.setattr(engine._llm, "collective_rpc", ignoring)
    with pytest.raises(EngineError, match="vLLM ignored an error of the merge"):
        engine._swap(spoilt(), "fast")
    refuses(engine)


@pytest.mark.parametrize(
    ("fault", "raised", "message"),
    [
        (OSError("the disk went away"), EngineError, "written: OSError: the disk went away"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_source_that_fails_half_way_breaks_the_engine(
    engine: VllmEngine,
    fault: BaseException,
    raised: type[BaseException],
    message: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever it is, the signals that end a task included."""
    get = engine._parents.get

    def failing(model: str, tensor: str) -> torch.Tensor:
        if tensor.startswith("model.layers.2"):
            raise fault
        return get(model, tensor)

    monkeypatch.setattr(engine._parents, "get", failing)
    with pytest.raises(raised, match=message):
        engine.load(FAST)
    refuses(engine)


@pytest.mark.parametrize("placed", ["device", "host"])
def test_a_device_without_room_breaks_the_engine_and_sends_the_parents_away(
    engine: VllmEngine,
    placed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """vLLM writes a tensor, and the GPU is full; if the parents stay there, that is why."""
    monkeypatch.setenv("L2S_PARENTS", "")

    def full(*given: Any, **named: Any) -> None:
        next(named["kwargs"]["weights_iterator"])
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.03 GiB")

    monkeypatch.setattr(engine._llm, "collective_rpc", full)
    monkeypatch.setattr(engine._parents, "placement", placed)
    with pytest.raises(EngineError, match="cannot be written: OutOfMemoryError: CUDA out of mem"):
        engine.load(FAST)
    refuses(engine)
    assert parents_may_stay() == (placed == "host")
    assert ("the parents come from the page cache" in capsys.readouterr().err) == (
        placed == "device"
    )


def test_what_vllm_does_not_read_is_still_looked_at(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge says after its last tensor that one is not finite; this vLLM stops before."""
    reload = engine._llm.collective_rpc

    def hasty(name: str, kwargs: dict[str, Any]) -> Any:
        whole = kwargs["weights_iterator"]
        return reload(
            name, kwargs={"weights_iterator": itertools.islice(whole, len(engine._shapes))}
        )

    monkeypatch.setattr(engine._llm, "collective_rpc", hasty)
    engine.load(FAST)
    config = dict(FAST.config) | {"parameters": {"normalize": False}}
    config["models"] = [{"model": "fast", "parameters": {"weight": 3e38}}]
    with pytest.raises(MergeError, match="not finite"):
        engine.load(Recipe(config=config, identities={}))
    refuses(engine)


def test_an_engine_that_fails_while_it_generates_is_broken(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("no more blocks")

    monkeypatch.setattr(engine._llm.llm_engine, "step", fail)
    with pytest.raises(EngineError, match="vLLM failed: RuntimeError: no more blocks"):
        engine.generate(asked(engine))
    monkeypatch.undo()
    assert not engine._llm.llm_engine.has_unfinished_requests()
    refuses(engine)


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_vllm_gave_up_is_no_answer(
    engine: VllmEngine, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = engine._llm.llm_engine
    step = below.step

    def giving_up() -> Any:
        outputs = step()
        for output in outputs:
            output.outputs[0].finish_reason = reason
        return outputs

    monkeypatch.setattr(below, "step", giving_up)
    message = rf"vLLM failed: RuntimeError: an answer was ended with '{reason}' after \d+ tokens"
    with pytest.raises(EngineError, match=message):
        engine.generate(asked(engine))
    monkeypatch.undo()
    refuses(engine)


def refuses(engine: VllmEngine) -> None:
    """A broken engine does nothing any more."""
    assert engine.broken
    with pytest.raises(EngineError, match="generate before load, or after one that failed"):
        engine.generate(asked(engine))
    with pytest.raises(EngineError, match="holds a mixture of models since a swap that failed"):
        engine.load(FAST)
