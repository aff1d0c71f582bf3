"""Existing checkpoints, as a command names them and as a run of `l2s evaluate` keeps them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from l2s_hpc.config import ModelSource, SiteConfig
from l2s_hpc.errors import UserError
from l2s_hpc.evaluation.prompts import OF_THE_TOKENIZER, template_hash, turn_ends
from l2s_hpc.recipes.models import Model, locate
from l2s_hpc.recipes.recipe import single_model
from l2s_hpc.records import short_hash
from l2s_hpc.store.run import Checkpoint, read_checkpoints


def located(words: Sequence[str], site: SiteConfig) -> dict[str, Model]:
    """Find models by the names that the run gives them.

    Args:
        words: their places, or `NAME=PLACE`; a place is a folder, a hub id or `shipped:toy/slow`.
        site: the site, whose local folders come before the hub's cache.

    Raises:
        UserError: one is not here, is damaged, or has the name of another.
    """
    found: dict[str, Model] = {}
    for word in words:
        name, place = _named(word)
        if name in found:
            raise UserError(
                f"two models are called '{name}'", hint=f"name one of them: OTHER={place}"
            )
        found[name] = locate(name, ModelSource(path=place), site.models)
        _ = found[name].config, found[name].tensors
    return found


def checkpoints(
    words: Sequence[str], models: Mapping[str, Model], parents: Collection[str], folder: Path
) -> list[Checkpoint]:
    """Return models as a run knows them, those included that it has already.

    Args:
        words: as for `located`.
        models: what it found.
        parents: the names of those that transfer rates refer to.
        folder: the run directory, which need not be there.

    Raises:
        UserError: the run has another model of that name.
    """
    known = {model.name: model for model in read_checkpoints(folder)}
    identities = {name: model.identity for name, model in models.items()}
    found = []
    for number, (name, place) in enumerate(map(_named, words)):
        model, before = models[name], known.get(name)
        new = Checkpoint(
            name=name,
            number=before.number if before else len(known) + number,
            parent=name in parents or bool(before and before.parent),
            source=ModelSource(path=place).model_dump(),
            identity=model.identity,
            stop_ids=tuple(sorted({*model.stop_ids, *turn_ends(model.folder)})),
            template=short_hash([template_hash(p, model.folder) for p in OF_THE_TOKENIZER]),
            recipe=single_model(name, identities),
        )
        if before and _itself(before) != _itself(new):
            raise UserError(
                f"'{name}' is another model in this run: {_itself(before)}, here {_itself(new)}",
                hint=f"give this one another name: NAME={place}",
                path=model.folder,
            )
        found.append(new)
    return found


def _named(word: str) -> tuple[str, str]:
    """Return name and place; without a name it is made of the place's last part."""
    name, equals, place = word.partition("=")
    if not equals or not re.fullmatch(r"\w+", name):
        name, place = "", word
    folder = Path(place).expanduser()
    if folder.is_dir():
        place = str(folder.resolve())
    name = name or re.sub(r"\W+", "_", place.rstrip("/").rpartition("/")[2]).strip("_")
    if not name:
        raise UserError(f"no name for the model '{word}'", hint=f"give it one: NAME={word}")
    return name, place


def _itself(model: Checkpoint) -> str:
    """Return what must not change under a model's name."""
    return f"weights {model.identity}, stop ids {list(model.stop_ids)}, template {model.template}"
