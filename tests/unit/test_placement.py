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
from l2s_hpc.recipes.placement import choose, parents_bytes, placement, room_beside
from tests.helpers import toy_models


def site(**changes: Any) -> SiteConfig:
    settings = {"name": "s", "executor": "local", "device": "cuda", "engine": "vllm"}
    return SiteConfig(**(settings | changes))


def model(name: str, folder: Path, gigabytes: float) -> Model:
    """A model of so many bytes, with nothing in them: a sparse file."""
    folder.mkdir()
    size = int(gigabytes * 1e9)
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    return Model(name, folder)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Model]:
    return {name: model(name, tmp_path / name, 15.2) for name in ("slow", "fast", "base")}


def test_on_the_gpu(models: dict[str, Model]) -> None:
    assert placement(models, site(gpu_memory=141), 15.2, 15.0) == (
        "parents on the GPU: 3 x 15.2 GB + engine 15.2 GB + cache 15.0 GB of 141 GB, "
        "of which 10% are left free"
    )


def test_from_the_page_cache(models: dict[str, Model]) -> None:
    assert placement(models, site(gpu_memory=80), 15.2, 15.0) == (
        "parents from the page cache, because they do not fit on the GPU: 3 x 15.2 GB + "
        "engine 15.2 GB + cache 15.0 GB of 80 GB, of which 10% are left free"
    )


def test_unknown(models: dict[str, Model]) -> None:
    assert placement(models, site(), 15.2, 15.0) == (
        "parents (3 x 15.2 GB): unknown whether they fit on the GPU, because site.gpu_memory "
        "is not set; the node decides"
    )


def test_other_engines_and_scratch(models: dict[str, Model]) -> None:
    assert placement(models, site(device="cpu", scratch="$TMPDIR"), 15.2, 0) == (
        "parents in their memory-mapped files (3 x 15.2 GB): the site merges on the CPU; "
        "tasks of a node share a verified copy in $TMPDIR"
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


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_the_node_decides_by_the_same_arithmetic(memory: int, engine: int, parents: int) -> None:
    room = room_beside(memory * 10**9, engine * 10**9)
    fits = (parents + engine) * 10 <= memory * 9
    assert choose("cuda", parents * 10**9, room) == ("device" if fits else "host")
    assert choose("cpu", parents * 10**9, room) == "files"
