"""`l2s export`: a candidate as a checkpoint that anyone can load, with its recipe and its card."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from l2s_hpc.analysis.run import open_run
from l2s_hpc.config import ModelSource, SiteConfig, validate
from l2s_hpc.errors import UserError
from l2s_hpc.recipes.models import Model, locate, merged_config, merged_tensors
from l2s_hpc.recipes.recipe import mergekit_config
from l2s_hpc.records import Recipe
from l2s_hpc.store.files import read_json
from l2s_hpc.store.run import RunInfo, read_evaluation
from l2s_hpc.task.merge import merge
from l2s_hpc.task.parents import Parents

_SHARD_BYTES = 4_000_000_000
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_GENERATION = "generation_config.json"
_NOTICES = ("LICENSE*", "LICENCE*", "NOTICE*")


def export(run: Path, candidate: str, target: Path) -> Path:
    """Write a candidate's merged checkpoint into a new folder.

    Args:
        run: the run directory.
        candidate: its id or the beginning of it, a pick (`knee`) or a reference (`average`).
        target: the folder to make; it must not exist.

    Raises:
        UserError: the run is no search, no such candidate, the folder exists, or a parent is not
            what it was.
    """
    if target.exists():
        raise UserError("the target folder exists already", path=target)
    opened = open_run(run)
    info = opened.info
    if info.purpose != "search":
        raise UserError("the run holds no search, so there is nothing to export", path=run)
    recipe = opened.recipe(candidate)
    models = _models(info, recipe)
    stop_ids = _stop_ids(run)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir(parents=True)
    try:
        _write(temporary, info, recipe, models, stop_ids)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _models(info: RunInfo, recipe: Recipe) -> dict[str, Model]:
    """Return the run's input models, checked to be the ones that the run used."""
    site = validate(SiteConfig, info.site)
    models = {n: locate(n, ModelSource(**s), site.models) for n, s in info.models.items()}
    for name, identity in recipe.identities.items():
        if models[name].identity != identity:
            raise UserError(
                f"the weights of '{name}' are not those of the run", path=models[name].folder
            )
    return models


def _stop_ids(run: Path) -> list[int]:
    """Return the ids that ended answers in the search: those of all parents, not of one alone."""
    return list(read_evaluation(run, "search").protocol.stop_ids)


def _write(
    folder: Path,
    info: RunInfo,
    recipe: Recipe,
    models: Mapping[str, Model],
    stop_ids: Sequence[int],
) -> None:
    tokenizer = info.config["merge"]["tokenizer"] or next(iter(info.config["parents"]))
    source = models[tokenizer].folder
    end = {"eos_token_id": list(stop_ids)}
    _write_json(folder / "config.json", merged_config(models, tokenizer) | end)
    if (source / _GENERATION).exists():
        _write_json(folder / _GENERATION, read_json(source / _GENERATION) | end)
    for name in _TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    _write_weights(folder, recipe, models)
    places = {name: _place(info, name) for name in recipe.identities}
    text = yaml.safe_dump(mergekit_config(recipe, places), sort_keys=False, allow_unicode=True)
    (folder / "mergekit_config.yml").write_text(text, encoding="utf-8")
    _copy_notices(folder, recipe, models)
    card = _card(info, recipe, models, text)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_weights(folder: Path, recipe: Recipe, models: Mapping[str, Model]) -> None:
    """Write shards as the tensors come, then the index; a single shard gets the plain name."""
    shards: list[list[str]] = []
    total = 0
    with Parents(models, "cpu") as weights:
        tensors = merge(recipe, weights, merged_tensors(models))
        for number, shard in enumerate(_shards(tensors)):
            save_file(shard, folder / f"shard-{number}.safetensors", metadata={"format": "pt"})
            shards.append(sorted(shard))
            total += sum(tensor.nbytes for tensor in shard.values())
    if len(shards) == 1:
        (folder / "shard-0.safetensors").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _shards(
    tensors: Iterator[tuple[str, torch.Tensor]],
) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > _SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    yield shard


def _place(info: RunInfo, name: str) -> str:
    """Return a model's place as others can use it: the hub id, or the folder."""
    return str(info.models[name]["path"])


def _copy_notices(folder: Path, recipe: Recipe, models: Mapping[str, Model]) -> None:
    for name in recipe.identities:
        for pattern in _NOTICES:
            for source in models[name].folder.glob(pattern):
                shutil.copy(source, folder / f"{name}-{source.name}")


def _card(info: RunInfo, recipe: Recipe, models: Mapping[str, Model], text: str) -> str:
    rows = "\n".join(
        f"| {name} | {_place(info, name)} | {_licence(models[name])} | `{identity}` |"
        for name, identity in recipe.identities.items()
    )
    return f"""---
library_name: transformers
tags: [mergekit, merge, long-to-short]
---
# Candidate {recipe.candidate} of {info.id}

Merged by l2s_hpc with mergekit's method `{recipe.config["merge_method"]}`, seed {recipe.seed}.

| model | from | licence as its card states it | identity |
|---|---|---|---|
{rows}

The licences of all input models apply to this merge; their notices are in this folder where they
came with the weights.

## Recipe (`mergekit_config.yml`)

```yaml
{text}```
"""


def _licence(model: Model) -> str:
    """Return the licence that a model's card names."""
    card = model.folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    found = re.search(r"^license:\s*(\S+)", text, re.MULTILINE)
    return found[1] if found else "not stated"


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
