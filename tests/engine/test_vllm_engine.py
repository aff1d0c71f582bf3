"""The vLLM engine on the toy: what it counts, what it repeats, and what it refuses."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from l2s_hpc.recipes.models import EMBEDDING, HEAD
from l2s_hpc.recipes.recipe import average, single_model
from l2s_hpc.records import Recipe
from l2s_hpc.task import mirror, vllm_engine
from l2s_hpc.task.engines import EngineError, EngineStartError, Generated
from l2s_hpc.task.vllm_engine import VllmEngine
from l2s_hpc.task.vllm_start import _check_version
from tests.engine.common import (
    QUESTIONS,
    STOP,
    asked,
    asking,
    fresh_ids,
    ids_of,
    merged,
    opened,
    saved,
    spied,
    task_arithmetic,
    untied,
    variant,
    vllm_protocol,
)
from tests.engine.live import hash_of, live_hash, live_tensors
from tests.helpers import ROOT, TOY, toy_items, toy_models

SLOW, FAST = (single_model(name, {name: ""}) for name in ("slow", "fast"))
MIDDLE = average({"slow": 1.0, "fast": 2.0}, {"slow": "", "fast": ""})
SAMPLING = {"temperature": 1.0, "top_p": 0.95, "samples": 3}


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    shared = opened(vllm_protocol(max_tokens=60))
    yield shared
    shared.close()


def run_python(program: str, *first: Path) -> str:
    """Run a program in a process of its own, and return what it printed."""
    places = os.pathsep.join(map(str, (*first, ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def reasons(answers: list[list[Generated]]) -> list[tuple[str, int]]:
    return [(a.finish_reason, a.n_output_tokens) for (a,) in answers]


# ---- counts and texts ----------------------------------------------------------------------------


def test_counts_and_reasons_are_those_of_the_ids(engine: VllmEngine) -> None:
    engine.load(MIDDLE)
    prompts = asked(engine, [item.question for item in toy_items(8)])
    tokenizer = AutoTokenizer.from_pretrained(TOY / "slow")
    with spied(engine) as spy:
        answers = engine.generate(prompts)
    for ids, (answer,) in zip(spy.rows(), answers, strict=True):
        ended = STOP in ids
        assert ids.index(STOP) == len(ids) - 1 if ended else len(ids) == 60
        assert answer.n_output_tokens == len(ids)
        assert answer.finish_reason == ("stop" if ended else "length")
        assert answer.text == tokenizer.decode(ids[:-1] if ended else ids)
    assert {answer.finish_reason for (answer,) in answers} == {"stop", "length"}
    assert engine.usage().keys() == {"batch_occupancy"}
    assert 0 < engine.usage()["batch_occupancy"] <= 8 / 64


def test_each_prompt_has_its_limit_and_the_end_token_at_the_last_place_is_a_stop(
    engine: VllmEngine,
) -> None:
    engine.load(FAST)
    prompts = asked(engine)
    whole = engine.generate(prompts)
    lengths = [answer.n_output_tokens for (answer,) in whole]
    assert {reason for reason, _ in reasons(whole)} == {"stop"}
    assert reasons(engine.generate(prompts, lengths)) == reasons(whole)
    limits = [length - (n % 2) for n, length in enumerate(lengths)]
    expected = [("length" if n % 2 else "stop", limit) for n, limit in enumerate(limits)]
    assert reasons(engine.generate(prompts, limits)) == expected


@pytest.mark.parametrize("tokens", [9600, 640])
def test_the_batch_is_what_runs_and_not_what_waits(tokens: int) -> None:
    """Who runs gets one token in each step; room for 640 tokens is room for six answers or so."""
    engine = opened(vllm_protocol(max_tokens=60, settings={"kv_cache_tokens": tokens}))
    engine.load(SLOW)
    prompts = asked(engine, [item.question for item in toy_items(24)])
    with spied(engine) as spy:
        engine.generate(prompts)
    steps, generated = spy.calls.count("step"), sum(map(len, spy.rows()))
    assert (steps > 3 * 60) == (tokens == 640)
    assert engine.usage()["batch_occupancy"] == pytest.approx(generated / steps / 64, rel=0.05)


def test_a_progress_line_is_told(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a chunk that is done within a second, if the clock says otherwise."""
    ticks = iter(range(0, 10_000, 2))
    monkeypatch.setattr(vllm_engine.time, "monotonic", lambda: float(next(ticks)))
    engine.load(FAST)
    told: list[tuple[int, int]] = []
    with spied(engine) as spy:
        engine.generate(asked(engine), tell=lambda answers, tokens: told.append((answers, tokens)))
    assert told == sorted(told)
    assert told[-1] == (6, sum(map(len, spy.rows())))


# ---- what repeats --------------------------------------------------------------------------------


def test_greedy_is_repeatable_and_ignores_the_seed(engine: VllmEngine) -> None:
    first = ids_of(engine, MIDDLE)
    torch.rand(7)
    assert ids_of(engine, MIDDLE) == first
    with asking(engine, seed=9):
        assert ids_of(engine, MIDDLE) == first


def test_answers_are_in_the_order_of_the_prompts(engine: VllmEngine) -> None:
    """The last prompts are the first to be answered, and the longest prompt comes first."""
    engine.load(FAST)
    prompts = sorted(asked(engine, [i.question for i in toy_items(8)]), key=len, reverse=True)
    limits = [40, 40, 40, 40, 3, 3, 2, 1]
    together = [answer.text for (answer,) in engine.generate(prompts, limits)]
    alone = [engine.generate([p], [n])[0][0].text for p, n in zip(prompts, limits, strict=True)]
    assert together == alone
    assert len(set(together)) > 4


def test_samples_are_repeatable_and_differ(engine: VllmEngine) -> None:
    count = len(QUESTIONS)
    with asking(engine, **SAMPLING, max_tokens=12):
        engine.load(MIDDLE)
        torch.manual_seed(1)
        with spied(engine) as spy:
            first = engine.generate(asked(engine))
        assert [[a.sample for a in row] for row in first] == [[0, 1, 2]] * count
        assert spy.seeds == [a.seed for row in first for a in row]
        assert len(set(spy.seeds)) == 3 * count
        # Not the global random state, nor the other prompts decide.
        torch.manual_seed(2)
        assert engine.generate(asked(engine)) == first
        assert engine.generate(asked(engine)[2:3])[0] == first[2]
    texts = [[a.text for a in row] for row in first]
    assert any(len(set(row)) > 1 for row in texts)
    with asking(engine, **SAMPLING, max_tokens=12, seed=1):
        others = engine.generate(asked(engine))
    assert [[a.text for a in row] for row in others] != texts
    assert not {a.seed for row in others for a in row} & set(spy.seeds)


def test_padded_words_are_never_generated(engine: VllmEngine) -> None:
    """The toy has 470 words, and vLLM pads them to 512; a faint model says all of them."""
    (rows,) = engine._llm.apply_model(lambda model: model.lm_head.num_embeddings_padded)
    assert rows == 512
    faint = {
        "merge_method": "linear",
        "models": [{"model": "slow", "parameters": {"weight": 0.02}}],
        "parameters": {"normalize": False},
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    with asking(engine, temperature=1.0, top_p=1.0, samples=8, max_tokens=12):
        engine.load(Recipe(config=faint, identities={}))
        with spied(engine) as spy:
            engine.generate(asked(engine))
    used = {token for row in spy.rows() for token in row}
    assert len(used) > 250
    assert max(used) < 470


def test_two_starts_have_one_fingerprint_and_other_parents_another(engine: VllmEngine) -> None:
    again = opened(vllm_protocol(max_tokens=60))
    assert engine.fingerprint
    assert again.fingerprint == engine.fingerprint
    again.load(FAST)
    assert again.fingerprint == engine.fingerprint
    assert opened(models=toy_models("slow", "base")).fingerprint != engine.fingerprint
    assert engine.versions.keys() == {"vllm", "torch", "transformers", "mergekit"}
    assert engine.device == "cpu"


def test_guesses_change_no_greedy_token(engine: VllmEngine) -> None:
    """In a process of its own: with what guessing loads, vLLM starts no second engine in one."""
    program = (
        "import json\n"
        "from tests.engine.common import *\n"
        "from tests.engine.test_vllm_engine import MIDDLE\n"
        "engine = opened(vllm_protocol(max_tokens=60, settings={'speculate': 3}))\n"
        "engine.load(MIDDLE)\n"
        "with spied(engine) as spy:\n"
        "    engine.generate(asked(engine))\n"
        "print(json.dumps([spy.rows(), spy.calls.count('step'), torch.get_num_threads()]))\n"
    )
    rows, steps, threads = json.loads(run_python(program).splitlines()[-1])
    engine.load(MIDDLE)
    with spied(engine) as spy:
        engine.generate(asked(engine))
    assert rows == spy.rows()
    assert steps < spy.calls.count("step")
    assert threads == 1


# ---- heads, contexts -----------------------------------------------------------------------------


def test_untied_parents_have_a_live_head(tmp_path: Path) -> None:
    models = {name: untied(tmp_path / name, name) for name in ("slow", "fast", "base")}
    engine = opened(models=models)
    for recipe in (SLOW, task_arithmetic(0.2, 0.7), FAST):
        ids = ids_of(engine, recipe)
        live = live_tensors(engine._llm)
        assert hash_of(live) == hash_of(merged(recipe, models))
        assert not torch.equal(live[HEAD], live[EMBEDDING])
    assert ids == fresh_ids(models["fast"].folder, asked(engine))


@pytest.mark.parametrize("tokenizer", ["slow", "fast"])
def test_a_tied_and_an_untied_parent_make_a_model_with_a_head(
    tokenizer: str, tmp_path: Path
) -> None:
    """Whichever of them gives the configuration; the longer of their contexts is the model's."""
    models = toy_models("fast", "base") | {
        "slow": untied(tmp_path / "slow", "slow", max_position_embeddings=2048)
    }
    protocol = vllm_protocol(tokenizer=tokenizer)
    engine = opened(protocol, models)
    assert engine._context == 2048
    assert not engine._llm.llm_engine.model_config.hf_config.tie_word_embeddings
    engine.load(FAST)
    live = live_tensors(engine._llm)
    assert torch.equal(live[HEAD], load_file(TOY / "fast" / "model.safetensors")[EMBEDDING])
    engine.load(SLOW)
    assert live_hash(engine._llm) == hash_of(load_file(tmp_path / "slow" / "model.safetensors"))
    mixed = task_arithmetic(0.3, 0.6)
    ids = ids_of(engine, mixed)
    assert live_hash(engine._llm) == hash_of(merged(mixed, models))
    folder = saved(tmp_path / "merged", mixed, models, tokenizer)
    assert ids == fresh_ids(folder, asked(engine), protocol)


# ---- what is refused -----------------------------------------------------------------------------


def test_a_prompt_that_is_too_long_is_refused_and_the_next_is_answered(engine: VllmEngine) -> None:
    engine.load(FAST)
    before = engine.generate(asked(engine))
    long = [asked(engine)[0] * 10]
    message = r"a prompt of 500 tokens and an answer of up to 60 do not fit .* context of 512"
    with pytest.raises(EngineError, match=message) as caught:
        engine.generate([*asked(engine), *long])
    assert caught.value.hint == "lower protocol.max_tokens, or leave long questions out"
    assert not engine.broken
    assert engine.generate(asked(engine)) == before
    assert reasons(engine.generate(long, [12]))[0][1] <= 12


def test_nothing_is_generated_before_the_first_candidate() -> None:
    engine = opened()
    with pytest.raises(EngineError, match="generate before load"):
        engine.generate([[1, 2, 3]])


def test_models_that_do_not_fit_are_refused_at_the_start(tmp_path: Path) -> None:
    tensors = load_file(TOY / "slow" / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    lacking = variant(tmp_path / "lacking", "slow", tensors)
    message = r"tensor model\.norm\.weight is missing in 'slow'"
    with pytest.raises(EngineError, match=message):
        opened(models=toy_models("fast", "base") | {"slow": lacking})
    message = r"vLLM does not start: .*not initialized from checkpoint: \{'model\.norm\.weight'\}"
    with pytest.raises(EngineError, match=message):
        opened(models={"slow": lacking})
    more = tensors | {"model.norm.weight": norm, "extra": norm.clone()}
    with pytest.raises(EngineError, match=r"vLLM does not start: .* named 'extra'"):
        opened(models={"slow": variant(tmp_path / "more", "slow", more)})


def overwritten(file: Path) -> None:
    """Change a byte of the file's middle, in place; each time it is another content."""
    place = file.stat().st_size // 2
    with file.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)
        stream.seek(place)
        stream.write(bytes([(byte[0] + 1) % 256]))
    os.utime(file, ns=(1, 1))


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_a_parent_that_changed_is_not_merged(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = toy_models("slow", "base") | {"fast": variant(tmp_path / "fast", "fast")}
    file = tmp_path / "fast" / "model.safetensors"
    engine = opened(models=models)
    engine.load(FAST)
    if moment == "before":
        overwritten(file)
    else:
        get = engine._parents.get

        def late(model: str, tensor: str) -> torch.Tensor:
            if tensor == "model.norm.weight":
                overwritten(file)
            return get(model, tensor)

        monkeypatch.setattr(engine._parents, "get", late)
    message = "a weight file of model 'fast' was changed or touched during the search"
    with pytest.raises(EngineError, match=message) as caught:
        engine.load(MIDDLE)
    assert caught.value.path == file.resolve()
    with pytest.raises(EngineError, match="generate before load, or after one that failed"):
        engine.generate(asked(engine))


def test_the_canary_sees_a_stale_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l2s_hpc.task.swap._repack_tied_head", lambda model: None)
    with pytest.raises(EngineError, match="the canary found that weights of '") as caught:
        opened()
    assert "l2s doctor --node" in str(caught.value.hint)


def test_the_canary_sees_weights_that_do_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeroed(model: object) -> None:
        model.model.norm.weight.data.zero_()  # type: ignore[attr-defined]

    monkeypatch.setattr("l2s_hpc.task.swap._repack_tied_head", zeroed)
    with pytest.raises(EngineError, match="the canary found that weights of '"):
        opened()


def test_the_canary_says_so_where_it_can_show_less(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A model with a kind of tensor that `mirror` does not know is swapped back as it was."""
    monkeypatch.setattr(mirror, "_WRITE", ("down_proj",))
    caplog.set_level("WARNING", "vllm")
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    engine = opened()
    said = [record.getMessage() for record in caplog.records if "canary" in record.getMessage()]
    assert len(said) == 1 and ".self_attn.o_proj.weight: weights that stay" in said[0]
    assert ids_of(engine, SLOW) == fresh_ids(TOY / "slow", asked(engine))


def test_tensors_that_the_canary_can_mirror(engine: VllmEngine) -> None:
    assert mirror.unknown(engine._names) == []
    layer = "model.layers.0."
    strange = [
        layer + "self_attn.qkv_proj.weight",  # fused, as in Phi
        layer + "block_sparse_moe.gate.weight",  # experts
        layer + "mlp.experts.0.w1.weight",
        layer + "input_layernorm.bias",  # not an RMS norm
        layer + "self_attn.rotary_emb.inv_freq",
    ]
    known = [layer + "self_attn.q_norm.weight", layer + "mlp.down_proj.bias", "lm_head.weight"]
    assert mirror.unknown([*known, *strange]) == strange


def test_a_start_that_fails_late_says_that_the_process_is_spoilt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(engine: VllmEngine) -> None:
        raise RuntimeError("no blocks left")

    monkeypatch.setattr(VllmEngine, "_canary", fail)
    with pytest.raises(EngineStartError, match="fails at its first swap: no blocks left"):
        opened()


def test_versions_that_are_too_old_are_refused() -> None:
    with pytest.raises(EngineError, match=r"vLLM 0\.25\.1 is older than 0\.26, the oldest that"):
        _check_version("0.25.1")
    for tested in ("0.26.0", "0.32.0", "0.32.1+cpu"):
        _check_version(tested)


def test_a_vllm_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    """In a process of its own, for here vLLM is loaded already."""
    broken = "raise ImportError('libcuda.so.1: no such file')"
    (tmp_path / "vllm.py").write_text(broken, encoding="utf-8")
    program = (
        "from tests.engine.common import opened\n"
        "from l2s_hpc.task.engines import EngineError\n"
        "try:\n    opened()\nexcept EngineError as error:\n    print(error)\n"
    )
    printed = run_python(program, tmp_path)
    assert "vLLM cannot be imported: libcuda.so.1: no such file" in printed
    assert 'set engine = "transformers" in the site file' in printed


def test_the_threads_are_the_protocols(engine: VllmEngine) -> None:
    assert engine._protocol.engine_settings["threads"] == torch.get_num_threads()


# ---- a GPU without room --------------------------------------------------------------------------


def test_parents_leave_room_for_merges_and_go_where_there_was_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three models; their largest matrices are those of 460 x 128 numbers."""
    models, merges = toy_models(), 12 * 4 * 460 * 128
    for free, left in ((50_000_000, 5_000_000), (20_000_000, merges)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 60_000_000))
        room, share = vllm_engine._room("cuda", 1_000_000, models)
        assert room == free - left - 1_000_000
        assert share == pytest.approx(1 / 60)
    monkeypatch.setenv("L2S_PARENTS", "away")
    assert vllm_engine._room("cuda", 1_000_000, models)[0] == 0
    assert vllm_engine._room("cpu", 1_000_000, models) == (None, 0.0)
