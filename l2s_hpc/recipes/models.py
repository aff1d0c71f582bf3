"""The input models: where they lie, what is in them, and whether they can be merged.

Reads only JSON and the headers of safetensors files; no weights, no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from l2s_hpc.config import ModelSource
from l2s_hpc.errors import UserError
from l2s_hpc.store.files import read_json
from l2s_hpc.store.layout import shipped

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

_SAMPLES, _SAMPLE_BYTES = 16, 65_536
_BFLOAT16 = 2
"""Bytes of one number."""

_SHAPE_KEYS = (
    "architectures",
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)


@dataclass(frozen=True)
class Tensor:
    """A tensor's place: its file, element type and shape; its first byte in the file, and bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Model:
    """An input model on disk."""

    name: str
    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        path = self.folder / "config.json"
        if not path.exists():
            raise UserError(f"model '{self.name}' has no config.json", path=self.folder)
        config = read_json(path)
        if not isinstance(config, dict):
            raise UserError(f"model '{self.name}': config.json is not an object", path=path)
        return config

    @cached_property
    def tied(self) -> bool:
        """Whether the output head is the embedding matrix; a config may leave it to the default."""
        return bool(self.config.get("tie_word_embeddings", True)) and HEAD not in self.tensors

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, from the safetensors headers.

        Raises:
            UserError: there are only pickle weights, none at all, or a header is damaged.
        """
        files = self._files()
        if not files:
            pickles = [p.name for p in self.folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")]
            found = f" (found pickle weights: {', '.join(sorted(pickles))})" if pickles else ""
            raise UserError(
                f"model '{self.name}' has no safetensors weights{found}",
                hint="pickles can run code when they are read; convert them to safetensors",
                path=self.folder,
            )
        tensors: dict[str, Tensor] = {}
        for file in files:
            tensors |= _header(file)
        return tensors

    def _files(self) -> list[Path]:
        """Return the weight files; where an index names them, a folder may hold others as well."""
        index = self.folder / "model.safetensors.index.json"
        if not index.exists():
            return sorted(self.folder.glob("*.safetensors"))
        named = {Path(file).name for file in read_json(index)["weight_map"].values()}
        files = [self.folder / name for name in sorted(named)]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise UserError(
                f"model '{self.name}' lacks {', '.join(missing)}, which its index names",
                hint="copy or fetch it again",
                path=self.folder,
            )
        return files

    @cached_property
    def identity(self) -> str:
        """A hash that tells these weights from others: headers, sizes and 1 MiB of samples a file.

        It does not read whole files (a 7B model is 15 GB); `l2s fetch` records full hashes.
        """
        digest = hashlib.sha256()
        for file in sorted({tensor.file for tensor in self.tensors.values()}):
            digest.update(json.dumps([file.name, file.stat().st_size]).encode())
            with file.open("rb") as stream:
                for start in _sample_offsets(file.stat().st_size):
                    stream.seek(start)
                    digest.update(stream.read(_SAMPLE_BYTES))
        return digest.hexdigest()[:16]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The end-of-text ids that its configs name."""
        found: set[int] = set()
        for name in ("config.json", "generation_config.json"):
            path = self.folder / name
            ids = read_json(path).get("eos_token_id") if path.exists() else None
            found.update([ids] if isinstance(ids, int) else ids or [])
        return tuple(sorted(found))

    @property
    def parameters(self) -> int:
        """Number of stored parameters."""
        total = 0
        for tensor in self.tensors.values():
            count = 1
            for side in tensor.shape:
                count *= side
            total += count
        return total


def locate(name: str, source: ModelSource, replacements: Mapping[str, str] | None = None) -> Model:
    """Find an input model on this machine, without network.

    Args:
        name: the name that the job gives it.
        source: where the job says that it comes from.
        replacements: the site's local folders by hub id.

    Raises:
        UserError: it is not here; the hint says how to get it.
    """
    path = (replacements or {}).get(source.path, source.path)
    if path.startswith("shipped:"):
        folder = shipped("data") / path.removeprefix("shipped:")
    elif not is_hub_id(path) or path != source.path:
        folder = Path(path).expanduser()
    else:
        folder = _cached(name, source)
    if not folder.is_dir():
        raise UserError(f"model '{name}' is not here: no folder {folder}")
    return Model(name, folder)


def is_hub_id(path: str) -> bool:
    """Return whether a model's place is a repository of the hub, not a folder or shipped."""
    return not path.startswith((".", "/", "~", "shipped:"))


def compatibility_faults(models: Mapping[str, Model]) -> list[str]:
    """Return a line for each reason why these models cannot be merged tensor by tensor."""
    (first, reference), *others = models.items()
    faults = []
    for name, model in others:
        for key in _SHAPE_KEYS:
            ours, theirs = reference.config.get(key), model.config.get(key)
            if ours != theirs:
                faults.append(f"'{first}' and '{name}' differ in {key}: {ours} and {theirs}")
        if rope_theta(reference.config) != rope_theta(model.config):
            faults.append(f"'{first}' and '{name}' differ in rope_theta")
        faults += _tensor_faults(reference, model)
    return faults


def merged_tensors(models: Mapping[str, Model]) -> list[str]:
    """Return the names of the merged model's tensors, in the order in which mergekit merges them.

    Where some parents tie their head and some do not, the merged model has a head of its own; it
    comes after the embedding then, and random methods depend on that.
    """
    names = sorted({name for model in models.values() for name in model.tensors})
    if HEAD in names and any(model.tied for model in models.values()):
        names.remove(HEAD)
        names.insert(names.index(EMBEDDING) + 1, HEAD)
    return names


def merged_shapes(models: Mapping[str, Model]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the merged model's tensors, in the order of `merged_tensors`."""
    return {
        name: next(model for model in models.values() if name in model.tensors).tensors[name].shape
        for name in merged_tensors(models)
    }


def merged_bytes(models: Mapping[str, Model]) -> int:
    """Return the size of the merged model's weights in bfloat16."""
    return _BFLOAT16 * sum(map(math.prod, merged_shapes(models).values()))


def token_bytes(config: Mapping[str, Any]) -> int:
    """Return the bytes of one token's keys and values in all layers, in bfloat16."""
    heads = config.get("num_attention_heads") or 1
    head_size = config.get("head_dim") or config.get("hidden_size", 0) // heads
    key_heads = config.get("num_key_value_heads") or heads
    return int(config.get("num_hidden_layers", 0) * 2 * key_heads * head_size * _BFLOAT16)


def merged_config(models: Mapping[str, Model], tokenizer: str) -> dict[str, Any]:
    """Return the merged model's config.json: the longest context, tied only if all parents are."""
    config = dict(models[tokenizer].config)
    lengths = [model.config.get("max_position_embeddings", 0) for model in models.values()]
    config["max_position_embeddings"] = max(lengths)
    config["tie_word_embeddings"] = all(model.tied for model in models.values())
    config["dtype"] = config["torch_dtype"] = "bfloat16"
    return config


def rope_theta(config: Mapping[str, Any]) -> Any:
    """Return the rotary base from a config of either generation of transformers."""
    nested = config.get("rope_parameters") or {}
    return config.get("rope_theta", nested.get("rope_theta"))


def _tensor_faults(ours: Model, theirs: Model) -> list[str]:
    faults = []
    pair = f"'{ours.name}' and '{theirs.name}'"
    for name in sorted(ours.tensors.keys() | theirs.tensors.keys()):
        a, b = ours.tensors.get(name), theirs.tensors.get(name)
        if name == HEAD and (ours.tied or theirs.tied):
            continue
        if a is None or b is None:
            faults.append(f"tensor {name} is missing in '{(ours if a is None else theirs).name}'")
        elif a.shape != b.shape:
            faults.append(f"{pair} differ in shape of {name}: {list(a.shape)}, {list(b.shape)}")
    more = len(faults) - 5
    return [*faults[:5], f"… and {more} more tensors"] if more > 0 else faults


def _header(file: Path) -> dict[str, Tensor]:
    """Read a safetensors header: eight bytes of length, then JSON; offsets count from its end."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= 100_000_000:
            raise UserError("not a safetensors file", path=file)
        text = stream.read(length)
    tensors: dict[str, Tensor] = {}
    data = end = 8 + length
    try:
        for name, entry in json.loads(text).items():
            if name != "__metadata__":
                first, last = (data + int(offset) for offset in entry["data_offsets"])
                if not data <= first <= last:
                    raise ValueError(name)
                shape = tuple(int(side) for side in entry["shape"])
                tensors[name] = Tensor(file, str(entry["dtype"]), shape, first, last - first)
                end = max(end, last)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError("the safetensors header is damaged", path=file) from None
    if file.stat().st_size != end:
        raise UserError(
            f"the file has {file.stat().st_size} bytes, its header says {end}",
            hint="copy or fetch it again",
            path=file,
        )
    return tensors


def _sample_offsets(size: int) -> list[int]:
    return [size * n // _SAMPLES for n in range(_SAMPLES)]


def _cached(name: str, source: ModelSource) -> Path:
    """Return the folder of a hub model in the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source.path, revision=source.revision, local_files_only=True))
    except (LocalEntryNotFoundError, FileNotFoundError):
        home = os.environ.get("HF_HOME", "~/.cache/huggingface")
        raise UserError(
            f"model '{name}' ({source.path}) is not in the hub's cache {home}",
            hint="run `l2s fetch JOB` on a node with network, or name a folder in the site's "
            "[models]",
        ) from None
    except ValueError as error:
        raise UserError(
            f"model '{name}': there is no folder {source.path}, and no model of the hub has such a "
            f"name: {error}"
        ) from None
