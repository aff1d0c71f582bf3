"""Genome -> recipe, in canonical form: genomes that make the same model have one candidate id.

A recipe is mergekit's own configuration. What is made canonical is what is merged, so equal ids
mean equal weights, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        per_model, shared = _canonical_task_vectors(per_model, shared, chosen)
        if not per_model:
            return single_model(str(base), identities)
    elif chosen.name == "linear":
        per_model = _canonical_linear(per_model, shared, chosen)
    return _recipe(config, chosen, base, per_model, shared, identities)


def average(weights: Mapping[str, float], identities: Mapping[str, str]) -> Recipe:
    """Return the weighted average of models: parents, plain average and sweep are all of this kind."""
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
    return per_model, shared


def _canonical_task_vectors(
    per_model: dict[str, dict[str, Setting]], shared: dict[str, Setting], chosen: Method
) -> tuple[dict[str, dict[str, Setting]], dict[str, Setting]]:
    """Make a recipe of weighted task vectors canonical; no model is left where it is the base.

    - weight 0 or density 0: the model's part is nothing; both become weight 0, density 1;
    - lambda 0 is the base; lambda moves into the weights where nothing normalises them;
    - a model without any part is dropped, unless random numbers are drawn for it;
    - one task vector and `normalize`: its weight cancels and becomes 1.
    """
    for settings in per_model.values():
        _silence(settings)
    if shared.get("lambda") == {"*": 0.0}:
        return {}, shared
    normalize = shared.get("normalize", {"*": chosen.defaults["normalize"]})["*"]
    if chosen.name == "task_arithmetic" and not normalize and set(shared.get("lambda", ())) == {"*"}:
        factor = shared.pop("lambda")["*"]
        for settings in per_model.values():
            settings["weight"] = {
                group: round(weight * factor, _DIGITS)
                for group, weight in settings["weight"].items()
            }
    active = {name: s for name, s in per_model.items() if any(s["weight"].values())}
    if not active:
        return {}, shared
    if chosen.name not in RANDOM:
        per_model = active
    if normalize and len(per_model) == 1:
        (settings,) = per_model.values()
        settings["weight"] = {g: 1.0 if weight else 0.0 for g, weight in settings["weight"].items()}
    return per_model, shared


def _silence(settings: dict[str, Setting]) -> None:
    """Let weight 0 and density 0 say the same thing of a model's part in a group."""
    if "density" not in settings:
        return
    weight, density = _aligned(settings["weight"], settings["density"])
    for group in weight:
        if not weight[group] or not density[group]:
            weight[group], density[group] = 0.0, 1.0
    settings["weight"], settings["density"] = weight, density


def _aligned(first: Setting, second: Setting) -> tuple[Setting, Setting]:
    """Return two settings with the same groups: a value for all tensors is repeated for each."""
    if set(first) == {"*"}:
        first = dict.fromkeys(second, first["*"])
    if set(second) == {"*"}:
        second = dict.fromkeys(first, second["*"])
    return dict(first), dict(second)


def _canonical_linear(
    per_model: dict[str, dict[str, Setting]], shared: dict[str, Setting], chosen: Method
) -> dict[str, dict[str, Setting]]:
    """Divide normalised weights by their sum, and drop models without any part."""
    normalize = shared.get("normalize", {"*": chosen.defaults["normalize"]})["*"]
    weights = {name: settings["weight"] for name, settings in per_model.items()}
    groups = max(weights.values(), key=len)
    full = {name: _aligned(weight, groups)[0] for name, weight in weights.items()}
    if normalize:
        for group in groups:
            total = sum(weight[group] for weight in full.values())
            for weight in full.values():
                weight[group] = round(weight[group] / total, _DIGITS) if total else 0.0
    return {
        name: {**settings, "weight": full[name]}
        for name, settings in per_model.items()
        if any(full[name].values())
    }


def _recipe(
    config: SearchConfig,
    chosen: Method,
    base: str | None,
    per_model: Mapping[str, Mapping[str, Setting]],
    shared: Mapping[str, Setting],
    identities: Mapping[str, str],
) -> Recipe:
    groups = config.merge.groups
    models = [
        {"model": name, "parameters": _emit_all(settings, groups)}
        for name, settings in per_model.items()
    ]
    body: dict[str, Any] = {
        "merge_method": chosen.name,
        "models": models,
        "parameters": _emit_all(shared, groups),
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
    settings: Mapping[str, Setting], groups: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    return {name: _emit(setting, groups) for name, setting in sorted(settings.items())}


def _emit(setting: Setting, groups: Mapping[str, Sequence[str]]) -> Any:
    """Return mergekit's form: a scalar, or a list of conditional values of which the first applies."""
    values = list(setting.values())
    if all(value == values[0] for value in values):
        return values[0]
    return [
        {"filter": part, "value": value}
        for group, value in setting.items()
        for part in filters(groups[group])
    ]
