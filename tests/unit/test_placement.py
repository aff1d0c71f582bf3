"""Where the parents will be kept, as the node decides it and as `plan` says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc.config import SiteConfig
from l2s_hpc.recipes.models import Model
from l2s_hpc.recipes.placement import (
    choose,
    merging_bytes,
    parents_bytes,
    placement,
    room_beside,
)
from tests.helpers import toy_models


def site(**changes: Any) -> SiteConfig:
    settings = {"name": "s", "executor": "local", "device": "cuda", "engine": "vllm"}
    return SiteConfig(**(settings | changes))


def model(name: str, folder: Path, gigabytes: float, tensors: int = 100) -> Model:
    """A model of equal tensors of so many bytes, with nothing in them: a sparse file."""
    folder.mkdir()
    size = int(gigabytes * 1e9) // tensors // 2
    entries = {
        f"x{n}": {
            "dtype": "BF16",
            "shape": [size],
            "data_offsets": [2 * size * n, 2 * size * (n + 1)],
        }
        for n in range(tensors)
    }
    header = json.dumps(entries).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * size * tensors)
    return Model(name, folder)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Model]:
    return {name: model(name, tmp_path / name, 15.2) for name in ("slow", "fast", "base")}


def test_on_the_gpu(models: dict[str, Model]) -> None:
    assert placement(models, site(gpu_memory=141), 15.2, 15.0) == (
        "parents on the GPU: 3 x 15.2 GB + engine 15.2 GB + cache 15.0 GB of 141 GB, "
        "of which merges need 14.1 GB"
    )


def test_from_the_page_cache(models: dict[str, Model]) -> None:
    assert placement(models, site(gpu_memory=80), 15.2, 15.0) == (
        "parents from the page cache, because they do not fit on the GPU: 3 x 15.2 GB + "
        "engine 15.2 GB + cache 15.0 GB of 80 GB, of which merges need 8.0 GB"
    )


def test_a_large_embedding_keeps_parents_off_a_gpu_that_they_would_fill(tmp_path: Path) -> None:
    """Two models of 7B, one of them the base, on 80 GB: merges need 12 x 3 x 0.54 G."""
    models = {name: model(name, tmp_path / name, 15.2, tensors=14) for name in ("slow", "base")}
    assert merging_bytes(models) == 12 * 3 * (15_200_000_000 // 14 // 2)
    assert placement(models, site(gpu_memory=80), 15.2, 12.0) == (
        "parents on the GPU: 2 x 15.2 GB + engine 15.2 GB + cache 12.0 GB of 80 GB, "
        "of which merges need 19.5 GB"
    )
    assert placement(models, site(gpu_memory=80), 15.2, 15.0).startswith("parents from the page")


def test_unknown(models: dict[str, Model]) -> None:
    assert placement(models, site(), 15.2, 15.0) == (
        "parents (3 x 15.2 GB): unknown whether they fit on the GPU, because site.gpu_memory "
        "is not set; the node decides"
    )


def test_other_engines_and_scratch(models: dict[str, Model]) -> None:
    assert placement(models, site(device="cpu", scratch="$TMPDIR"), 15.2, 0) == (
        "parents in their memory-mapped files (3 x 15.2 GB): the site merges on the CPU; "
        "tasks of a node share verified copies in $TMPDIR, made in the background"
    )
    assert "the transformers engine keeps the GPU" in placement(
        models, site(engine="transformers", gpu_memory=141), 15.2, 0
    )
    assert placement(models, site(engine="scripted", scratch="/x"), 15.2, 0) == (
        "parents are not read: the scripted engine has no model"
    )


def test_a_parent_that_is_the_base_counts_once(models: dict[str, Model], tmp_path: Path) -> None:
    small = model("small", tmp_path / "small", 3.1)
    (tmp_path / "link").symlink_to(models["slow"].folder)
    shared = {"slow": models["slow"], "base": Model("base", tmp_path / "link"), "small": small}
    assert parents_bytes(shared) == int(15.2e9) + int(3.1e9)
    assert "(15.2 + 3.1 GB)" in placement(shared, site(), 15.2, 15)


def test_sizes_are_those_of_the_tensors() -> None:
    (slow,) = toy_models("slow").values()
    assert parents_bytes({"slow": slow}) == slow.parameters * 2


gigabytes = st.integers(0, 200)


@given(gigabytes, gigabytes, gigabytes, gigabytes)
def test_the_node_decides_by_the_same_arithmetic(
    memory: int, engine: int, merging: int, parents: int
) -> None:
    room = room_beside(memory * 10**9, engine * 10**9, merging * 10**9)
    fits = (parents + engine) * 10 <= memory * 9 and parents + engine + merging <= memory
    assert choose("cuda", parents * 10**9, room) == ("device" if fits else "host")
    assert choose("cpu", parents * 10**9, room) == "files"
