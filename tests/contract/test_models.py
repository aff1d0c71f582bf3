"""Parents as they are met: tied or not, in shards, too long, broken, of another kind."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from safetensors.torch import load_file, save_file

from l2s_hpc.config import ModelSource
from l2s_hpc.errors import UserError
from l2s_hpc.recipes.models import (
    EMBEDDING,
    HEAD,
    Model,
    compatibility_faults,
    locate,
    merged_config,
    merged_tensors,
)
from l2s_hpc.recipes.recipe import mergekit_config
from l2s_hpc.task.merge import merge
from l2s_hpc.task.parents import Parents
from tests.helpers import TOY, recipe_of, search_config, toy_models

Tensors = dict[str, torch.Tensor]

torch.set_num_threads(1)


def weights_of(folder: Path) -> Tensors:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(config), encoding="utf-8")


def copy(name: str, folder: Path, **config: Any) -> Model:
    """Return a copy of a toy model, with some changes of its config."""
    shutil.copytree(TOY / name, folder)
    change_config(folder, **config)
    return Model(name, folder)


def untied(name: str, folder: Path, seed: int) -> Model:
    """Return a copy with a head of its own, which is not its embedding."""
    model = copy(name, folder, tie_word_embeddings=False)
    tensors = weights_of(folder)
    noise = torch.randn(tensors[EMBEDDING].shape, generator=torch.Generator().manual_seed(seed))
    tensors[HEAD] = (tensors[EMBEDDING].float() * 0.9 + noise * 0.01).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.fixture(scope="module")
def own_heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    root = tmp_path_factory.mktemp("untied")
    return {n: untied(n, root / n, seed) for seed, n in enumerate(("slow", "fast", "base"))}


MIXES = [("slow",), ("fast",), ("base",), ("slow", "base"), ("slow", "fast", "base")]
METHODS = {
    "task_arithmetic": ([{"parameter": "weight"}], (0.4, 0.7)),
    "ties": ([{"parameter": "weight"}, {"parameter": "density"}], (0.4, 0.7, 0.5, 0.6)),
    "dare_ties": ([{"parameter": "weight"}, {"parameter": "density"}], (0.4, 0.7, 0.5, 0.6)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("with_heads", MIXES, ids="+".join)
def test_where_one_parent_has_a_head_the_merge_has_one(
    method: str, with_heads: tuple[str, ...], own_heads: Mapping[str, Model], tmp_path: Path
) -> None:
    models = toy_models() | {name: own_heads[name] for name in with_heads}
    assert not compatibility_faults(models)
    assert merged_config(models, "slow")["tie_word_embeddings"] is False
    genes, values = METHODS[method]
    recipe = recipe_of(search_config(method, genes, seed=5), values)
    with Parents(models, "cpu") as weights:
        merged = dict(merge(recipe, weights, merged_tensors(models)))
        head = weights.get("base", HEAD)
    assert not torch.equal(merged[HEAD], merged[EMBEDDING])
    expected = by_mergekit(recipe, models, tmp_path)
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        assert torch.equal(tensor, expected[name]), name
    if method == "task_arithmetic":  # and once by the formula itself
        with Parents(models, "cpu") as weights:
            slow, fast, base = (weights.get(m, HEAD).float() for m in ("slow", "fast", "base"))
        by_formula = base + (torch.tensor(0.4) * (slow - base) + torch.tensor(0.7) * (fast - base))
        assert torch.equal(merged[HEAD], by_formula.to(torch.bfloat16))
        assert torch.equal(base.to(torch.bfloat16), head)


def by_mergekit(recipe: Any, models: Mapping[str, Model], out: Path) -> Tensors:
    config = mergekit_config(recipe, {name: model.folder for name, model in models.items()})
    options = MergeOptions(
        random_seed=recipe.seed, quiet=True, copy_tokenizer=False, write_model_card=False
    )
    run_merge(MergeConfiguration.model_validate(config), str(out), options)
    return weights_of(out)


def test_tied_parents_make_a_tied_model() -> None:
    models = toy_models()
    assert HEAD not in merged_tensors(models)
    assert merged_config(models, "fast")["tie_word_embeddings"] is True


def test_a_config_that_leaves_the_tie_to_the_default(tmp_path: Path) -> None:
    """Some families tie by default and do not say so: no stored head, then it is the embedding."""
    model = copy("slow", tmp_path / "slow")
    config = model.config
    del config["tie_word_embeddings"]
    (model.folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    models = toy_models("fast", "base") | {"slow": Model("slow", model.folder)}
    assert models["slow"].tied
    assert merged_config(models, "slow")["tie_word_embeddings"] is True


def test_a_tied_config_with_a_stored_head(own_heads: Mapping[str, Model], tmp_path: Path) -> None:
    shutil.copytree(own_heads["slow"].folder, tmp_path / "slow")
    change_config(tmp_path / "slow", tie_word_embeddings=True)
    model = Model("slow", tmp_path / "slow")
    assert not model.tied
    with Parents({"slow": model}, "cpu") as weights:
        assert torch.equal(weights.get("slow", HEAD), weights_of(model.folder)[HEAD])


def test_the_longest_context_and_the_rest_of_the_tokenizers_config(tmp_path: Path) -> None:
    long = copy("fast", tmp_path / "fast", max_position_embeddings=4096, eos_token_id=455)
    models = toy_models("slow", "base") | {"fast": long}
    assert not compatibility_faults(models)
    config = merged_config(models, "slow")
    assert config["max_position_embeddings"] == 4096
    assert config["eos_token_id"] == 454
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert models["slow"].config["max_position_embeddings"] == 512  # the input is left alone


def shard(folder: Path) -> dict[str, str]:
    """Cut a model's file in two, with an index; return which tensor is where."""
    tensors = weights_of(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    places = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return places


def test_shards_are_read(tmp_path: Path) -> None:
    model = copy("slow", tmp_path / "slow")
    places = shard(model.folder)
    assert {name: tensor.file.name for name, tensor in model.tensors.items()} == places
    models = toy_models("fast", "base") | {"slow": model}
    assert not compatibility_faults(models)
    recipe = recipe_of(search_config("ties", METHODS["ties"][0]), METHODS["ties"][1])
    with Parents(models, "cpu") as cut, Parents(toy_models(), "cpu") as whole:
        names = merged_tensors(models)
        pairs = zip(merge(recipe, cut, names), merge(recipe, whole, names), strict=True)
        assert all(torch.equal(a[1], b[1]) for a, b in pairs)
    assert model.identity != toy_models("slow")["slow"].identity


def test_files_that_the_index_does_not_name_are_not_read(tmp_path: Path) -> None:
    """Such as the `consolidated.safetensors` that some publishers put beside the shards."""
    model = copy("slow", tmp_path / "slow")
    places = shard(model.folder)
    save_file({"tok_embeddings.weight": torch.zeros(2)}, model.folder / "consolidated.safetensors")
    assert model.tensors.keys() == places.keys()


def test_a_missing_shard(tmp_path: Path) -> None:
    model = copy("slow", tmp_path / "slow")
    shard(model.folder)
    (model.folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model-00002-of-00002\.safetensors") as caught:
        _ = model.tensors
    assert str(model.folder) in str(caught.value)


# What is refused, and in which words.


def located(folder: Path) -> Model:
    return locate("slow", ModelSource(path=str(folder)))


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model 'slow' is not here: no folder"):
        located(tmp_path / "nowhere")


def test_only_pickles(tmp_path: Path) -> None:
    model = copy("slow", tmp_path / "slow")
    torch.save({}, model.folder / "pytorch_model.bin")
    (model.folder / "model.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        _ = located(model.folder).tensors
    assert "no safetensors weights (found pickle weights: pytorch_model.bin)" in str(caught.value)
    assert "pickles can run code" in str(caught.value)


def test_no_weights_and_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model 'slow' has no safetensors weights\n"):
        _ = located(tmp_path).tensors
    with pytest.raises(UserError, match=r"model 'slow' has no config\.json"):
        _ = located(tmp_path).config


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (1_000_000, r"the file has 1000000 bytes, its header says \d{7}"),
        (1_000, "the safetensors header is damaged"),
        (4, "the safetensors header is damaged"),
        (0, "not a safetensors file"),
    ],
)
def test_a_truncated_file(kept: int, message: str, tmp_path: Path) -> None:
    model = copy("slow", tmp_path / "slow")
    file = model.folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=message) as caught:
        _ = located(model.folder).tensors
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("junk", [b"<html>not found</html>" * 99, b"version https://git-lfs\n" * 9])
def test_another_file_under_that_name(junk: bytes, tmp_path: Path) -> None:
    model = copy("slow", tmp_path / "slow")
    (model.folder / "model.safetensors").write_bytes(junk)
    with pytest.raises(UserError, match="not a safetensors file"):
        _ = model.tensors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 64}, "'base' and 'slow' differ in hidden_size: 128 and 64"),
        ({"num_hidden_layers": 5}, "'base' and 'slow' differ in num_hidden_layers: 4 and 5"),
        ({"model_type": "llama"}, "'base' and 'slow' differ in model_type: qwen2 and llama"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "'base' and 'slow' differ in rope_theta"),
    ],
)
def test_a_parent_of_another_shape(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = copy("slow", tmp_path / "slow", **changes)
    assert compatibility_faults(toy_models("base") | {"slow": model}) == [message]


def test_parents_of_other_tensors(tmp_path: Path) -> None:
    model = copy("slow", tmp_path / "slow")
    tensors = weights_of(model.folder)
    del tensors["model.norm.weight"]
    tensors["extra"] = torch.zeros(1)
    tensors[EMBEDDING] = tensors[EMBEDDING][:459].clone()
    save_file(tensors, model.folder / "model.safetensors")
    faults = compatibility_faults(toy_models("base") | {"slow": model})
    assert faults == [
        "tensor extra is missing in 'base'",
        f"'base' and 'slow' differ in shape of {EMBEDDING}: [460, 128], [459, 128]",
        "tensor model.norm.weight is missing in 'slow'",
    ]


def test_many_faults_are_counted(tmp_path: Path) -> None:
    model = copy("slow", tmp_path / "slow")
    save_file({EMBEDDING: torch.zeros(460, 128)}, model.folder / "model.safetensors")
    faults = compatibility_faults(toy_models("base") | {"slow": model})
    assert len(faults) == 6
    assert re.fullmatch(r"… and \d+ more tensors", faults[-1])


def test_other_weights_have_another_identity(tmp_path: Path) -> None:
    assert len({model.identity for model in toy_models().values()}) == 3
    same = copy("slow", tmp_path / "copied")
    assert same.identity == toy_models("slow")["slow"].identity
    file = same.folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert Model("slow", same.folder).identity != same.identity
