"""Programs that hold a vLLM engine on the GPU: `python -m tests.gpu.programs NAME FOLDER`.

Each is a process of its own, because only the end of a process frees all that vLLM holds. They
write ids into `FOLDER/NAME.json`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from l2s_hpc.evaluation.prompts import build
from l2s_hpc.recipes.models import merged_config, merged_tensors
from l2s_hpc.records import Protocol
from l2s_hpc.task.vllm_start import _set_environment, _settings, kv_bytes
from tests.helpers import recipe_of, search_config, toy_items, toy_models, toy_protocol

DEVICE = "cuda"
SETTINGS = {
    "max_num_seqs": 64,
    "max_num_batched_tokens": 2048,
    "kv_cache_tokens": 16_384,
    "block_size": 32,
    "eager": False,
    "speculate": 0,
}
SLOW_SECONDS = 4.0
"""For each of 150 tensors, eight at a time: longer than vLLM starts."""
GENES = [{"parameter": "weight"}, {"parameter": "density"}]
FIRST = recipe_of(search_config("task_arithmetic", GENES[:1]), (0.2, 0.9))
SECOND = recipe_of(search_config("ties", GENES), (0.6, 0.7, 0.5, 0.8))


def protocol(**changes: Any) -> Protocol:
    """Return the toy's protocol with vLLM on the GPU."""
    settings = SETTINGS | changes.pop("settings", {})
    given = {"engine": "vllm", "engine_settings": settings, "merge_device": DEVICE}
    return toy_protocol(**given | changes)


def live(folder: Path) -> dict[str, Any]:
    """Merge candidates into one engine, with and without what keeps them apart."""
    from safetensors.torch import save_file

    from l2s_hpc.task import vllm_engine
    from l2s_hpc.task.merge import merge
    from l2s_hpc.task.parents import Parents
    from tests.engine.common import ids_of, spied

    models = toy_models()
    engine = vllm_engine.VllmEngine(protocol(), models)
    prompts = [build("chat", item.question, engine.tokenizer) for item in toy_items(40)]
    found: dict[str, Any] = {"placement": engine._parents.placement, "prompts": prompts}
    found["fingerprint"] = engine.fingerprint
    found["first"] = ids_of(engine, FIRST, prompts)
    found["second"] = ids_of(engine, SECOND, prompts)
    found["usage"] = dict(engine.usage())
    found["first again"] = ids_of(engine, FIRST, prompts)

    forget, vllm_engine.forget = vllm_engine.forget, lambda llm: None
    engine.load(SECOND)
    with spied(engine) as spy:
        engine.generate(prompts)
    vllm_engine.forget = forget
    found["second, cache kept"], found["cached"] = spy.rows(), sum(spy.cached.values())

    for place in ("device", "host", "files"):
        engine._parents.close()
        engine._parents = Parents(models, DEVICE, placed=place)
        engine._parents.read()
        ids_of(engine, FIRST, prompts)
        found[f"second, parents: {place}"] = ids_of(engine, SECOND, prompts)
    names = merged_tensors(models)
    tensors = {name: t.cpu() for name, t in merge(SECOND, engine._parents, names, DEVICE)}
    (folder / "checkpoint").mkdir()
    save_file(tensors, folder / "checkpoint" / "model.safetensors", metadata={"format": "pt"})
    config = json.dumps(merged_config(models, "slow"))
    (folder / "checkpoint" / "config.json").write_text(config, encoding="utf-8")
    return found


def fresh(folder: Path) -> dict[str, Any]:
    """Start vLLM on the second candidate's checkpoint, without anything of our engine."""
    config = merged_config(toy_models(), "slow")
    _set_environment(protocol(), config, "")
    import torch
    import vllm

    share = (4e6 + kv_bytes(protocol(), config)) / torch.cuda.mem_get_info()[1]
    llm = vllm.LLM(model=str(folder / "checkpoint"), **_settings(protocol(), config, share))
    parameters = vllm.SamplingParams(
        temperature=0.0, max_tokens=120, stop_token_ids=[454], ignore_eos=True, detokenize=False
    )
    prompts = json.loads((folder / "live.json").read_text(encoding="utf-8"))["prompts"]
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = llm.generate(asked, parameters, use_tqdm=False)
    return {"second": [list(output.outputs[0].token_ids) for output in outputs]}


def slow(folder: Path) -> dict[str, Any]:
    """Start the engine while the parents are read so slowly that its start is over before."""
    from l2s_hpc.task import reader, vllm_engine
    from tests.engine.common import ids_of

    fill, start, done = reader._fill, vllm_engine.start_vllm, []

    def fill_slowly(*given: Any) -> None:
        time.sleep(SLOW_SECONDS)
        fill(*given)
        done.append(time.monotonic())

    def started(*given: Any) -> Any:
        found = start(*given)
        done.append(-time.monotonic())
        return found

    reader._fill, vllm_engine.start_vllm = fill_slowly, started
    engine = vllm_engine.VllmEngine(protocol(), toy_models())
    prompts = json.loads((folder / "live.json").read_text(encoding="utf-8"))["prompts"]
    start_was_over = -min(done)
    return {
        "fingerprint": engine.fingerprint,
        "read during the start": sum(0 < moment < start_was_over for moment in done),
        "read after the start": sum(moment > start_was_over for moment in done),
        "second": ids_of(engine, SECOND, prompts),
    }


def crowded(folder: Path) -> dict[str, Any]:
    """Merge on a GPU of which nothing is left."""
    import torch

    from l2s_hpc.task import vllm_engine
    from l2s_hpc.task.engines import EngineError

    engine = vllm_engine.VllmEngine(protocol(), toy_models())
    placed, others = engine._parents.placement, []
    torch.cuda.set_per_process_memory_fraction(1e-6)
    for size in (2**20, 2**15, 2**9):
        try:
            while True:
                others.append(torch.empty(size, dtype=torch.uint8, device=DEVICE))
        except torch.OutOfMemoryError:
            pass
    try:
        engine.load(SECOND)
    except EngineError as error:
        said = str(error)
    room, _ = vllm_engine._room(DEVICE, 0, toy_models())
    return {"placement": placed, "said": said, "broken": engine.broken, "room": room}


if __name__ == "__main__":
    name, where = sys.argv[1], Path(sys.argv[2])
    result = {"live": live, "fresh": fresh, "slow": slow, "crowded": crowded}[name](where)
    (where / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # the engine's threads are nobody's business now
