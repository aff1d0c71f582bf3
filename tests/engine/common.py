"""What the tests of the vLLM engine share: small protocols, prompts, fresh engines, and a spy."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from l2s_hpc.config.site import VllmConfig
from l2s_hpc.evaluation.prompts import build
from l2s_hpc.recipes.models import EMBEDDING, HEAD, Model, merged_config, merged_tensors
from l2s_hpc.records import Protocol, Recipe
from l2s_hpc.task.engines import open_engine
from l2s_hpc.task.merge import merge
from l2s_hpc.task.vllm_engine import VllmEngine
from l2s_hpc.task.vllm_start import _settings
from tests.helpers import TOY, recipe_of, search_config, toy_models, toy_protocol

STOP = 454
BLOCK = 32
_SMALL = VllmConfig(
    max_num_seqs=64, max_num_batched_tokens=2048, kv_cache_tokens=9600, block_size=BLOCK
)
_BEGINNINGS = (
    "Eva has 49 pears. Then Eva has 3 times as many. Eva loses 40. Eva buys 8 more.",
    "Tom has 18 apples. Then Tom doubles them. Tom gives 9 to Mia. Tom wins 35 more.",
)
QUESTIONS = [
    f"{beginning} {beginning.split()[0]} loses {n}. "
    f"How many {beginning.split()[3][:-1]} does {beginning.split()[0]} have now?"
    for beginning in _BEGINNINGS
    for n in (11, 24, 35)
]
"""Three each share more than a block of tokens, so that a cache that is not emptied is hit."""


_KEPT: list[Any] = []
"""All engines of this process: vLLM ends what they share as soon as one of them is let go."""


def vllm_protocol(**changes: Any) -> Protocol:
    """The toy's protocol for the vLLM engine on the CPU."""
    own = changes.pop("settings", {})
    settings = {**_SMALL.model_dump(exclude={"cache"}), "threads": 1, **own}
    given: dict[str, Any] = {"engine": "vllm", "engine_settings": settings, "max_tokens": 16}
    return toy_protocol(**given | changes)


def opened(
    protocol: Protocol | None = None, models: Mapping[str, Model] | None = None
) -> VllmEngine:
    """Start an engine; the first of a process takes seconds, another one less than a second."""
    engine = open_engine(protocol or vllm_protocol(), models or toy_models())
    assert isinstance(engine, VllmEngine)
    _KEPT.append(engine)
    return engine


def asked(engine: VllmEngine, questions: Sequence[str] = QUESTIONS) -> list[list[int]]:
    return [build("chat", question, engine.tokenizer) for question in questions]


def task_arithmetic(slow: float, fast: float) -> Recipe:
    return recipe_of(search_config("task_arithmetic", [{"parameter": "weight"}]), (slow, fast))


class Stored:
    """The tensors of models as `merge` asks for them, read in the plainest way."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._tensors = {
            name: load_file(model.folder / "model.safetensors") for name, model in models.items()
        }

    def get(self, model: str, tensor: str) -> torch.Tensor:
        tensors = self._tensors[model]
        return tensors[EMBEDDING if tensor == HEAD and HEAD not in tensors else tensor]


def merged(recipe: Recipe, models: Mapping[str, Model]) -> dict[str, torch.Tensor]:
    """Merge on the CPU, far from any engine."""
    return dict(merge(recipe, Stored(models), merged_tensors(models)))


def saved(
    folder: Path, recipe: Recipe, models: Mapping[str, Model], tokenizer: str = "slow"
) -> Path:
    """Save a merged model as a checkpoint."""
    folder.mkdir()
    config = merged_config(models, tokenizer)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(merged(recipe, models), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def variant(
    folder: Path,
    parent: str,
    tensors: Mapping[str, torch.Tensor] | None = None,
    **config: Any,
) -> Model:
    """Copy a toy model, with other or more tensors and another configuration."""
    shutil.copytree(TOY / parent, folder)
    path = folder / "config.json"
    found = json.loads(path.read_text(encoding="utf-8")) | config
    path.write_text(json.dumps(found), encoding="utf-8")
    if tensors is not None:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return Model(parent, folder)


def untied(folder: Path, parent: str, **config: Any) -> Model:
    """Copy a toy model, and give it a head of its own."""
    tensors = load_file(TOY / parent / "model.safetensors")
    mixed = tensors[EMBEDDING].float() + 0.05 * tensors[EMBEDDING].float().roll(1, dims=0)
    tensors[HEAD] = mixed.to(torch.bfloat16)
    return variant(folder, parent, tensors, tie_word_embeddings=False, **config)


def fresh_ids(
    folder: Path, prompts: Sequence[Sequence[int]], protocol: Protocol | None = None
) -> list[list[int]]:
    """What a fresh engine generates from a checkpoint, greedily; none of our swap is used."""
    import vllm

    protocol = protocol or vllm_protocol()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    llm = vllm.LLM(model=str(folder), **_settings(protocol, config, 0.0))
    _KEPT.append(llm)
    parameters = vllm.SamplingParams(
        temperature=0.0,
        max_tokens=protocol.max_tokens,
        stop_token_ids=list(protocol.stop_ids),
        ignore_eos=True,
        detokenize=False,
    )
    tokens = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    outputs = llm.generate(tokens, parameters, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


@dataclass
class Spy:
    """What vLLM was asked and answered: a batch for each `generate` of ours.

    Attributes:
        calls: `ask` and `step` in their order.
        ids: generated ids by request.
        cached: tokens of each prompt that were found in the cache.
        seeds: of each request.
    """

    calls: list[str] = field(default_factory=list)
    ids: dict[int, list[int]] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)
    seeds: list[int | None] = field(default_factory=list)

    def rows(self) -> list[list[int]]:
        """The ids in the order of the requests."""
        return [self.ids[number] for number in sorted(self.ids)]


@contextlib.contextmanager
def spied(engine: VllmEngine) -> Iterator[Spy]:
    """Look on while an engine generates one chunk."""
    below, spy = engine._llm.llm_engine, Spy()
    ask, step = below.add_request, below.step

    def add_request(number: str, prompt: Any, parameters: Any, *more: Any, **others: Any) -> Any:
        spy.calls.append("ask")
        spy.seeds.append(parameters.seed)
        return ask(number, prompt, parameters, *more, **others)

    def one_step() -> Any:
        spy.calls.append("step")
        outputs = step()
        for output in outputs:
            number = int(output.request_id)
            spy.ids.setdefault(number, []).extend(output.outputs[0].token_ids)
            spy.cached[number] = output.num_cached_tokens
        return outputs

    below.add_request, below.step = add_request, one_step
    try:
        yield spy
    finally:
        del below.add_request, below.step


def ids_of(
    engine: VllmEngine, recipe: Recipe, prompts: Sequence[Sequence[int]] | None = None
) -> list[list[int]]:
    """Load a candidate and return the ids that it generates."""
    engine.load(recipe)
    with spied(engine) as spy:
        engine.generate(prompts or asked(engine))
    return spy.rows()


@contextlib.contextmanager
def asking(engine: VllmEngine, **changes: Any) -> Iterator[VllmEngine]:
    """Let an engine follow another protocol for a while, of the kind that needs no new start."""
    before = engine._protocol
    engine._protocol = before.model_copy(update=changes)
    try:
        yield engine
    finally:
        engine._protocol = before
