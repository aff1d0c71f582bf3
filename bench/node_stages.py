"""The stages of `bench/node.py`; each is a process, and writes what it found into `STAGE.json`."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import shapes

from l2s_hpc.config.site import VllmConfig
from l2s_hpc.recipes.models import Model
from l2s_hpc.recipes.recipe import mergekit_config
from l2s_hpc.records import Protocol, Recipe

SHORT = 8
"""Tokens of an answer where a candidate is only loaded."""

_POLL_SECONDS = 0.02

Plan = dict[str, Any]


def make(plan: Plan) -> None:
    """Write the parents."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    begin = time.perf_counter()
    shapes.make_models(Path(plan["parents"]), plan["shape"], device)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    found = {"device": device, "name": name, "seconds": time.perf_counter() - begin}
    places = {"parents": plan["parents"], "checkpoint": plan["merged"]}
    save(Path(plan["work"]) / "make.json", found | places | {"gb": _gb(plan)})


def ours(plan: Plan) -> None:
    """Measure our engine: its start, and then candidate after candidate."""
    from l2s_hpc.task import vllm_engine, vllm_start

    torch_there = time.time()
    marks = {
        name: Calls(module, name)
        for module, name in (
            (vllm_engine, "start_vllm"),
            (vllm_engine, "forget"),
            (vllm_engine, "answer"),
            (vllm_start, "_check_version"),
        )
    }
    waits = _watch_parents(vllm_engine, plan["placement"])
    begun = time.time()
    engine = vllm_engine.VllmEngine(protocol(plan), models(plan), cache(plan))
    ready = time.time()
    memory = Memory(plan["device"])
    start = marks["start_vllm"]
    vllm_there = marks["_check_version"].ends[0]
    found: dict[str, Any] = {
        "device": engine.device,
        "versions": dict(engine.versions),
        "settings": protocol(plan).engine_settings,
        "start": {
            "import": torch_there - plan["born"] + vllm_there - start.begins[0],
            "parents": start.begins[0] - begun,
            "engine": start.ends[0] - vllm_there,
            "canary": ready - start.ends[0],
            "all": ready - plan["born"],
        },
        "parents": dict(waits),
        "memory": {**_expected(plan), "after_start": memory.used()},
        "candidates": [],
    }
    save(Path(plan["work"]) / "ours.json", found)
    _candidates(plan, engine, found, memory, marks)


def _candidates(
    plan: Plan, engine: Any, found: dict[str, Any], memory: Memory, marks: Mapping[str, Calls]
) -> None:
    """The last candidates of each method are generated whole, the others loaded and tried."""
    lengths = shapes.lengths(plan["shape"], plan["items"])
    prompts = shapes.prompts(plan["shape"], plan["items"])
    lasted = 0.0
    for method in plan["methods"]:
        for number in range(plan["candidates"]):
            last = number == plan["candidates"] - 1
            left = plan["deadline"] - time.time()
            full = number >= plan["candidates"] - plan["full"] and left > 1.1 * lasted
            begin = time.perf_counter()
            seconds = engine.load(recipe(method, number))
            _synchronize(plan)
            loaded = time.perf_counter()
            limits = lengths if full else [min(SHORT, length) for length in lengths]
            answers = engine.generate(prompts, limits)
            end = time.perf_counter()
            ids = [call[2] for call in marks["answer"].taken()]
            tokens = sum(answer[0].n_output_tokens for answer in answers)
            found["candidates"].append(
                {
                    "method": method,
                    "merge": seconds["merge"],
                    "load": loaded - begin - seconds["merge"],
                    "reset": marks["forget"].last,
                    "generate": end - loaded,
                    "full": full,
                    "tokens": tokens,
                    "asked": sum(limits),
                    "usage": dict(engine.usage()),
                    "peak": memory.peak(),
                    "sha256": _sha256(ids),
                }
            )
            if full:
                lasted = end - loaded
            if full and last:
                save(Path(plan["work"]) / f"ours-{method}.ids", ids)
            save(Path(plan["work"]) / "ours.json", found)


def merge(plan: Plan) -> None:
    """Write a candidate's checkpoint with mergekit, as its command does."""
    begin = time.perf_counter()
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    shutil.rmtree(plan["merged"], ignore_errors=True)
    chosen = recipe(plan["method"], plan["candidates"] - 1)
    places = {name: Path(plan["parents"]) / name for name in shapes.MODELS}
    config = MergeConfiguration.model_validate(mergekit_config(chosen, places))
    options = MergeOptions(device=plan["device"], quiet=True, random_seed=0, write_model_card=False)
    imported = time.perf_counter()
    run_merge(config, plan["merged"], options)
    end = time.perf_counter()
    found = {"import_mergekit": imported - begin, "merge": end - imported, "done": True}
    save(Path(plan["work"]) / "merge.json", found)


def fresh(plan: Plan) -> None:
    """Start vLLM on the checkpoint, with the settings of our engine, and generate."""
    from l2s_hpc.task import vllm_start

    used, config = protocol(plan), shapes.config(plan["shape"])
    vllm_start._set_environment(used, config, cache(plan))
    import torch
    import vllm

    imported = time.time()
    share = 0.0
    if plan["device"] == "cuda":
        needs = shapes.model_bytes(plan["shape"]) + vllm_start.kv_bytes(used, config)
        share = min(needs / torch.cuda.mem_get_info()[1], 0.9)
    settings = vllm_start._settings(used, config, share)
    llm: Any = vllm.LLM(model=plan["engine_folder"], **settings)
    started = time.time()
    parameters = [
        vllm.SamplingParams(
            temperature=0.0,
            max_tokens=length,
            stop_token_ids=list(used.stop_ids),
            ignore_eos=True,
            detokenize=False,
        )
        for length in shapes.lengths(plan["shape"], plan["items"])
    ]
    prompts = [{"prompt_token_ids": p} for p in shapes.prompts(plan["shape"], plan["items"])]
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    end = time.time()
    ids = [list(output.outputs[0].token_ids) for output in outputs]
    save(Path(plan["work"]) / f"fresh-{plan['method']}.ids", ids)
    found = {
        "import": imported - plan["born"],
        "engine": started - imported,
        "generate": end - started,
        "tokens": sum(map(len, ids)),
    }
    save(Path(plan["work"]) / "fresh.json", found)


# What the stages share


def protocol(plan: Plan) -> Protocol:
    """Return the protocol of both pipelines: the site file's default settings."""
    toy, cuda = plan["shape"] == "toy", plan["device"] == "cuda"
    sizes = {"kv_cache_tokens": 16_384} if toy else {}
    settings = VllmConfig(**sizes).model_dump(exclude={"cache"})
    return Protocol(
        prompt="plain",
        max_tokens=max(shapes.lengths(plan["shape"], plan["items"])),
        temperature=0.0,
        top_p=1.0,
        samples=1,
        seed=0,
        stop_ids=(shapes.stop_id(plan["shape"]),),
        tokenizer="base",
        chunk_items=1024,
        engine="vllm",
        engine_settings=settings if cuda else settings | {"threads": 2},
        merge_device=plan["device"],
    )


def models(plan: Plan) -> dict[str, Model]:
    """Return the parents, the base first: the engine starts with it."""
    return {name: Model(name, Path(plan["parents"]) / name) for name in shapes.MODELS}


def recipe(method: str, number: int) -> Recipe:
    """Return the n-th candidate of a method: two task vectors."""
    weights = {"slow": round(0.4 + 0.1 * number, 2), "fast": round(0.9 - 0.1 * number, 2)}
    density = {"density": 0.6} if method == "ties" else {}
    config = {
        "merge_method": method,
        "base_model": "base",
        "models": [
            {"model": name, "parameters": {"weight": weight, **density}}
            for name, weight in weights.items()
        ],
        "parameters": {"normalize": True} if method == "ties" else {},
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    return Recipe(config=config, identities=dict.fromkeys(shapes.MODELS, ""))


class Memory:
    """Looks at the used memory of the GPU every 20 ms, in bytes.

    Not before the engine is there: while vLLM captures CUDA graphs, no thread may ask CUDA.
    """

    def __init__(self, device: str) -> None:
        self._most = 0
        self._cuda = device == "cuda"
        if self._cuda:
            threading.Thread(target=self._poll, daemon=True).start()

    def used(self) -> int | None:
        """Return what is used now; None without a GPU."""
        import torch

        if not self._cuda:
            return None
        free, total = torch.cuda.mem_get_info()
        return int(total - free)

    def peak(self) -> int | None:
        """Return the most since this was asked last."""
        found, self._most = self._most, 0
        return max(found, self.used() or 0) if self._cuda else None

    def _poll(self) -> None:
        while True:
            self._most = max(self._most, self.used() or 0)
            time.sleep(_POLL_SECONDS)


class Calls:
    """Notes when a function of a module was called, with what, and when it returned."""

    def __init__(self, module: Any, name: str) -> None:
        self._function = getattr(module, name)
        self.begins: list[float] = []
        self.ends: list[float] = []
        self.last = 0.0
        self._given: list[tuple[Any, ...]] = []
        setattr(module, name, self)

    def __call__(self, *given: Any, **named: Any) -> Any:
        self._given.append(given)
        self.begins.append(time.time())
        begin = time.perf_counter()
        found = self._function(*given, **named)
        self.last = time.perf_counter() - begin
        self.ends.append(time.time())
        return found

    def taken(self) -> list[tuple[Any, ...]]:
        """Return what it was called with since this was asked last."""
        found, self._given = self._given, []
        return found


def _watch_parents(module: Any, placed: str | None) -> dict[str, Any]:
    """Let the engine's parents tell where they are, and how long they were waited for."""
    found: dict[str, Any] = {"waited": 0.0}

    class Watched(module.Parents):  # type: ignore[misc]
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named, **({"placed": placed} if placed else {}))
            found["placement"] = self.placement

        def read(self) -> float:
            found["begun"] = super().read()
            found["bytes"] = self.bytes_on_device
            return float(found["begun"])

        def get(self, model: str, tensor: str) -> Any:
            begin = time.perf_counter()
            got = super().get(model, tensor)
            found["waited"] += time.perf_counter() - begin
            return got

    module.Parents = Watched
    return found


def _expected(plan: Plan) -> dict[str, int]:
    from l2s_hpc.task.vllm_start import kv_bytes

    kv = kv_bytes(protocol(plan), shapes.config(plan["shape"]))
    return {"weights": shapes.model_bytes(plan["shape"]), "kv": kv}


def _synchronize(plan: Plan) -> None:
    import torch

    if plan["device"] == "cuda":
        torch.cuda.synchronize()


def cache(plan: Plan) -> str:
    return str(Path(plan["work"]) / "cache")


def _gb(plan: Plan) -> float:
    return shapes.model_bytes(plan["shape"]) / 1e9


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def save(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)


STAGES: dict[str, Callable[[Plan], None]] = {
    "make": make,
    "ours": ours,
    "merge": merge,
    "fresh": fresh,
}
