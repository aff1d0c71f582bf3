"""Genes and their values, groups of tensors, what is refused, and the names of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from l2s_hpc.config import SearchConfig, load_job, validate
from l2s_hpc.errors import UserError
from l2s_hpc.recipes.genes import (
    Gene,
    base_name,
    filters,
    gene_faults,
    group_faults,
    merged_models,
    space,
)
from l2s_hpc.recipes.methods import METHODS, TESTED, method
from l2s_hpc.recipes.recipe import average, make_recipe, silent_genes, single_model
from l2s_hpc.search.references import references, sweep_labels

IDENTITIES = {"slow": "1" * 16, "fast": "2" * 16, "base": "3" * 16, "third": "4" * 16}
TENSORS = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"] + [
    f"model.layers.{layer}.{part}.weight"
    for layer in range(12)
    for part in (
        "input_layernorm",
        "post_attention_layernorm",
        "self_attn.q_proj",
        "self_attn.k_norm",
        "mlp.down_proj",
    )
]
ENDS = ["embeddings", "head", "final_norm"]
HALVES = {"low": [*ENDS, "layers.0-5"], "top": ["layers.6-11"]}
WEIGHT = {"parameter": "weight", "low": 0.0, "high": 1.0, "step": 0.25}


ROOT = Path(__file__).parents[2]


def job(**changes: Any) -> SearchConfig:
    """Task arithmetic of two parents with a base of its own, two groups, and these changes."""
    data: dict[str, Any] = {
        "name": "small",
        "benchmarks": ["toy_easy"],
        "parents": {"slow": "x", "fast": "y"},
        "merge": {"method": "task_arithmetic", "base": "z", "groups": HALVES},
        "genes": [WEIGHT | {"groups": ["low", "top"]}],
    }
    return validate(SearchConfig, data | changes)


def linear(**changes: Any) -> SearchConfig:
    return job(merge={"method": "linear", "groups": HALVES}, genes=[WEIGHT], **changes)


def candidate(config: SearchConfig, *genome: float) -> str:
    return make_recipe(config, space(config), genome, IDENTITIES).candidate


# Genes and values


def test_genes_are_named_and_ordered_as_the_job_says() -> None:
    density = {"parameter": "density", "models": ["fast"], "low": 0.1, "high": 1.0}
    shared = {"parameter": "lambda", "low": 0.5, "high": 1.5}
    config = job(genes=[WEIGHT | {"groups": ["top", "low"]}, density, shared])
    assert [gene.name for gene in space(config).genes] == [
        "weight.slow.top",
        "weight.slow.low",
        "weight.fast.top",
        "weight.fast.low",
        "density.fast",
        "lambda",
    ]
    assert gene_faults(config) == []


finite = st.floats(-1e3, 1e3, allow_nan=False)


@st.composite
def genes(draw: st.DrawFn) -> Gene:
    low, width = draw(finite), draw(st.floats(1e-6, 1e3))
    step = draw(st.none() | st.floats(1e-6, 2e3))
    assume(low < low + width)
    log = low > 1e-6 and draw(st.booleans())
    return Gene("weight", "slow", None, low, low + width, step, log)


@given(genes(), st.floats(allow_nan=False, allow_infinity=False))
def test_a_snapped_value_is_inside_the_bounds_and_stays(gene: Gene, value: float) -> None:
    snapped = gene.snap(value)
    assert gene.low <= snapped <= gene.high
    assert gene.snap(snapped) == snapped
    assert str(snapped) != "-0.0"


@given(genes(), st.floats(0, 1))
def test_a_value_moves_by_half_a_step_at_most(gene: Gene, share: float) -> None:
    value = gene.low + share * (gene.high - gene.low)
    step = gene.step or 1e-6
    beyond_last = gene.high - gene.low - int((gene.high - gene.low) / step + 1e-9) * step
    assert abs(gene.snap(value) - value) <= max(step / 2, beyond_last) + 1e-6


@pytest.mark.parametrize(
    ("low", "high", "step", "value", "snapped"),
    [
        (0.0, 1.0, 0.05, 0.34, 0.35),
        (0.0, 1.0, 0.05, 7.0, 1.0),
        (0.0, 1.0, 0.3, 1.0, 0.9),
        (0.1, 1.0, 0.1, 0.3000001, 0.3),
        (0.1, 0.2, 0.5, 0.19, 0.1),
        (-1.0, 1.0, None, -1e-9, 0.0),
        (0.1234564, 0.9999999, None, 0.0, 0.1234564),
        (0.1234567, 0.9999999, None, 2.0, 0.9999999),
        (0.0, 1.0, None, 0.12345678, 0.123457),
    ],
)
def test_snapping(
    low: float, high: float, step: float | None, value: float, snapped: float
) -> None:
    assert Gene("weight", None, None, low, high, step, False).snap(value) == snapped


def test_frozen_genes_keep_their_value_and_are_not_searched() -> None:
    config = job(
        merge={"method": "ties", "base": "z"},
        genes=[WEIGHT, {"parameter": "density", "low": 0.2, "high": 0.9}],
    )
    ties = method("ties")
    frozen = space(config).freeze(["weight.slow", "density.fast"], ties)
    assert frozen.frozen == {"weight.slow": 0.5, "density.fast": 0.9}, "default, else the middle"
    assert [gene.name for gene in frozen.searched] == ["weight.fast", "density.slow"]
    assert frozen.genome([0.25, 0.3]) == (0.5, 0.25, 0.3, 0.9)
    assert space(config).genome([0.1, 0.5, 0.3, 0.4]) == (0.0, 0.5, 0.3, 0.4)


# Groups of tensors


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("attention", ["self_attn"]),
        ("layers.3", ["layers.3."]),
        ("layers.9-11", ["layers.9.", "layers.10.", "layers.11."]),
        ("layers.3.mlp", ["layers.3.mlp."]),
        ("layers.0-1.attention", ["layers.0.self_attn.", "layers.1.self_attn."]),
        (
            "layers.2.norms",
            ["layers.2.input_layernorm.", "layers.2.post_attention_layernorm."],
        ),
        ("layers", []),
        ("layers.5-2", []),
        ("layers.1.head", []),
        ("layers.x", []),
        ("", []),
        (".*", []),
    ],
)
def test_selectors_become_filters(selector: str, found: list[str]) -> None:
    assert filters([selector]) == found


def test_a_layer_is_not_another_whose_number_begins_or_ends_alike() -> None:
    for layer in range(12):
        (part,) = filters([f"layers.{layer}"])
        held = [tensor for tensor in TENSORS if part in tensor]
        assert held == [tensor for tensor in TENSORS if str(layer) in tensor.split(".")]


@pytest.mark.parametrize(
    "groups",
    [
        HALVES,
        {"low": ["embeddings", "norms", "attention"], "top": ["head", "mlp"]},
        {"low": ["embeddings", "norms", "mlp"], "top": ["layers.0-11.attention", "head"]},
    ],
)
def test_groups_that_hold_every_tensor_once_are_fine(groups: dict[str, list[str]]) -> None:
    config = job(merge={"method": "linear", "groups": groups})
    assert group_faults(config, TENSORS) == []


def test_tensors_in_no_group_or_two_are_named() -> None:
    groups = {"low": ["layers.0-6", "embeddings"], "top": ["layers.6-11", "head"]}
    config = job(merge={"method": "linear", "groups": groups})
    assert group_faults(config, TENSORS)[:2] == [
        "genes.0: tensor model.norm.weight is in no group",
        "genes.0: tensor model.layers.6.input_layernorm.weight is in low and top",
    ]
    assert len(group_faults(config, TENSORS)) == 5, "the first five of an entry are enough"


def test_genes_for_all_tensors_need_no_groups() -> None:
    assert group_faults(linear(), TENSORS) == []


# What is refused


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, []),
        (
            {"merge": {"method": "tie"}},
            ["merge.method: unknown 'tie': did you mean 'ties'?"],
        ),
        (
            {"merge": {"method": "task_arithmetic", "groups": HALVES}},
            ["the method task_arithmetic needs merge.base"],
        ),
        (
            {"merge": {"method": "linear", "base": "z", "groups": HALVES}},
            ["the method linear has no base: leave merge.base out"],
        ),
        (
            {"merge": {"method": "linear", "models": ["slow", "fats"]}, "genes": [WEIGHT]},
            ["merge.models: no parent 'fats': did you mean 'fast'?"],
        ),
        (
            {"merge": {"method": "linear", "tokenizer": "quick"}, "genes": [WEIGHT]},
            ["merge.tokenizer: no parent 'quick'"],
        ),
        (
            {
                "merge": {"method": "slerp", "base": "slow"},
                "parents": {"slow": "x", "fast": "y", "third": "w"},
                "genes": [WEIGHT | {"parameter": "t"}],
            },
            ["the method slerp merges 2 models, not 3"],
        ),
        (
            {"merge": {"method": "linear"}, "parents": {"slow": "x"}, "genes": [WEIGHT]},
            ["parents: a search needs at least two"],
        ),
        (
            {
                "merge": {"method": "task_arithmetic", "base": "elsewhere"},
                "parents": {"slow": "x", "base": "y"},
                "genes": [WEIGHT | {"models": ["slow"]}],
            },
            ["a parent named 'base' and another model as merge.base: rename the parent"],
        ),
        (
            {"genes": [WEIGHT, WEIGHT | {"parameter": "densty"}]},
            [
                "genes.1: the method task_arithmetic has no parameter 'densty': "
                "did you mean 'density'?"
            ],
        ),
        (
            {
                "merge": {"method": "linear", "parameters": {"weight": 1.0}},
                "genes": [WEIGHT],
            },
            ["genes.0: 'weight' is fixed in merge.parameters too"],
        ),
        (
            {"genes": [WEIGHT, WEIGHT | {"parameter": "lambda", "models": ["slow"]}]},
            ["genes.1: 'lambda' is shared by all models: leave models out"],
        ),
        (
            {"genes": [WEIGHT | {"models": ["slow", "fast", "fist"]}]},
            ["genes.0: no merged model 'fist': did you mean 'fast'?"],
        ),
        (
            {"genes": [WEIGHT | {"groups": ["low", "tops"]}]},
            ["genes.0: no group 'tops' in merge.groups: did you mean 'top'?"],
        ),
        (
            {"merge": {"method": "linear"}, "genes": [WEIGHT | {"groups": ["low"]}]},
            ["genes.0: no group 'low' in merge.groups: valid: (none are defined)"],
        ),
        (
            {
                "merge": {"method": "linear", "parameters": {"normalise": True}},
                "genes": [WEIGHT],
            },
            ["merge.parameters: unknown 'normalise': did you mean 'normalize'?"],
        ),
        (
            {
                "merge": {"method": "linear", "groups": HALVES | {"odd": ["atention"]}},
                "genes": [WEIGHT],
            },
            ["merge.groups.odd: unknown selector 'atention': did you mean 'attention'?"],
        ),
        (
            {"genes": [WEIGHT | {"groups": ["low", "top", "low"]}]},
            [
                "the gene weight.fast.low is there twice",
                "the gene weight.slow.low is there twice",
            ],
        ),
        (
            {"genes": [WEIGHT | {"groups": ["low", "top"]}, WEIGHT | {"models": ["slow"]}]},
            ["the gene weight.slow is in two entries of [[genes]]"],
        ),
        (
            {"genes": [WEIGHT | {"parameter": "density"}]},
            ["the method task_arithmetic needs 'weight'"],
        ),
        (
            {"genes": [WEIGHT | {"models": ["slow"]}]},
            ["the method task_arithmetic needs 'weight' for 'fast' too"],
        ),
    ],
)
def test_what_a_method_cannot_have_is_said(changes: dict[str, Any], lines: list[str]) -> None:
    assert gene_faults(job(**changes)) == lines


def test_all_faults_are_said_at_once() -> None:
    config = job(
        merge={"method": "linear", "base": "z", "tokenizer": "quick", "parameters": {"x": 1}},
        genes=[WEIGHT | {"parameter": "density"}, WEIGHT | {"groups": ["low"]}],
    )
    assert len(gene_faults(config)) == 5


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match="'sler'\n  Hint: did you mean 'slerp'"):
        method("sler")


def test_every_method_can_be_searched_without_faults() -> None:
    assert set(TESTED) <= METHODS.keys()
    for entry in METHODS.values():
        if not entry.scopes or entry.max_inputs == 1:
            continue
        names = sorted(entry.required) or sorted(entry.scopes)[:1]
        wanted = [WEIGHT | {"parameter": name} for name in names]
        base = {"base": "slow"} if entry.base == "required" else {}
        config = job(merge={"method": entry.name, **base}, genes=wanted)
        assert gene_faults(config) == []
        found = space(config)
        recipe = make_recipe(config, found, tuple(g.high for g in found.genes), IDENTITIES)
        assert set(recipe.identities) == {"slow", "fast"}


def test_the_base_is_a_parent_or_a_model_of_its_own() -> None:
    assert base_name(job()) == "base" and merged_models(job()) == ("slow", "fast")
    of_parent = job(merge={"method": "slerp", "base": "slow"})
    assert base_name(of_parent) == "slow" and merged_models(of_parent) == ("fast",)
    assert base_name(linear()) is None


# Names of recipes


def test_candidate_ids_are_those_of_earlier_versions() -> None:
    """Whoever changes an id changes what recorded runs are compared with."""
    toy = load_job(Path(__file__).parents[2] / "jobs" / "toy.toml")
    genome = (0.35, 0.0, 0.65, 1.0, 0.0, 0.0, 0.5, 0.05)
    assert candidate(toy, *genome) == "f42d1da9c4376209"
    assert candidate(linear(), 0.25, 0.75) == "8feb2ed2e568605a"


grid = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
genomes = st.tuples(grid, grid, grid, grid)


@given(genomes)
def test_equal_genomes_have_equal_ids_and_sixteen_digits(genome: tuple[float, ...]) -> None:
    first, again = candidate(job(), *genome), candidate(job(), *[v + 0.0 for v in genome])
    assert first == again and len(first) == 16 and int(first, 16) >= 0


@given(genomes, genomes)
def test_genomes_of_other_weights_have_other_ids(
    one: tuple[float, ...], two: tuple[float, ...]
) -> None:
    """With task arithmetic over all groups, every weight changes the model."""
    assert (candidate(job(), *one) == candidate(job(), *two)) == (one == two)


@given(genomes)
def test_the_order_in_which_genes_are_written_does_not_change_a_model(
    genome: tuple[float, ...],
) -> None:
    swapped = job(genes=[WEIGHT | {"groups": ["low", "top"], "models": ["fast", "slow"]}])
    assert candidate(job(), *genome) == candidate(swapped, *genome[2:], *genome[:2])


def test_ids_depend_on_the_weights_that_names_stand_for() -> None:
    config, genome = linear(), (0.25, 0.75)
    changed = IDENTITIES | {"fast": "9" * 16}
    ids = {make_recipe(config, space(config), genome, i).candidate for i in (IDENTITIES, changed)}
    assert len(ids) == 2
    unused = IDENTITIES | {"third": "9" * 16}
    assert make_recipe(config, space(config), genome, unused).candidate in ids


def test_the_seed_belongs_to_methods_that_draw() -> None:
    for name, count in (("dare_ties", 2), ("ties", 1)):
        ids = set()
        for seed in (0, 1):
            merge = {"method": name, "base": "z", "seed": seed, "parameters": {"density": 0.5}}
            ids.add(candidate(job(merge=merge, genes=[WEIGHT]), 0.5, 0.75))
        assert len(ids) == count


def test_groups_that_cut_differently_make_a_recipe_too() -> None:
    groups = HALVES | {"a": [*ENDS, "norms"], "b": ["attention", "mlp"]}
    config = job(
        merge={"method": "ties", "base": "z", "groups": groups},
        genes=[
            WEIGHT | {"groups": ["low", "top"]},
            WEIGHT | {"parameter": "density", "groups": ["a", "b"]},
        ],
    )
    found = space(config)
    recipe = make_recipe(config, found, (0.25, 0.5, 0.75, 1, 0.25, 0.5, 0.75, 1), IDENTITIES)
    settings = recipe.config["models"][0]["parameters"]
    assert [len(settings[name]) for name in ("weight", "density")] == [15, 7]


# References


def test_the_ends_of_the_sweep_are_the_parents_and_the_middle_is_the_average() -> None:
    found = references(linear(), IDENTITIES)
    assert list(found) == [
        "parent.slow",
        "parent.fast",
        "average",
        *(f"sweep.{share}" for share in ("0", "0.25", "0.5", "0.75", "1")),
    ]
    assert found["sweep.1"] == found["parent.slow"] == single_model("slow", IDENTITIES)
    assert found["sweep.0"] == found["parent.fast"] == single_model("fast", IDENTITIES)
    assert found["sweep.0.5"] == found["average"]
    weights = [m["parameters"]["weight"] for m in found["average"].config["models"]]
    assert weights == [0.5, 0.5]
    quarter = found["sweep.0.25"].config["models"]
    assert [(m["model"], m["parameters"]["weight"]) for m in quarter] == [
        ("slow", 0.25),
        ("fast", 0.75),
    ]
    assert found["parent.slow"].identities == {"slow": "1" * 16}


@pytest.mark.parametrize(
    ("points", "shares"),
    [(0, []), (1, ["0.5"]), (2, ["0", "1"]), (4, ["0", "0.333333", "0.666667", "1"])],
)
def test_the_sweep_has_as_many_points_as_wanted(points: int, shares: list[str]) -> None:
    found = references(linear(references={"sweep": points}), IDENTITIES)
    assert sweep_labels(dict.fromkeys(found, "")) == [f"sweep.{share}" for share in shares]


def test_of_three_parents_all_are_references_and_in_the_average() -> None:
    config = linear(parents={"slow": "x", "fast": "y", "third": "w"})
    found = references(config, IDENTITIES)
    assert "parent.third" in found
    models = found["average"].config["models"]
    assert [m["parameters"]["weight"] for m in models] == [pytest.approx(1 / 3)] * 3
    assert set(found["sweep.0.5"].identities) == {"slow", "fast"}


@given(st.floats(1e-3, 1e3))
def test_only_the_ratio_of_an_averages_weights_counts(factor: float) -> None:
    plain = average({"slow": 0.25, "fast": 0.75}, IDENTITIES)
    assert average({"slow": factor * 0.25, "fast": factor * 0.75}, IDENTITIES) == plain


def test_a_search_meets_its_references_under_the_same_ids() -> None:
    config, found = linear(), references(linear(), IDENTITIES)
    assert candidate(config, 1.0, 0.0) == candidate(config, 0.25, 0.0)
    assert candidate(config, 1.0, 0.0) == found["parent.slow"].candidate
    assert candidate(config, 0.5, 0.5) == found["average"].candidate


def test_without_torch_the_canonical_form_tells_which_genes_cancel() -> None:
    """The published TIES search: the weight of its one task vector is normalised away."""
    for name, silent in (("ties-7b", ["weight.slow"]), ("ta-7b", [])):
        config = load_job(ROOT / "jobs" / "published" / f"{name}.toml")
        assert silent_genes(config, space(config)) == silent
