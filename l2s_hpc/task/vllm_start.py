"""Starts vLLM in this process, for models of one architecture."""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from l2s_hpc.recipes.models import Model, merged_config, token_bytes
from l2s_hpc.records import Protocol, short_hash
from l2s_hpc.store.files import write_json
from l2s_hpc.task.engines import EngineError, EngineStartError

_PROMPT_TOKENS = 4096
"""Room for prompts beside the longest answer, where the model's context is that long."""

_WEIGHT_FILES = ("*.safetensors", "model.safetensors.index.json")
_TESTED = ((0, 26), (0, 32))
"""The oldest and the newest version that it was run with."""


def start_vllm(
    protocol: Protocol, models: Mapping[str, Model], first: Model, cache: str, room: float
) -> Any:
    """Start a `vllm.LLM` that holds the weights of one of the models.

    Args:
        protocol: says what shapes the running batch.
        models: all input models.
        first: the one whose weights it starts with; it ties its head only if all do.
        cache: a safe folder of this node for compiled code, shared by its tasks; empty: vLLM's own.
        room: the share of the GPU that is free for it, 0 to 1.

    Raises:
        EngineError: vLLM is not installed, or its cache cannot be written.
        EngineStartError: it does not start.
    """
    config = merged_config(models, protocol.tokenizer)
    _set_environment(protocol, config, cache)
    try:
        import vllm
    except (ImportError, OSError) as error:
        raise EngineError(
            f"vLLM cannot be imported: {error}",
            hint='install it on the nodes, or set engine = "transformers" in the site file',
        ) from error
    _check_version(vllm.__version__)
    folder = _model_folder(config, first)
    try:
        return vllm.LLM(model=str(folder), **_settings(protocol, config, room))
    except (RuntimeError, ValueError, OSError, AssertionError, TypeError) as error:
        short = "memory" in str(error).lower()
        hint = "lower site.vllm.kv_cache_tokens, or use larger GPUs" if short else ""
        raise EngineStartError(f"vLLM does not start: {error}", hint=hint) from error


def vllm_version() -> str:
    """Return the version of vLLM, whatever its package is called."""
    import vllm

    return str(vllm.__version__)


def context(protocol: Protocol, config: Mapping[str, Any]) -> int:
    """Return how many tokens prompt and answer may have together."""
    longest = max([protocol.max_tokens, *protocol.budgets.values()])
    return min(int(config["max_position_embeddings"]), longest + _PROMPT_TOKENS)


def kv_bytes(protocol: Protocol, config: Mapping[str, Any]) -> int:
    """Return the size of the cache of keys and values, in bytes."""
    block = int(protocol.engine_settings["block_size"])
    return blocks(protocol) * block * token_bytes(config)


def blocks(protocol: Protocol) -> int:
    """Return the number of blocks of that cache."""
    settings = protocol.engine_settings
    return math.ceil(int(settings["kv_cache_tokens"]) / int(settings["block_size"]))


def _set_environment(protocol: Protocol, config: Mapping[str, Any], cache: str) -> None:
    """Set what vLLM reads when it is imported."""
    always = {
        # Tensors of a merge reach the model only where the engine is in this process.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CONFIGURE_LOGGING": "0",
        "HF_HUB_OFFLINE": "1",
    }
    if protocol.merge_device == "cpu":
        threads = str(protocol.engine_settings["threads"])
        torch.set_num_threads(int(threads))
        gigabytes = math.ceil(kv_bytes(protocol, config) / 2**30)
        always |= {
            "VLLM_CPU_KVCACHE_SPACE": str(gigabytes),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": threads,
            # What guesses n-grams sets torch's threads too, in its own way.
            "NUMBA_NUM_THREADS": threads,
        }
    if cache:
        always["VLLM_CACHE_ROOT"] = cache
    os.environ.update(always)


def _check_version(text: str) -> None:
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    oldest, newest = _TESTED
    if numbers < oldest:
        raise EngineError(
            f"vLLM {text} is older than {'.'.join(map(str, oldest))}, the oldest that was tested"
        )
    if numbers > newest:
        logging.getLogger("vllm").warning(
            "vLLM %s is newer than %s.%s, the newest that was tested", text, *newest
        )


def _model_folder(config: Mapping[str, Any], first: Model) -> Path:
    """Return a folder with the merged model's configuration and one model's weights.

    vLLM keys its compiled code by this path, so that it depends on the models alone; it is the same
    for a model and its copy.
    """
    from vllm import envs

    folder = Path(envs.VLLM_CACHE_ROOT) / "l2s-models" / short_hash([config, first.identity])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in _WEIGHT_FILES:
            for file in sorted(first.folder.glob(pattern)):
                _link(folder / file.name, file.resolve())
        write_json(folder / "config.json", dict(config))
    except OSError as error:
        raise EngineError(
            f"vLLM's cache cannot be written: {error.strerror}",
            hint="name another folder in site.vllm.cache or site.scratch",
            path=folder,
        ) from error
    return folder


def _link(link: Path, target: Path) -> None:
    """Let a link lead to a file, at once: another task may open it meanwhile."""
    if not (link.is_symlink() and link.readlink() == target):
        temporary = link.with_name(f".{link.name}.{secrets.token_hex(6)}")
        temporary.symlink_to(target)
        temporary.replace(link)


def _settings(protocol: Protocol, config: Mapping[str, Any], room: float) -> dict[str, Any]:
    settings = protocol.engine_settings
    found: dict[str, Any] = {
        "dtype": "bfloat16",
        "load_format": "safetensors",
        "tensor_parallel_size": 1,
        "trust_remote_code": False,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "seed": 0,
        "max_model_len": context(protocol, config),
        "max_num_seqs": settings["max_num_seqs"],
        "max_num_batched_tokens": settings["max_num_batched_tokens"],
        "block_size": settings["block_size"],
        "num_gpu_blocks_override": blocks(protocol),
        "enable_prefix_caching": True,
        "enforce_eager": settings["eager"] or protocol.merge_device == "cpu",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if protocol.merge_device != "cpu":
        found |= {"kv_cache_memory_bytes": kv_bytes(protocol, config)}
        found |= {"gpu_memory_utilization": room}
    if settings["speculate"]:
        found["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": settings["speculate"],
            "prompt_lookup_max": 4,
            "prompt_lookup_min": 2,
        }
    return found
