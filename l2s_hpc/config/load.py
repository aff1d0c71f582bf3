"""Reads the two files: all faults at once, and an unknown key names its nearest valid key."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from l2s_hpc.config.base import Config, Scalar
from l2s_hpc.config.job import OPERATIONAL, ModelSource, SearchConfig
from l2s_hpc.config.site import SiteConfig
from l2s_hpc.errors import UserError, did_you_mean

C = TypeVar("C", bound="Config")


def load_job(path: Path, overrides: Iterable[str] = ()) -> SearchConfig:
    """Read a job file; raises `UserError` with all faults at once.

    Folders of models that begin with `./` or `../`, and a file of examples, are meant from the job
    file's own folder.
    """
    return _anchored(_load(SearchConfig, path, overrides), path.resolve().parent)


def load_site(path: Path, overrides: Iterable[str] = ()) -> SiteConfig:
    """Read a site file; raises `UserError` with all faults at once."""
    return _load(SiteConfig, path, overrides)


def validate(kind: type[C], data: Mapping[str, Any], path: Path | None = None) -> C:
    """Check a mapping against a configuration class; raises `UserError` with a line per fault."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults: list[dict[str, Any]] = [dict(fault) for fault in error.errors()]
        # A list with a faulty entry is called too short as well: that is no fault of its own.
        within = {f["loc"][:n] for f in faults for n in range(len(f["loc"]))}
        own = [f for f in faults if f["type"] != "too_short" or f["loc"] not in within]
        raise UserError("\n".join(_fault(kind, fault) for fault in own), path=path) from None


def documented(kind: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str]]:
    """Return (dotted key, default, meaning) of every key of a configuration file."""
    rows = []
    for name, field in kind.model_fields.items():
        key = f"{prefix}{name}"
        inner = _models_in(field.annotation)
        default = "(required)" if field.is_required() else repr(field.get_default())
        nested = inner and issubclass(inner[0], Config)
        rows.append((key, "" if nested else default, field.description or ""))
        if nested:
            mark = f"{key}.<name>." if "dict" in str(field.annotation) else f"{key}."
            rows += documented(inner[0], mark)
    return rows


def science(config: SearchConfig) -> dict[str, Any]:
    """Return the flat settings of a job that decide its results, by dotted key."""
    flat = flatten(config.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if key not in OPERATIONAL}


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings and lists by dotted key."""
    if isinstance(tree, Mapping) and tree:
        pairs: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, list | tuple) and any(isinstance(e, Mapping) for e in tree):
        pairs = enumerate(tree)
    else:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in pairs:
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _anchored(config: SearchConfig, folder: Path) -> SearchConfig:
    def anchor(source: ModelSource | None) -> ModelSource | None:
        if source is None or not source.path.startswith(("./", "../")):
            return source
        return source.model_copy(update={"path": str((folder / source.path).resolve())})

    merge = config.merge.model_copy(update={"base": anchor(config.merge.base)})
    parents = {name: anchor(source) for name, source in config.parents.items()}
    few_shot = config.protocol.few_shot and str(
        folder / Path(config.protocol.few_shot).expanduser()
    )
    protocol = config.protocol.model_copy(update={"few_shot": few_shot})
    return config.model_copy(update={"parents": parents, "merge": merge, "protocol": protocol})


def _load(kind: type[C], path: Path, overrides: Iterable[str]) -> C:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read as TOML: {error}", path=path) from None
    for override in overrides:
        _override(data, override)
    return validate(kind, data, path)


def _override(data: dict[str, Any], override: str) -> None:
    """Apply one `a.b=v`; the value is TOML, or text where it is not."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted.strip():
        raise UserError(f"--set {override}", hint="write --set key.name=value")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = dotted.strip().split(".")
    node: Any = data
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[int(last) if isinstance(node, list) else last] = value
    except (IndexError, ValueError):
        raise UserError(f"--set {override}: no such entry, they count from 0") from None
    except (AttributeError, TypeError):
        raise UserError(f"--set {override}: a value stands where a table must be") from None


def _fault(kind: type[BaseModel], fault: dict[str, Any]) -> str:
    """Turn one pydantic error into a line that says what, where and what to do."""
    location = ".".join(str(part) for part in fault["loc"]) or "(file)"
    if fault["type"] == "extra_forbidden":
        siblings = _fields_at(kind, fault["loc"][:-1])
        return f"unknown key '{location}': {did_you_mean(str(fault['loc'][-1]), siblings)}"
    if fault["type"] == "missing":
        return f"missing key '{location}'"
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    shown = fault.get("input")
    given = f" (given: {shown!r})" if isinstance(shown, Scalar) else ""
    return f"'{location}': {message}{given}"


def _fields_at(kind: type[BaseModel], location: Iterable[Any]) -> list[str]:
    """Return the valid keys of the table at a location of the configuration."""
    for part in location:
        field = kind.model_fields.get(str(part))
        inner = _models_in(field.annotation) if field else [kind]
        kind = inner[0] if inner else kind
    return list(kind.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
