"""What one GPU must hold for a candidate: weights, the cache of keys and values, and a reserve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from l2s_hpc.config import SiteConfig
from l2s_hpc.controller.resolve import Resolved, engine_of
from l2s_hpc.errors import UserError
from l2s_hpc.recipes import models
from l2s_hpc.recipes.placement import SPARE, merging_bytes

_SPARE_WITH_CACHE = 0.2
"""Share of a GPU that is left free where the engine pins no cache of keys and values: that has to
fit in here, too."""

_LARGE_GB = 16

_TEMPLATE = 128
"""Tokens of a prompt around its question, or around one of its examples, at the most."""


@dataclass(frozen=True)
class Need:
    """What a candidate needs of one GPU, in GB of 1e9 bytes.

    Attributes:
        weights: of the merged model in bfloat16.
        cache: of keys and values for all tokens of `vllm.kv_cache_tokens`; 0 where the engine pins
            no such cache.
        token: of keys and values of one token.
        reserve: the share of a GPU that stays free of both.
    """

    weights: float
    cache: float
    token: float
    reserve: float

    @property
    def total(self) -> float:
        """Weights and cache."""
        return self.weights + self.cache

    def room(self, memory: float) -> float:
        """Return what a GPU with so many GB has for weights and cache."""
        return memory * (1 - self.reserve)

    def gpu(self) -> int:
        """Return the smallest GPU that will do, in whole GB."""
        return math.ceil(self.total / (1 - self.reserve))

    @property
    def parts(self) -> str:
        """Weights and cache in words."""
        said = f"{self.weights:.1f} GB of weights in bfloat16"
        return said + (f" and {self.cache:.1f} GB of keys and values" if self.cache else "")


def need(resolved: Resolved) -> Need:
    """Return what a candidate of a search needs of one GPU."""
    token = token_bytes(resolved) / 1e9
    pinned = engine_of(resolved.site) == "vllm"
    return Need(
        weights=merged_gigabytes(resolved),
        cache=token * resolved.site.vllm.kv_cache_tokens if pinned else 0.0,
        token=token,
        reserve=SPARE if pinned else _SPARE_WITH_CACHE,
    )


def merged_gigabytes(resolved: Resolved) -> float:
    """Return the size of the merged model's weights in bfloat16, in GB."""
    return models.merged_bytes(resolved.models) / 1e9


def token_bytes(resolved: Resolved) -> int:
    """Return the bytes of one token's keys and values in all layers, in bfloat16."""
    tokenizer = resolved.evaluations["search"].protocol.tokenizer
    return models.token_bytes(models.merged_config(resolved.models, tokenizer))


def check_memory(resolved: Resolved) -> Need:
    """Refuse a model that does not fit into one GPU: a candidate has one, and no more.

    Returns:
        What a candidate needs of it.

    Raises:
        UserError: that is more than the site's GPUs have.
    """
    found, site = need(resolved), resolved.site
    room = found.room(site.gpu_memory)
    if site.device != "cuda" or not site.gpu_memory or found.total <= room:
        return found
    raise UserError(
        f"a candidate needs {found.parts}, and of site.gpu_memory = {site.gpu_memory:g} GB only "
        f"{room:.1f} GB are for these ({found.reserve:.0%} are left for "
        f"{'all else' if found.cache else 'all else, the cache of keys and values included'})",
        hint="a candidate uses one GPU: "
        + _fewer_tokens(resolved, found, room)
        + f"search smaller models, or use GPUs with at least {found.gpu()} GB",
    )


def _fewer_tokens(resolved: Resolved, found: Need, room: float) -> str:
    """Return how large the cache may be, if it may be large enough for one answer."""
    block = resolved.site.vllm.block_size
    tokens = int((room - found.weights) / found.token) // block * block if found.cache else 0
    if tokens < sum(longest_answer(resolved)):
        return ""
    return f"set site.vllm.kv_cache_tokens to at most {tokens}, "


def longest_answer(resolved: Resolved) -> tuple[int, int]:
    """Return the tokens of the prompt and of the answer of the item for which both are the most.

    Without a tokenizer a question counts one token for each of its bytes, which is more than it
    has; so do the examples before it.
    """
    protocol = resolved.evaluations["search"].protocol
    shots = sum(_TEMPLATE + len("".join(shot).encode()) for shot in protocol.shots)
    around = _TEMPLATE + shots
    items = [item for e in resolved.evaluations.values() for item in e.items]
    sizes = [(len(i.question.encode()) + around, protocol.budget(i.benchmark)) for i in items]
    return max(sizes, key=sum, default=(0, protocol.max_tokens))


def memory_notes(resolved: Resolved, found: Need) -> list[str]:
    """Return what a user should know of memory before submitting."""
    site, notes = resolved.site, []
    if site.device == "cuda" and not site.gpu_memory and found.total > _LARGE_GB:
        notes.append(
            f"a candidate needs {found.parts} and uses one GPU: set site.gpu_memory, and plan says "
            "whether it fits"
        )
    return notes + _merging_notes(resolved, found) + _cache_notes(resolved, site)


def _merging_notes(resolved: Resolved, found: Need) -> list[str]:
    """Say where merges may find no room: no refusal, because most methods need less."""
    site, merging = resolved.site, merging_bytes(resolved.models) / 1e9
    if site.device != "cuda" or not 0 < site.gpu_memory < found.total + merging:
        return []
    return [
        f"merges may run out of memory: beside {found.parts} they need up to {merging:.1f} GB of "
        f"the GPU (DARE nearly that, TIES a third), more than site.gpu_memory = "
        f"{site.gpu_memory:g} GB has; try --smoke first, or use GPUs with at least "
        f"{math.ceil(found.total + merging)} GB"
    ]


def _cache_notes(resolved: Resolved, site: SiteConfig) -> list[str]:
    prompt, answer = longest_answer(resolved)
    if engine_of(site) != "vllm" or prompt + answer <= site.vllm.kv_cache_tokens:
        return []
    return [
        f"site.vllm.kv_cache_tokens = {site.vllm.kv_cache_tokens} cannot hold one longest answer: "
        f"{answer} generated tokens after a prompt of up to {prompt}; set it to at least "
        f"{prompt + answer}, or lower protocol.max_tokens"
    ]


def as_json(found: Need, site: SiteConfig) -> dict[str, Any]:
    """Return what a candidate needs of a GPU, for people and programs; `gpu_gb` is the site's."""
    return {
        "weights_gb": round(found.weights, 3),
        "kv_cache_gb": round(found.cache, 3),
        "gpu_gb": site.gpu_memory or None,
    }
