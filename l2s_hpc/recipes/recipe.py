"""Genome -> recipe, in canonical form: genomes that make the same model have one candidate id.

A recipe is mergekit's own configuration. What is made canonical is what is merged, so equal ids
mean equal weights, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from l2s_hpc.config import SearchConfig
from l2s_hpc.recipes.genes import Genome, Space, base_name, filters, merged_models
from l2s_hpc.recipes.methods import RANDOM, Method, method
from l2s_hpc.records import Recipe

Setting = dict[str, Any]
"""A parameter's value by group; the key `*` alone stands for all tensors."""

_DIGITS = 12


def make_recipe(
    config: SearchConfig, space: Space, genome: Genome, identities: Mapping[str, str]
) -> Recipe:
    """Return the canonical recipe of a genome.

    Args:
        config: the job.
        space: its genes; `genome` has one value for each, in order.
        genome: the canonical genome (`Space.genome`).
        identities: the identity of each model by name.
    """
    chosen = method(config.merge.method)
    per_model, shared = _settings(config, space, genome, chosen)
    base = base_name(config)
    if chosen.task_vectors:
        per_model = _canonical_task_vectors(per_model, shared, chosen)
        if not per_model:
            return single_model(str(base), identities)
    elif chosen.name == "linear":
        per_model = _canonical_linear(per_model, shared, chosen)
    return _recipe(config, chosen, base, per_model, shared, identities)


def average(weights: Mapping[str, float], identities: Mapping[str, str]) -> Recipe:
    """Return the weighted average of models; parents, plain average and sweep are of this kind."""
    used = {name: weight for name, weight in weights.items() if weight}
    total = sum(used.values())
    models = [
        {"model": name, "parameters": {"weight": round(weight / total, _DIGITS)}}
        for name, weight in used.items()
    ]
    config = {"merge_method": "linear", "models": models, "parameters": {}, **_DTYPES}
    return Recipe(config=config, identities={name: identities[name] for name in used})


def single_model(name: str, identities: Mapping[str, str]) -> Recipe:
    """Return the recipe that is a model itself."""
    return average({name: 1.0}, identities)


def mergekit_config(recipe: Recipe, places: Mapping[str, str | Path]) -> dict[str, Any]:
    """Return a recipe as the configuration that `mergekit-yaml` reads from a YAML file.

    The command makes the same weights, bit for bit, if the recipe's seed is given to it, which
    no configuration holds: `mergekit-yaml merge.yaml OUT --random-seed {recipe.seed}`.

    Args:
        recipe: a canonical recipe.
        places: the folder or hub id of each of its models by name.
    """
    config = dict(recipe.config)
    config["models"] = [
        {**entry, "model": str(places[entry["model"]])} for entry in config["models"]
    ]
    if "base_model" in config:
        config["base_model"] = str(places[config["base_model"]])
    return config


def silent_genes(config: SearchConfig, space: Space) -> list[str]:
    """Return the genes that never change the canonical recipe, away from the bounds."""
    identities = dict.fromkeys([*config.parents, "base"], "")
    low, high = (
        space.genome([gene.low + share * (gene.high - gene.low) for gene in space.searched])
        for share in (0.3, 0.7)
    )
    reference = make_recipe(config, space, low, identities)
    found = []
    for index, gene in enumerate(space.genes):
        other = (*low[:index], high[index], *low[index + 1 :])
        if make_recipe(config, space, other, identities) == reference:
            found.append(gene.name)
    return found


_DTYPES = {"dtype": "float32", "out_dtype": "bfloat16"}


def _settings(
    config: SearchConfig, space: Space, genome: Genome, chosen: Method
) -> tuple[dict[str, dict[str, Setting]], dict[str, Setting]]:
    """Return the parameters by model and the shared ones, from fixed values and genes."""
    per_model: dict[str, dict[str, Setting]] = {name: {} for name in merged_models(config)}
    shared: dict[str, Setting] = {}
    for name, value in config.merge.parameters.items():
        if chosen.scopes[name] == "shared":
            shared[name] = {"*": value}
        else:
            for settings in per_model.values():
                settings[name] = {"*": value}
    for gene, value in zip(space.genes, genome, strict=True):
        owner = shared if gene.model is None else per_model[gene.model]
        owner.setdefault(gene.parameter, {})[gene.group or "*"] = value
    for owner in (shared, *per_model.values()):
        owner.update({name: _collapsed(setting) for name, setting in owner.items()})
    return per_model, shared


def _collapsed(setting: Setting) -> Setting:
    """Return one value for all tensors where all groups have the same."""
    first, *others = setting.values()
    return setting if any(value != first for value in others) else {"*": first}


def _canonical_task_vectors(
    per_model: dict[str, dict[str, Setting]], shared: dict[str, Setting], chosen: Method
) -> dict[str, dict[str, Setting]]:
    """Make a recipe of weighted task vectors canonical; no model is left where it is the base.

    - task arithmetic keeps whole task vectors: it has no density;
    - weight 0 or density 0: the model's part is nothing; both become weight 0, density 1;
    - lambda 0 is the base; lambda moves into the weights where nothing normalises them;
    - a model without any part is dropped (at density 1 no random numbers are drawn for it);
    - one task vector and `normalize`: its weight cancels and becomes 1, also group by group.
    """
    for settings in per_model.values():
        if chosen.name == "task_arithmetic":
            settings.pop("density", None)
        elif "density" in settings:
            _silence(settings)
    normalize = _normalize(shared, chosen)
    if chosen.name == "task_arithmetic" and normalize is False:
        _fold_lambda(per_model, shared)
    active = {name: s for name, s in per_model.items() if any(s["weight"].values())}
    if shared.get("lambda") == {"*": 0.0}:
        return {}
    if normalize:
        _cancel_lone_weights(active)
    return active


def _canonical_linear(
    per_model: dict[str, dict[str, Setting]], shared: dict[str, Setting], chosen: Method
) -> dict[str, dict[str, Setting]]:
    """Divide normalised weights by their sum, and drop models without any part."""
    weights = _aligned([settings["weight"] for settings in per_model.values()])
    if weights and _normalize(shared, chosen):
        for group in weights[0]:
            total = sum(weight[group] for weight in weights)
            for weight in weights:
                weight[group] = round(weight[group] / total, _DIGITS) + 0.0 if total else 0.0
        for settings, weight in zip(per_model.values(), weights, strict=True):
            settings["weight"] = weight
    active = {name: s for name, s in per_model.items() if any(s["weight"].values())}
    return active or per_model


def _silence(settings: dict[str, Setting]) -> None:
    """Let weight 0 and density 0 say the same thing of a model's part in a group."""
    aligned = _aligned([settings["weight"], settings["density"]])
    if aligned:
        weight, density = aligned
        for group in weight:
            if not weight[group] or not density[group]:
                weight[group], density[group] = 0.0, 1.0
        settings["weight"], settings["density"] = weight, density
    elif not any(settings["weight"].values()) or not any(settings["density"].values()):
        settings["weight"], settings["density"] = {"*": 0.0}, {"*": 1.0}


def _fold_lambda(per_model: dict[str, dict[str, Setting]], shared: dict[str, Setting]) -> None:
    """Multiply the weights by lambda, and leave lambda out."""
    factor = shared.get("lambda", {"*": 1.0})
    aligned = _aligned([factor, *(settings["weight"] for settings in per_model.values())])
    if not aligned:
        return
    shared.pop("lambda", None)
    for settings, weight in zip(per_model.values(), aligned[1:], strict=True):
        settings["weight"] = {
            group: round(value * aligned[0][group], _DIGITS) + 0.0
            for group, value in weight.items()
        }


def _cancel_lone_weights(active: Mapping[str, dict[str, Setting]]) -> None:
    """Where one task vector alone is normalised by its own weight, make that weight 1."""
    weights = _aligned([settings["weight"] for settings in active.values()])
    if not weights:
        return
    for group in weights[0]:
        present = [weight for weight in weights if weight[group]]
        if len(present) == 1:
            present[0][group] = 1.0
    for settings, weight in zip(active.values(), weights, strict=True):
        settings["weight"] = weight


def _normalize(shared: Mapping[str, Setting], chosen: Method) -> bool | None:
    """Return whether the weights are normalised; None where that differs between groups."""
    value = shared.get("normalize", {"*": chosen.defaults["normalize"]}).get("*")
    return None if value is None else bool(value)


def _aligned(settings: Sequence[Setting]) -> list[Setting]:
    """Return copies of settings with the same groups; none if their groups cut differently.

    A value for all tensors is repeated for each group of the others.
    """
    cuts = {frozenset(setting): setting for setting in settings if set(setting) != {"*"}}
    if len(cuts) > 1:
        return []
    groups = next(iter(cuts.values()), {"*": None})
    return [{g: s[g] if g in s else s["*"] for g in groups} for s in settings]


def _recipe(
    config: SearchConfig,
    chosen: Method,
    base: str | None,
    per_model: Mapping[str, Mapping[str, Setting]],
    shared: Mapping[str, Setting],
    identities: Mapping[str, str],
) -> Recipe:
    groups, defaults = config.merge.groups, chosen.defaults
    models = [
        {"model": name, "parameters": _emit_all(settings, groups, defaults)}
        for name, settings in per_model.items()
    ]
    body: dict[str, Any] = {
        "merge_method": chosen.name,
        "models": models,
        "parameters": _emit_all(shared, groups, defaults),
        **_DTYPES,
    }
    if base is not None:
        body["base_model"] = base
    used = {*per_model, *([base] if base else [])}
    return Recipe(
        config=body,
        identities={name: identities[name] for name in sorted(used)},
        seed=config.merge.seed if chosen.name in RANDOM else 0,
    )


def _emit_all(
    settings: Mapping[str, Setting],
    groups: Mapping[str, Sequence[str]],
    defaults: Mapping[str, Any],
) -> dict[str, Any]:
    """Return settings in mergekit's form, without those that say what the method does anyway."""
    emitted = {name: _emit(setting, groups) for name, setting in sorted(settings.items())}
    return {n: v for n, v in emitted.items() if n not in defaults or v != defaults[n]}


def _emit(setting: Setting, groups: Mapping[str, Sequence[str]]) -> Any:
    """Return a scalar, or a list of conditional values of which the first that applies counts."""
    setting = _collapsed(setting)
    if set(setting) == {"*"}:
        return setting["*"]
    return [
        {"filter": part, "value": value}
        for group, value in setting.items()
        for part in filters(groups[group])
    ]
