"""The transformers engine on the toy: what it counts, and that a swapped model is a fresh one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from l2s_hpc.evaluation.prompts import build
from l2s_hpc.recipes.models import HEAD, Model, merged_tensors
from l2s_hpc.recipes.recipe import average, single_model
from l2s_hpc.records import Protocol, Recipe
from l2s_hpc.task.engines import EngineError, Generated, MergeError, open_engine
from l2s_hpc.task.hf import TransformersEngine
from l2s_hpc.task.merge import merge
from l2s_hpc.task.parents import Parents
from tests.helpers import TOY, recipe_of, search_config, toy_items, toy_models, toy_protocol

SLOW, FAST = (single_model(name, {name: ""}) for name in ("slow", "fast"))
MIDDLE = average({"slow": 1.0, "fast": 1.5}, {"slow": "", "fast": ""})
QUESTIONS = [item.question for item in toy_items(8)]
STOP = 454


def opened(protocol: Protocol, models: dict[str, Model] | None = None) -> TransformersEngine:
    engine = open_engine(protocol, models or toy_models())
    assert isinstance(engine, TransformersEngine)
    return engine


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    shared = opened(toy_protocol())
    yield shared
    shared.close()


def asked(engine: TransformersEngine, questions: Sequence[str] = QUESTIONS) -> list[list[int]]:
    return [build("chat", question, engine.tokenizer) for question in questions]


def answers(engine: TransformersEngine, recipe: Recipe) -> list[list[Generated]]:
    engine.load(recipe)
    return engine.generate(asked(engine))


def live(engine: TransformersEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine._model.named_parameters()}


def test_swapped_is_fresh(engine: TransformersEngine) -> None:
    slow = answers(engine, SLOW)
    slow_weights = live(engine)
    fast = answers(engine, FAST)
    assert slow != fast
    assert answers(engine, SLOW) == slow
    assert all(torch.equal(slow_weights[name], t) for name, t in live(engine).items())
    fresh = opened(toy_protocol())
    assert answers(fresh, FAST) == fast
    stored = load_file(TOY / "fast" / "model.safetensors")
    assert all(torch.equal(stored[name].float(), t) for name, t in live(fresh).items())
    fresh.close()


def test_a_merge_that_fails_leaves_nothing_behind(engine: TransformersEngine) -> None:
    before = answers(engine, FAST)
    bad = {"merge_method": "linear", "dtype": "float32", "out_dtype": "bfloat16", "parameters": {}}
    filters = [{"filter": "layers.2", "value": 3e38}, {"filter": "*", "value": 0.3}]
    config = bad | {"models": [{"model": "slow", "parameters": {"weight": filters}}]}
    config["parameters"] = {"normalize": False}
    with pytest.raises(MergeError, match="not finite"):
        engine.load(Recipe(config=config, identities={}))
    assert answers(engine, FAST) == before


def by_plain_generate(
    folder: Path, batch: Sequence[Sequence[int]], max_tokens: int
) -> list[list[int]]:
    """What transformers generates from a saved checkpoint for one left-padded batch."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    width = max(map(len, batch))
    padded = torch.tensor([[STOP] * (width - len(row)) + list(row) for row in batch])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
    settings = GenerationConfig(
        max_new_tokens=max_tokens, eos_token_id=STOP, pad_token_id=STOP, do_sample=False
    )
    out = model.generate(input_ids=padded, attention_mask=mask, generation_config=settings)
    return [row[width:].tolist() for row in out]


@pytest.mark.parametrize("max_tokens", [20, 200])
def test_counts_are_those_of_a_saved_checkpoint(max_tokens: int, tmp_path: Path) -> None:
    """Merge, save, load with transformers, generate the same batch, count again."""
    engine = opened(
        toy_protocol(max_tokens=max_tokens, engine_settings={"batch_size": 8, "threads": 1})
    )
    found = answers(engine, MIDDLE)
    models = toy_models()
    with Parents(models, "cpu") as weights:
        merged = dict(merge(MIDDLE, weights, merged_tensors(models)))
    model = AutoModelForCausalLM.from_pretrained(TOY / "slow", dtype=torch.bfloat16)
    model.load_state_dict(merged, strict=False)
    model.save_pretrained(tmp_path)
    prompts = asked(engine)
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    rows = by_plain_generate(tmp_path, [prompts[index] for index in order], max_tokens)
    tokenizer = AutoTokenizer.from_pretrained(TOY / "slow")
    reasons = set()
    for index, row in zip(order, rows, strict=True):
        (answer,) = found[index]
        ended = STOP in row
        ids = row[: row.index(STOP)] if ended else row
        assert answer.n_output_tokens == len(ids) + ended
        assert answer.finish_reason == ("stop" if ended else "length")
        assert answer.text == tokenizer.decode(ids)
        assert answer.finish_reason == "stop" or answer.n_output_tokens == max_tokens
        reasons.add(answer.finish_reason)
    assert reasons == ({"stop", "length"} if max_tokens == 20 else {"stop"})
    engine.close()


def test_the_end_token_at_the_last_place_is_a_stop(engine: TransformersEngine) -> None:
    longest = max(answer.n_output_tokens for (answer,) in answers(engine, FAST))
    exact = opened(toy_protocol(max_tokens=longest))
    assert {answer.finish_reason for (answer,) in answers(exact, FAST)} == {"stop"}
    cut = opened(toy_protocol(max_tokens=longest - 1))
    reasons = [(a.finish_reason, a.n_output_tokens) for (a,) in answers(cut, FAST)]
    assert ("length", longest - 1) in reasons
    exact.close()
    cut.close()


def test_greedy_is_repeatable_and_ignores_the_seed(engine: TransformersEngine) -> None:
    first = answers(engine, MIDDLE)
    torch.rand(7)
    assert [a.text for (a,) in engine.generate(asked(engine))] == [a.text for (a,) in first]
    other = opened(toy_protocol(seed=9))
    assert [a.text for (a,) in answers(other, MIDDLE)] == [a.text for (a,) in first]
    other.close()


def test_samples_are_repeatable_and_differ() -> None:
    sampling = {"temperature": 1.0, "top_p": 0.95, "samples": 3, "max_tokens": 24}
    engine = opened(toy_protocol(**sampling))
    first = answers(engine, MIDDLE)
    assert [[a.sample for a in row] for row in first] == [[0, 1, 2]] * len(QUESTIONS)
    torch.rand(7)
    assert answers(engine, MIDDLE) == first
    texts = [[a.text for a in row] for row in first]
    assert any(len(set(row)) > 1 for row in texts)
    assert len({a.seed for row in first for a in row}) == 3 * 2  # three samples of two batches
    other = opened(toy_protocol(**sampling, seed=1))
    assert [[a.text for a in row] for row in answers(other, MIDDLE)] != texts
    engine.close()
    other.close()


def test_answers_are_in_the_order_of_the_prompts(engine: TransformersEngine) -> None:
    """Batches are by length; the longest prompt may come first."""
    engine.load(FAST)
    prompts = sorted(asked(engine), key=len, reverse=True)
    forward = engine.generate(prompts)
    alone = [engine.generate([prompt])[0][0].text for prompt in prompts[:3]]
    assert [row[0].text for row in forward[:3]] == alone
    assert len({row[0].text for row in forward}) > 2


def test_untied_parents_have_a_live_head(tmp_path: Path) -> None:
    folder = tmp_path / "slow"
    shutil.copytree(TOY / "slow", folder)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    tensors[HEAD] = (tensors["model.embed_tokens.weight"].float() * 1.5).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    models = toy_models("fast", "base") | {"slow": Model("slow", folder)}
    engine = opened(toy_protocol(), models)
    engine.load(SLOW)
    assert torch.equal(live(engine)[HEAD], tensors[HEAD].float())
    engine.load(FAST)
    assert torch.equal(live(engine)[HEAD], live(engine)["model.embed_tokens.weight"])
    recipe = recipe_of(search_config("task_arithmetic", [{"parameter": "weight"}]), (0.5, 0.5))
    engine.load(recipe)
    assert not torch.equal(live(engine)[HEAD], live(engine)["model.embed_tokens.weight"])
    engine.close()


def changed(folder: Path, tensors: dict[str, Any]) -> Model:
    folder.mkdir()
    for file in TOY.joinpath("slow").iterdir():
        shutil.copy(file, folder)
    save_file(tensors, folder / "model.safetensors")
    return Model(folder.name, folder)


def test_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    tensors = load_file(TOY / "slow" / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    lacking = changed(tmp_path / "slow", tensors)
    with pytest.raises(EngineError, match=r"tensor model\.norm\.weight is missing in 'slow'"):
        opened(toy_protocol(), toy_models("fast", "base") | {"slow": lacking})
    message = r"not the architecture's: missing \['model\.norm\.weight'\]"
    with pytest.raises(EngineError, match=message):
        opened(toy_protocol(), {"slow": lacking})
    more = changed(tmp_path / "more", tensors | {"model.norm.weight": norm, "extra": norm.clone()})
    with pytest.raises(EngineError, match=r"unknown \['extra'\]"):
        opened(toy_protocol(), {"slow": more})
