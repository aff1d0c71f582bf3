"""Canonical form: equal candidate ids mean equal bits, and what is merged is what was asked for.

Small random tensors stand for the models, as in the measurement of liveness, which is tested here
too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l2s_hpc.config import SearchConfig, load_job
from l2s_hpc.recipes.genes import filters, gene_faults, group_faults, space
from l2s_hpc.recipes.methods import METHODS
from l2s_hpc.recipes.models import merged_tensors
from l2s_hpc.records import Recipe
from l2s_hpc.task.engines import MergeError
from l2s_hpc.task.liveness import dead_genes
from l2s_hpc.task.merge import merge
from tests.helpers import QUARTERS, ROOT, recipe_of, search_config, toy_models

NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.2.mlp.up_proj.weight",
    "model.layers.3.self_attn.q_proj.weight",
    "model.norm.weight",
]
KINDS = {
    "mlps": ("mlp",),
    "attentions": ("attention",),
    "others": ("embeddings", "norms", "head"),
}
GROUPS = tuple(QUARTERS)
WEIGHT, LAMBDA = {"parameter": "weight"}, {"parameter": "lambda"}
DENSITY = {"parameter": "density", "low": 0, "high": 1}

Bits = tuple[bytes, ...] | None


class Small:
    """Differences of few distinct sizes, as those of bfloat16 parents are."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.tensors: dict[tuple[str, str], torch.Tensor] = {}
        for name in NAMES:
            base = torch.randn((6, 6), generator=generator).to(torch.bfloat16)
            self.tensors["base", name] = base
            for model in ("slow", "fast", "third"):
                delta = torch.randint(-4, 5, (6, 6), generator=generator) / 64
                self.tensors[model, name] = (base + delta).to(torch.bfloat16)

    def get(self, model: str, tensor: str) -> torch.Tensor:
        return self.tensors[model, tensor]


SMALL = Small()


def merged(recipe: Recipe) -> dict[str, torch.Tensor] | None:
    try:
        return dict(merge(recipe, SMALL, NAMES))
    except MergeError:
        return None


def bits(recipe: Recipe) -> Bits:
    tensors = merged(recipe)
    if tensors is None:
        return None
    return tuple((t + 0.0).view(torch.int16).numpy().tobytes() for t in tensors.values())


def literal(config: SearchConfig, values: Sequence[float]) -> Recipe:
    """Return the recipe as the genome says it, with nothing made canonical."""
    genes = space(config)
    base = "base" if config.merge.base else None
    models: dict[str, dict[str, Any]] = {name: {} for name in config.merge.models}
    shared: dict[str, Any] = dict(config.merge.parameters)
    for gene, value in zip(genes.genes, genes.genome(values), strict=True):
        owner = models[gene.model] if gene.model else shared
        if gene.group is None:
            owner[gene.parameter] = value
        else:
            owner.setdefault(gene.parameter, []).extend(
                {"filter": part, "value": value}
                for part in filters(config.merge.groups[gene.group])
            )
    body = {
        "merge_method": config.merge.method,
        "models": [{"model": name, "parameters": own} for name, own in models.items()],
        "parameters": shared,
        "dtype": "float32",
        "out_dtype": "bfloat16",
        **({"base_model": base} if base else {}),
    }
    return Recipe(config=body, identities={}, seed=config.merge.seed)


def job(method: str, *genes: Mapping[str, Any], **merge_options: Any) -> SearchConfig:
    base = None if method == "linear" else "base"
    merge_options.setdefault("models", ("slow", "fast"))
    merge_options["groups"] = {**QUARTERS, **KINDS}
    parents = ("slow", "fast", "third")
    config = search_config(method, genes, parents=parents, base=base, **merge_options)
    assert not gene_faults(config)
    assert not group_faults(config, NAMES)
    return config


def split(gene: Mapping[str, Any], groups: Iterable[str] = GROUPS) -> dict[str, Any]:
    return {**gene, "groups": tuple(groups)}


def one(gene: Mapping[str, Any], model: str) -> dict[str, Any]:
    return {**gene, "models": (model,)}


NORMAL = {"parameters": {"normalize": True}}
LONE = {"models": ("slow",)}
JOBS = {
    "linear": job("linear", WEIGHT),
    "linear by group": job("linear", split(WEIGHT, ["mlps", "attentions", "others"])),
    "linear, unequal cuts": job(
        "linear",
        one(split(WEIGHT), "slow"),
        one(split(WEIGHT, KINDS), "fast"),
    ),
    "linear, not normalised": job("linear", WEIGHT, parameters={"normalize": False}),
    "linear, one cut of two": job("linear", one(split(WEIGHT), "slow"), one(WEIGHT, "fast")),
    "task_arithmetic": job("task_arithmetic", WEIGHT, DENSITY, LAMBDA),
    "task_arithmetic by group": job("task_arithmetic", split(WEIGHT, KINDS), split(LAMBDA, KINDS)),
    "task_arithmetic, normalised": job("task_arithmetic", WEIGHT, LAMBDA, **NORMAL),
    "ties": job("ties", WEIGHT, DENSITY),
    "ties of one": job("ties", WEIGHT, DENSITY, LAMBDA, **LONE),
    "ties by group": job("ties", split(WEIGHT, KINDS), DENSITY),
    "ties, all by group": job("ties", split(WEIGHT, KINDS), split(DENSITY, KINDS), **LONE),
    "ties, unequal cuts": job("ties", split(WEIGHT), split(DENSITY, KINDS), **LONE),
    "ties, not normalised": job("ties", WEIGHT, LAMBDA, parameters={"normalize": False}),
    "dare_ties": job("dare_ties", WEIGHT, DENSITY, seed=4),
    "dare_linear by group": job("dare_linear", WEIGHT, split(DENSITY, KINDS), seed=4),
    "della of one": job("della", WEIGHT, DENSITY, seed=4, **LONE),
    "slerp": job("slerp", split({"parameter": "t"}, KINDS), models=("slow",)),
    "breadcrumbs": job("breadcrumbs", WEIGHT, DENSITY, {"parameter": "gamma"}),
}
COARSE = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0])


def genomes(config: SearchConfig) -> st.SearchStrategy[list[float]]:
    """Few values, so that genomes often make the same model; densities are shares."""
    share = st.sampled_from([0.0, 0.3, 0.5, 1.0])
    return st.tuples(
        *(
            COARSE if gene.parameter in ("weight", "lambda") else share
            for gene in space(config).genes
        )
    ).map(list)


several = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", JOBS)
def test_equal_ids_mean_equal_bits_and_equal_meaning(name: str) -> None:
    """Many genomes of a job: one id, one model; and each is what its genome literally says."""
    config = JOBS[name]
    seen: dict[str, Bits] = {}

    @several
    @given(genomes(config))
    def check(values: list[float]) -> None:
        recipe = recipe_of(config, values)
        found = bits(recipe)
        assert seen.setdefault(recipe.candidate, found) == found
        said = merged(literal(config, values))
        if config.merge.seed and not all(values):
            return  # a silent model draws no random numbers, so others draw different ones
        assert (found is None) == (said is None)
        if said is not None:
            assert_near(merged(recipe), said)

    check()


def assert_near(found: dict[str, torch.Tensor] | None, said: dict[str, torch.Tensor]) -> None:
    """Equal up to one rounding step of bfloat16, at the size of what was added up."""
    assert found is not None
    for name, tensor in said.items():
        step = torch.maximum(tensor.abs().float(), torch.tensor(2**-12)) * 2**-7
        assert ((tensor.float() - found[name].float()).abs() <= step).all(), name


SAME = [
    ("ties of one", (0.5, 0.4, 1.0), (2.0, 0.4, 1.0), "the lone weight cancels"),
    ("ties of one", (-0.5, 0.4, 1.0), (2.0, 0.4, 1.0), "its sign too"),
    ("ties of one", (0.5, 0.0, 1.0), (0.0, 0.7, 1.0), "density 0 = weight 0 = base"),
    ("ties of one", (0.5, 0.4, 0.0), (0.0, 0.7, 1.0), "lambda 0 = base"),
    ("ties", (0.5, 0.3, 0.4, 0.0), (2.0, 0.0, 0.4, 0.9), "the other one is silent"),
    (
        "ties by group",
        (1, 2, 3, 0, 1, 1, 0.5, 0.5),
        (9, 2, 3, 0, 1, 1, 0.5, 0.5),
        "alone in a group",
    ),
    ("ties, all by group", (1, 0, 1, 0.5, 0.3, 0.5), (1, 0, 1, 0.5, 0.9, 0.5), "silent group"),
    ("ties, all by group", (1, 0, 1, 0.5, 0.3, 0.5), (1, 2, 1, 0.5, 0.0, 0.5), "silent group"),
    ("ties, unequal cuts", (0,) * 4 + (0.1, 0.2, 0.3), (1, 2, 3, 4, 0, 0, 0), "base in both"),
    ("linear", (0.2, 0.6), (0.5, 1.5), "scaled"),
    ("linear", (-0.2, 0.6), (-0.5, 1.5), "scaled, with a negative weight"),
    ("linear by group", (1, 1, 1, 3, 3, 3), (0.5, 1, 2, 1.5, 3, 6), "scaled by group"),
    ("linear, one cut of two", (1, 1, 1, 1, 3), (2, 2, 2, 2, 6), "a value for all groups"),
    ("task_arithmetic", (0.5, 1, 1, 1, 2), (1, 2, 1, 1, 1), "lambda is in the weights"),
    ("task_arithmetic", (0.5, 1, 0.0, 0.3, 1), (0.5, 1, 0.8, 1, 1), "it has no density"),
    (
        "task_arithmetic by group",
        (1, 2, 3, 1, 2, 3, 2, 2, 2),
        (2, 4, 6, 2, 4, 6, 1, 1, 1),
        "groups",
    ),
    (
        "task_arithmetic by group",
        (1, 2, 3, 0, 0, 0, 2, 1, 0),
        (2, 2, 0, 0, 0, 0, 1, 1, 1),
        "groups",
    ),
    ("dare_ties", (0.5, 0.0, 0.5, 0.1), (0.5, 0.7, 0.5, 0.0), "a silent model draws nothing"),
    ("della of one", (0.5, 0.6), (3.0, 0.6), "normalised by default"),
    ("task_arithmetic", (-1e-7, 1, 1, 1, 1), (0, 1, 1, 1, 1), "minus zero"),
]


@pytest.mark.parametrize(("name", "first", "second", "why"), SAME)
def test_the_same_model_has_one_id(
    name: str, first: Sequence[float], second: Sequence[float], why: str
) -> None:
    config = JOBS[name]
    one_recipe, other = recipe_of(config, first), recipe_of(config, second)
    assert one_recipe.candidate == other.candidate, why
    assert bits(one_recipe) == bits(other) is not None


DIFFERENT = [
    ("ties of one", (0.5, 0.4, 1.0), (0.5, 0.5, 1.0)),
    ("ties of one", (0.5, 0.4, 1.0), (0.5, 0.4, 1.1)),
    ("ties of one", (0.5, 0.4, 1.0), (0.0, 0.4, 1.0)),
    ("ties", (0.5, 0.3, 0.4, 0.5), (0.5, 0.6, 0.4, 0.5)),
    ("ties, unequal cuts", (1, 1, 0, 0, 0, 1, 1), (1, 1, 0, 0, 1, 0, 1)),
    ("linear", (0.2, 0.6), (0.6, 0.2)),
    ("linear", (1, -1.5), (-1, -1.5)),
    ("linear, not normalised", (0.2, 0.6), (0.5, 1.5)),
    ("linear, unequal cuts", (1, 2, 3, 4, 1, 1, 1), (1, 2, 3, 4, 2, 1, 1)),
    ("task_arithmetic", (0.5, 1, 1, 1, 2), (0.5, 1, 1, 1, 1)),
    ("dare_ties", (0.5, 0.7, 0.5, 0.3), (0.5, 0.7, 0.5, 0.4)),
    ("slerp", (0.1, 0.2, 0.3), (0.1, 0.3, 0.2)),
]


@pytest.mark.parametrize(("name", "first", "second"), DIFFERENT)
def test_different_models_have_different_ids(
    name: str, first: Sequence[float], second: Sequence[float]
) -> None:
    config = JOBS[name]
    assert bits(recipe_of(config, first)) != bits(recipe_of(config, second))
    assert recipe_of(config, first).candidate != recipe_of(config, second).candidate


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties"])
@given(values=st.tuples(*[st.floats(-2, 2)] * 4))
@settings(max_examples=30, deadline=None)
def test_equal_group_values_are_the_global_value(method: str, values: tuple[float, ...]) -> None:
    density = () if method == "linear" else (DENSITY,)
    split_density = tuple(split(entry) for entry in density)
    whole = job(method, WEIGHT, *density)
    cut = job(method, split(WEIGHT), *split_density)
    given_values = list(values[: len(space(whole).genes)])
    repeated = [value for value in given_values for _ in GROUPS]
    assert recipe_of(whole, given_values).candidate == recipe_of(cut, repeated).candidate


def test_other_weights_of_the_same_name_are_another_candidate() -> None:
    config = JOBS["ties"]
    ids = {"slow": "1", "fast": "2", "third": "3", "base": "4"}
    values = (0.5, 0.3, 0.4, 0.5)
    first = recipe_of(config, values, ids)
    assert first.candidate != recipe_of(config, values, ids | {"fast": "9"}).candidate
    assert first.candidate == recipe_of(config, values, ids | {"third": "9"}).candidate


def test_a_parameter_that_says_what_the_method_does_anyway_is_left_out() -> None:
    said = job("ties", WEIGHT, parameters={"normalize": True, "lambda": 1.0})
    unsaid = job("ties", WEIGHT)
    assert recipe_of(said, (1, 2)).candidate == recipe_of(unsaid, (1, 2)).candidate


def test_a_model_without_its_weight_is_refused() -> None:
    config = search_config("ties", [one(WEIGHT, "slow"), DENSITY])
    assert gene_faults(config) == ["the method ties needs 'weight' for 'fast' too"]
    assert not gene_faults(search_config("ties", [WEIGHT, one(DENSITY, "slow")]))
    assert gene_faults(search_config("ties", [DENSITY])) == ["the method ties needs 'weight'"]


# Liveness.


def test_the_weight_of_a_lone_task_vector_is_dead() -> None:
    config = search_config("ties", [WEIGHT, DENSITY, LAMBDA], models=("slow",))
    assert dead_genes(config, NAMES) == ["weight.slow"]
    both = search_config("ties", [WEIGHT, DENSITY])
    assert dead_genes(both, NAMES) == []
    unnormalised = config.model_copy(
        update={"merge": config.merge.model_copy(update={"parameters": {"normalize": False}})}
    )
    assert dead_genes(unnormalised, NAMES) == []


@given(st.floats(0.05, 0.4))
@settings(max_examples=5, deadline=None)
def test_density_of_task_arithmetic_is_dead(low: float) -> None:
    density = {"parameter": "density", "low": low, "high": 1.0}
    config = search_config("task_arithmetic", [WEIGHT, density])
    assert dead_genes(config, NAMES) == ["density.slow", "density.fast"]


def test_a_group_without_tensors_is_dead() -> None:
    """An untied head is not among these tensors."""
    groups = {"head": ("head",), "rest": ("embeddings", "norms", "attention", "mlp")}
    gene = {**WEIGHT, "groups": ("head", "rest")}
    config = search_config("task_arithmetic", [gene], groups=groups)
    assert dead_genes(config, NAMES) == ["weight.slow.head", "weight.fast.head"]
    assert dead_genes(config, [*NAMES, "lm_head.weight"]) == []


def test_all_weights_of_the_toy_job_are_alive() -> None:
    config = load_job(ROOT / "jobs" / "toy.toml")
    assert len(space(config).genes) == 8
    assert dead_genes(config, merged_tensors(toy_models())) == []


def test_frozen_genes_keep_the_default_and_are_not_searched() -> None:
    density = {"parameter": "density", "low": 0.1, "high": 0.9}
    config = search_config("task_arithmetic", [WEIGHT, density])
    frozen = space(config).freeze(["density.slow", "density.fast"], METHODS["task_arithmetic"])
    assert [gene.name for gene in frozen.searched] == ["weight.slow", "weight.fast"]
    assert frozen.genome([0.3, 0.4]) == (0.3, 0.4, 0.9, 0.9)
