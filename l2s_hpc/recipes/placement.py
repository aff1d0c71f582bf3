"""Where the parents are kept during a search: on the GPU, in the page cache, or in their files.

The node decides it with the memory that it finds, `plan` says it with the memory that the site
names; the arithmetic is the same, and is here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from l2s_hpc.config import SiteConfig
from l2s_hpc.recipes.models import Model, merged_shapes

Placement = Literal["device", "host", "files"]

SPARE = 0.1
"""Least share of a GPU's memory that neither engine nor parents may take."""
_PER_NUMBER = 12
"""Bytes that a merge in float32 takes for each number of each input: a copy, its difference from
the base, and what a method keeps of that. The result takes as many."""


def parents_bytes(models: Mapping[str, Model]) -> int:
    """Return the bytes of all models' tensors; what is the same file counts once."""
    return sum(_own_bytes(models).values())


def choose(device: str, parents: int, room: int) -> Placement:
    """Return where parents of so many bytes are kept, if there are `room` bytes on the device."""
    if device == "cpu":
        return "files"
    return "device" if parents <= room else "host"


def merging_bytes(models: Mapping[str, Model]) -> int:
    """Return what the arithmetic takes of a GPU beside engine and parents, at the most.

    That is 12 bytes x (inputs + 1) x numbers of the largest tensor, such as 26 GB for three models
    of 7B. DARE comes near it, because it needs tensors whole. TIES, which goes in blocks, takes a
    third; some untested methods take up to twice as much.
    """
    largest = max(map(math.prod, merged_shapes(models).values()), default=0)
    return _PER_NUMBER * (len(models) + 1) * largest


def room_beside(memory: int, engine: int, merging: int) -> int:
    """Return the bytes of a GPU that are left for parents.

    Args:
        memory: what may be used of the GPU, in bytes.
        engine: what the engine takes of it, its cache of keys and values included.
        merging: what merges need, see `merging_bytes`.
    """
    return memory - _reserve(memory, merging) - engine


def placement(
    models: Mapping[str, Model], site: SiteConfig, weights_gb: float, kv_gb: float
) -> str:
    """Say in a sentence where the parents will be kept, and why.

    Args:
        models: the input models, the base included.
        site: the site; `gpu_memory` decides on GPUs.
        weights_gb: the merged model in the engine, in 1e9 bytes.
        kv_gb: the engine's cache of keys and values, in 1e9 bytes.
    """
    if site.engine == "scripted":
        return "parents are not read: the scripted engine has no model"
    return _where(models, site, weights_gb, kv_gb) + _scratch(site)


def _where(models: Mapping[str, Model], site: SiteConfig, weights_gb: float, kv_gb: float) -> str:
    sizes = _sum(models)
    if site.device == "cpu":
        return f"parents in their memory-mapped files ({sizes} GB): the site merges on the CPU"
    if site.engine == "transformers":
        return f"parents from the page cache ({sizes} GB): the transformers engine keeps the GPU"
    if not site.gpu_memory:
        return (
            f"parents ({sizes} GB): unknown whether they fit on the GPU, because site.gpu_memory "
            "is not set; the node decides"
        )
    engine = int((weights_gb + kv_gb) * 1e9)
    total, merging = int(site.gpu_memory * 1e9), merging_bytes(models)
    room = room_beside(total, engine, merging)
    where = choose(site.device, parents_bytes(models), room)
    memory = (
        f"{sizes} GB + engine {weights_gb:.1f} GB + cache {kv_gb:.1f} GB "
        f"of {site.gpu_memory:g} GB, of which merges need {_reserve(total, merging) / 1e9:.1f} GB"
    )
    if where == "device":
        return f"parents on the GPU: {memory}"
    return f"parents from the page cache, because they do not fit on the GPU: {memory}"


def _reserve(memory: int, merging: int) -> int:
    """Return the bytes of a GPU that neither engine nor parents may take."""
    return max(int(memory * SPARE), merging)


def _scratch(site: SiteConfig) -> str:
    if not site.scratch:
        return ""
    return f"; tasks of a node share verified copies in {site.scratch}, made in the background"


def _sum(models: Mapping[str, Model]) -> str:
    """Return the sizes of models in GB as a sum, such as `2 x 15.2 + 3.1`."""
    sizes = Counter(f"{size / 1e9:.1f}" for size in _own_bytes(models).values() if size)
    return " + ".join(f"{n} x {size}" if n > 1 else size for size, n in sizes.items())


def _own_bytes(models: Mapping[str, Model]) -> dict[str, int]:
    """Return each model's bytes, without those of files that an earlier model has too."""
    seen: set[tuple[Path, str]] = set()
    sizes: dict[str, int] = {}
    for name, model in models.items():
        files = {tensor.file: tensor.file.resolve() for tensor in model.tensors.values()}
        own = {(files[t.file], tensor): t.size for tensor, t in model.tensors.items()}
        sizes[name] = sum(size for place, size in own.items() if place not in seen)
        seen |= own.keys()
    return sizes
