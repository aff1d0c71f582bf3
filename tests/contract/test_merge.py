"""Our merge in memory against mergekit's own on disk, over the toy family, bit by bit."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import MISSING
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from l2s_hpc.recipes.methods import METHODS, RANDOM, TESTED
from l2s_hpc.recipes.models import Model, merged_tensors
from l2s_hpc.recipes.placement import merging_bytes
from l2s_hpc.recipes.recipe import average, mergekit_config, single_model
from l2s_hpc.records import Recipe
from l2s_hpc.task import blocks
from l2s_hpc.task.engines import EngineError, MergeError
from l2s_hpc.task.merge import merge
from l2s_hpc.task.parents import Parents
from tests.helpers import QUARTERS, recipe_of, search_config, toy_models

Tensors = dict[str, torch.Tensor]
GROUPS = ("ends", "low", "mid", "top")

torch.set_num_threads(1)


def ours(recipe: Recipe, models: Mapping[str, Model]) -> Tensors:
    with Parents(models, "cpu") as weights:
        return dict(merge(recipe, weights, merged_tensors(models)))


def theirs(recipe: Recipe, models: Mapping[str, Model], out: Path) -> Tensors:
    """What `mergekit-yaml` makes: its command line parses the options and calls `run_merge`."""
    config = mergekit_config(recipe, {name: model.folder for name, model in models.items()})
    options = MergeOptions(
        random_seed=recipe.seed, quiet=True, copy_tokenizer=False, write_model_card=False
    )
    run_merge(MergeConfiguration.model_validate(config), str(out), options)
    return written(out)


def written(out: Path) -> Tensors:
    return {name: t for file in out.glob("*.safetensors") for name, t in load_file(file).items()}


def assert_equal(found: Tensors, expected: Tensors) -> None:
    """Equal names, types and bits."""
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype == torch.bfloat16
        assert torch.equal(tensor.view(torch.int16), expected[name].view(torch.int16)), name


def grouped(parameter: str) -> dict[str, Any]:
    return {"parameter": parameter, "groups": GROUPS}


WEIGHT, DENSITY, T = {"parameter": "weight"}, {"parameter": "density"}, {"parameter": "t"}
CASES: dict[str, tuple[str, list[dict[str, Any]], Sequence[float], dict[str, Any]]] = {
    "linear": ("linear", [WEIGHT], (0.3, 0.9), {"base": None}),
    "linear, sum 2.1": (
        "linear",
        [WEIGHT],
        (1.2, 0.9),
        {"base": None, "parameters": {"normalize": False}},
    ),
    "linear by group": (
        "linear",
        [grouped("weight")],
        (0.1, 0.2, 0.3, 0.4, 0.9, 0, 0.7, -0.1),
        {"base": None},
    ),
    "slerp": ("slerp", [T], (0.35,), {"base": "slow"}),
    "slerp by group": ("slerp", [grouped("t")], (0, 0.2, 0.5, 1), {"base": "fast"}),
    "task_arithmetic": ("task_arithmetic", [WEIGHT], (0.3, 0.9), {}),
    "task_arithmetic by group": (
        "task_arithmetic",
        [grouped("weight"), {"parameter": "lambda"}],
        (0.1, 0.2, 0.3, 0.4, 0.9, 0, 0.7, -0.1, 0.8),
        {},
    ),
    "ties": ("ties", [WEIGHT, DENSITY], (0.3, 0.9, 0.5, 0.6), {}),
    "ties of one": ("ties", [WEIGHT, DENSITY], (0.3, 0.4), {"models": ("slow",)}),
    "ties, base a parent": ("ties", [WEIGHT, DENSITY], (0.3, 0.4), {"base": "fast"}),
    "ties by group": (
        "ties",
        [grouped("weight"), grouped("density"), {"parameter": "lambda"}],
        (0.1, 0.2, 0.3, 0.4, 0.9, 0, 0.7, -0.1, 0.9, 0.8, 0, 0.6, 0.5, 0.4, 0.3, 0.2, 1.1),
        {"parameters": {"normalize": False, "int8_mask": True}},
    ),
    "dare_ties": ("dare_ties", [WEIGHT, DENSITY], (0.3, 0.9, 0.5, 0.6), {"seed": 11}),
    "dare_ties by group": (
        "dare_ties",
        [grouped("weight"), DENSITY],
        (0.1, 0.2, 0.3, 0.4, 0.9, 0, 0.7, -0.1, 0.5, 0.6),
        {"seed": 12, "parameters": {"normalize": True, "rescale": False}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_mergekit(case: str, tmp_path: Path) -> None:
    method, genes, values, merge_options = CASES[case]
    models = toy_models()
    recipe = recipe_of(search_config(method, genes, **merge_options), values)
    assert recipe.config["merge_method"] == method
    assert_equal(ours(recipe, models), theirs(recipe, models, tmp_path))


@pytest.mark.parametrize("shares", [{"slow": 1.0}, {"slow": 1.0, "fast": 2.0}])
def test_references_equal_mergekit(shares: dict[str, float], tmp_path: Path) -> None:
    recipe = average(shares, dict.fromkeys(shares, ""))
    models = toy_models("slow", "fast")
    assert_equal(ours(recipe, models), theirs(recipe, models, tmp_path))


def test_a_model_alone_is_that_model() -> None:
    models = toy_models()
    merged = ours(single_model("fast", {"fast": ""}), models)
    assert_equal(merged, load_file(models["fast"].folder / "model.safetensors"))


def test_equals_the_command_line(tmp_path: Path) -> None:
    """The random method with groups, through YAML, the command and a process of its own."""
    method, genes, values, merge_options = CASES["dare_ties by group"]
    models = toy_models()
    recipe = recipe_of(search_config(method, genes, **merge_options), values)
    places = {name: model.folder for name, model in models.items()}
    yaml_file, out = tmp_path / "merge.yaml", tmp_path / "out"
    yaml_file.write_text(yaml.safe_dump(mergekit_config(recipe, places)), encoding="utf-8")
    module = "mergekit.scripts.run_yaml"  # what the console script `mergekit-yaml` starts
    command = [sys.executable, "-m", module, str(yaml_file), str(out), "--quiet"]
    subprocess.run(
        [*command, "--random-seed", str(recipe.seed)],
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert_equal(ours(recipe, models), written(out))


def test_the_seed_and_only_the_seed_decides_a_random_merge() -> None:
    method, genes, values, _ = CASES["dare_ties"]
    models = toy_models()
    one = recipe_of(search_config(method, genes, seed=1), values)
    two = recipe_of(search_config(method, genes, seed=2), values)
    first = ours(one, models)
    torch.rand(3)  # whatever happened before
    assert_equal(ours(one, models), first)
    assert any(not torch.equal(first[name], t) for name, t in ours(two, models).items())
    assert one.candidate != two.candidate


def test_mergekit_config_names_places_and_leaves_the_recipe_alone() -> None:
    recipe = recipe_of(search_config("ties", [WEIGHT, DENSITY]), (0.3, 0.9, 0.5, 0.6))
    before = recipe.model_dump_json()
    config = mergekit_config(recipe, {"slow": "org/slow", "fast": Path("/m/fast"), "base": "b"})
    assert config["base_model"] == "b"
    assert [entry["model"] for entry in config["models"]] == ["org/slow", "/m/fast"]
    assert recipe.model_dump_json() == before


# The table of methods.


def test_the_table_is_mergekits_registry() -> None:
    registered = {method.spec.name: method.spec for method in registry.registered_methods()}
    assert METHODS.keys() == registered.keys()
    for name, entry in METHODS.items():
        spec = registered[name]
        assert entry.scopes == {p.name: p.scope.value for p in spec.parameters}, name
        assert entry.defaults == {
            p.name: p.default for p in spec.parameters if p.default is not MISSING
        }, name
        assert entry.base == spec.contract.base.value, name
        assert entry.max_inputs == spec.contract.max_inputs, name


WEIGHTS = {"slow": {"weight": 0.4}, "fast": {"weight": 0.7}}
SPARSE = {name: {**own, "density": 0.5} for name, own in WEIGHTS.items()}
PLAIN: dict[str, dict[str, Any]] = {"slow": {}, "fast": {}}

# Every untested method and how it merges the toy: its models with their parameters, the shared
# parameters, and the base.
UNTESTED: dict[str, tuple[dict[str, dict[str, Any]], dict[str, Any], str | None]] = {
    "dare_linear": (SPARSE, {}, "base"),
    "breadcrumbs": (SPARSE, {}, "base"),
    "breadcrumbs_ties": (SPARSE, {}, "base"),
    "della": (SPARSE, {}, "base"),
    "della_linear": (SPARSE, {"lambda": 0.9}, "base"),
    "multislerp": (WEIGHTS, {}, "base"),
    "nuslerp": (WEIGHTS, {}, "base"),
    "nearswap": ({"fast": {}}, {"t": 0.001}, "slow"),
    "ram": (PLAIN, {}, "base"),
    "ramplus_tl": (PLAIN, {"r": 0.2}, "base"),
    "sce": (PLAIN, {"select_topk": 0.3}, "base"),
    "passthrough": ({"slow": {"scale": 0.5}}, {}, None),
    "model_stock": (PLAIN, {}, "base"),
    "arcee_fusion": ({"fast": {}}, {}, "slow"),
    "karcher": (PLAIN, {}, None),
}


def by_hand(
    method: str, models: Mapping[str, Any], shared: Mapping[str, Any], base: str | None
) -> Recipe:
    config: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": name, "parameters": dict(own)} for name, own in models.items()],
        "parameters": dict(shared),
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    if base:
        config["base_model"] = base
    return Recipe(config=config, identities={}, seed=3 if method in RANDOM else 0)


def test_each_untested_method_is_in_the_table() -> None:
    assert UNTESTED.keys() == METHODS.keys() - set(TESTED)


@pytest.mark.parametrize("method", UNTESTED)
def test_untested_methods_go_the_same_way(method: str, tmp_path: Path) -> None:
    """With those above these are all that mergekit registers: each goes tensor by tensor."""
    models = toy_models()
    recipe = by_hand(method, *UNTESTED[method])
    assert_equal(ours(recipe, models), theirs(recipe, models, tmp_path))


@pytest.mark.parametrize(
    ("method", "models", "shared", "base", "message"),
    [
        ("model_stock", {"slow": {}}, {}, "base", "at least 3 inputs"),
        ("nuslerp", {"slow": {"weight": 1.0}}, {}, "base", "at least 2 non-base"),
        ("passthrough", PLAIN, {}, None, "exactly 1 inputs"),
        ("slerp", PLAIN, {"t": 0.5}, "base", "exactly 2 inputs"),
        ("slerp", {"fast": {}}, {}, "slow", "parameter t"),
        ("ties", {"slow": {"weight": 1.0}, "fast": {}}, {}, "base", "parameter weight"),
        ("ties", WEIGHTS, {}, None, "requires a base"),
        ("karcher", PLAIN, {"max_iter": 2.5}, None, "int"),
        ("della", {n: {**w, "density": 0.95} for n, w in WEIGHTS.items()}, {}, "base", "density"),
        ("dare_ties", {n: {**w, "density": -1} for n, w in WEIGHTS.items()}, {}, "base", ""),
        ("linear", {}, {}, None, "at least 1 inputs"),
    ],
)
def test_what_mergekit_refuses_is_a_merge_error(
    method: str, models: Mapping[str, Any], shared: Mapping[str, Any], base: str, message: str
) -> None:
    with pytest.raises(MergeError, match=message):
        ours(by_hand(method, models, shared, base), toy_models())


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.03 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_device_without_memory_is_no_fault_of_the_recipe(
    fault: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*given: Any, **named: Any) -> None:
        raise fault

    monkeypatch.setattr("l2s_hpc.task.merge.merge_tensors", failing)
    with pytest.raises(EngineError, match=r"the device fails at the merge of model\.embed_tokens"):
        ours(by_hand("linear", WEIGHTS, {}, None), toy_models())


@pytest.mark.parametrize(
    ("method", "weights", "base"),
    [
        ("linear", (1.0, -1.0), None),  # a sum of weights that is 0
        ("task_arithmetic", (1e39, 1.0), "base"),  # beyond float32
        ("task_arithmetic", (float("nan"), 1.0), "base"),
    ],
)
def test_numbers_that_are_not_finite_are_a_merge_error(
    method: str, weights: tuple[float, float], base: str | None
) -> None:
    models = {name: {"weight": w} for name, w in zip(("slow", "fast"), weights, strict=True)}
    with pytest.raises(MergeError, match="not finite"):
        ours(by_hand(method, models, {}, base), toy_models())


def test_a_value_that_no_filter_gives_is_the_default() -> None:
    """As in mergekit: an unmatched filter of one model leaves the others' values alone."""
    only_mlp = [{"filter": "mlp", "value": 0.3}]
    some = {"slow": {"weight": 0.4, "density": only_mlp}, "fast": {"weight": 0.7, "density": 0.5}}
    whole = [{"filter": "mlp", "value": 0.3}, {"filter": "*", "value": 1.0}]
    full = {"slow": {"weight": 0.4, "density": whole}, "fast": {"weight": 0.7, "density": 0.5}}
    models = toy_models()
    assert_equal(
        ours(by_hand("ties", some, {}, "base"), models),
        ours(by_hand("ties", full, {}, "base"), models),
    )


def test_groups_are_told_apart() -> None:
    """A group's weight acts on its tensors and on no other."""
    assert set(QUARTERS) == set(GROUPS)
    models = toy_models()
    config = search_config("task_arithmetic", [grouped("weight")], models=("slow",))
    slow = load_file(models["slow"].folder / "model.safetensors")
    base = load_file(models["base"].folder / "model.safetensors")
    merged = ours(recipe_of(config, (0, 0, 1, 0)), models)
    for name, tensor in merged.items():
        expected = slow if "layers.2." in name else base
        assert torch.allclose(tensor.float(), expected[name].float(), atol=1e-2), name
        assert torch.equal(tensor, base[name]) == ("layers.2." not in name), name


# What a merge takes.


class Allocated(TorchDispatchMode):
    """Adds up the bytes of all tensors that are made, and notes the most that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return found

    def _note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._end, key, size)

    def _end(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("method", TESTED)
def test_a_merge_takes_no_more_than_is_left_free_for_it(
    method: str, count: int, in_blocks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In eight blocks, as the embedding of a 7B model; the inputs themselves count as parents."""
    if in_blocks:
        monkeypatch.setattr(blocks, "LARGE", 1)
        monkeypatch.setattr(blocks, "in_blocks", partial(blocks.in_blocks, block=256 * 32))
    names = ["m0", "m1", "m2"][: 1 if method == "slerp" else count]
    models = {}
    for seed, name in enumerate([*names, "base"]):
        tensor = torch.randn(256, 256, generator=torch.Generator().manual_seed(seed))
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}", encoding="utf-8")
        save_file({"x": tensor.bfloat16()}, tmp_path / name / "model.safetensors")
        models[name] = Model(name, tmp_path / name)
    own = {"weight": 0.4, "density": 0.6}
    kept = {k: v for k, v in own.items() if k in METHODS[method].scopes and method != "linear"}
    each = {"weight": 0.4} if method == "linear" else kept
    shared = {"t": 0.4} if method == "slerp" else {}
    base = None if method == "linear" else "base"
    recipe = by_hand(method, dict.fromkeys(names, each), shared, base)
    with Parents(models, "cpu") as weights, Allocated() as allocated:
        for _ in merge(recipe, weights, ["x"]):
            pass
    taken = allocated.most - 2 * 256 * 256 * len(models)
    assert 0 < taken <= merging_bytes(models)
