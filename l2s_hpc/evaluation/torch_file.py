"""Read a one-dimensional tensor of bytes from a `.pt` file, without torch and without unpickling.

A `.pt` file is a zip archive: `NAME/data.pkl` describes the tensor, `NAME/data/0` holds its bytes.
The description is a pickle, a program that can run anything. Here it is never run: its opcodes are
walked, each must stand in a short list, and what it would call is only written down. What is not
exactly the description of one tensor is refused, whatever else it may be.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2s_hpc.errors import DamageError

MAX_FILE = 16 * 1024**2
"""Bytes of a file; a benchmark of a million items needs one million."""

MAX_DESCRIPTION = 16 * 1024
"""Bytes of `data.pkl`; that of one tensor has about 150."""

_STORAGES = ("torch.ByteStorage", "torch.BoolStorage")
_REBUILD = "torch._utils._rebuild_tensor_v2"
_HOOKS = "collections.OrderedDict"
_GLOBALS = (*_STORAGES, _REBUILD, _HOOKS)


def read_bytes_tensor(path: Path) -> bytes:
    """Return the values of a 1-D tensor of uint8 or bool, one byte each.

    Raises:
        DamageError: the file is empty, torn, too large, or anything but such a tensor.
    """
    return _Reader(path).tensor()


@dataclass(frozen=True)
class _Global:
    """A name that the description refers to; nothing is looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """The bytes that the description refers to: the type's name, the entry's key, how many."""

    kind: str
    key: str
    numel: int


@dataclass(frozen=True)
class _Call:
    """A call that the description asks for; nothing is called."""

    name: str
    arguments: tuple[Any, ...]


_MARK = object()


class _Reader:
    """Reads one file; every fault names it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def tensor(self) -> bytes:
        size = self._path.stat().st_size
        if not size:
            raise self._fault("the file is empty (0 bytes): it was torn when it was written")
        if size > MAX_FILE:
            raise self._fault(f"{size} bytes are too many for the scores of a benchmark")
        content = self._path.read_bytes()
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                return self._from_archive(archive)
        except (
            zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError,
            OverflowError, KeyError, IndexError, NotImplementedError, RuntimeError,
        ) as error:  # fmt: skip
            # The zip module meets damage with any of these.
            raise self._fault(f"not a whole zip archive of torch: {error}") from None

    def _from_archive(self, archive: zipfile.ZipFile) -> bytes:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise self._fault("two entries have one name")
        roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1 or "/" in roots[0]:
            raise self._fault(f"{len(roots)} entries NAME/data.pkl, a tensor's file has one")
        description = self._entry(archive, entries[f"{roots[0]}/data.pkl"], MAX_DESCRIPTION)
        storage, offset, count, stride = self._described(_walk(description, self._fault))
        place = f"{roots[0]}/data/{storage.key}"
        if not storage.key.isdecimal() or place not in entries:
            raise self._fault("the bytes that data.pkl names are not there")
        values = self._entry(archive, entries[place], storage.numel)
        if len(values) != storage.numel:
            raise self._fault(f"{len(values)} of {storage.numel} values are there: it is torn")
        return values[offset : offset + (count - 1) * stride + 1 : stride]

    def _entry(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> bytes:
        """Return the bytes of an entry that is stored as it is: torch compresses nothing."""
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise self._fault("an entry is compressed; torch compresses nothing")
        if entry.flag_bits & 0x1:
            raise self._fault("an entry is encrypted")
        if entry.file_size > most:
            raise self._fault(f"an entry has {entry.file_size} bytes, at most {most} are expected")
        return archive.read(entry)

    def _described(self, value: Any) -> tuple[_Storage, int, int, int]:
        """Return storage, offset, number of values and stride of what `data.pkl` describes."""
        match value:
            case _Call(name, (_Storage() as storage, offset, (count,), (stride,), *_)) if (
                name == _REBUILD and _are_numbers(offset, count, stride, storage.numel)
            ):
                last = offset + (count - 1) * stride
                if count < 1 or stride < 1 or offset < 0 or last >= storage.numel:
                    raise self._fault("the tensor is empty, or reaches beyond its bytes")
                return storage, offset, count, stride
        raise self._fault("data.pkl describes something else than one 1-D tensor of bytes")

    def _fault(self, message: str) -> DamageError:
        return DamageError(message, path=self._path)


def _are_numbers(*values: Any) -> bool:
    return all(type(value) is int for value in values)


def _walk(description: bytes, fault: Callable[[str], DamageError]) -> Any:
    """Return what a description would make, as records; nothing is made."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(description):
            if opcode.name == "STOP":
                break
            _step(opcode.name, argument, stack, memo, fault)
    except (ValueError, IndexError, KeyError, OverflowError, struct.error):
        raise fault("data.pkl is torn") from None
    if len(stack) != 1:
        raise fault("data.pkl is torn")
    return stack[0]


def _step(
    opcode: str,
    argument: Any,
    stack: list[Any],
    memo: dict[int, Any],
    fault: Callable[[str], DamageError],
) -> None:
    """Do what one opcode does to the stack, as far as a tensor's description needs it."""
    match opcode:
        case "PROTO":
            pass
        case "GLOBAL":
            name = argument.replace(" ", ".", 1)
            if name not in _GLOBALS:
                raise fault(f"data.pkl asks for {name[:80]!r} (opcode GLOBAL): no tensor needs it")
            stack.append(_Global(name))
        case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "NEWTRUE" | "NEWFALSE":
            stack.append({"NEWTRUE": True, "NEWFALSE": False}.get(opcode, argument))
        case "MARK":
            stack.append(_MARK)
        case "EMPTY_TUPLE":
            stack.append(())
        case "TUPLE":
            start = len(stack) - 1 - stack[::-1].index(_MARK)
            stack[start:] = [tuple(stack[start + 1 :])]
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            parts = tuple(stack.pop() for _ in range(int(opcode[-1])))
            stack.append(parts[::-1])
        case "BINPUT" | "LONG_BINPUT":
            memo[argument] = stack[-1]
        case "BINGET" | "LONG_BINGET":
            stack.append(memo[argument])
        case "BINPERSID":
            stack.append(_storage(stack.pop(), fault))
        case "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            if not isinstance(called, _Global) or not isinstance(arguments, tuple):
                raise fault("data.pkl calls what is no function (opcode REDUCE)")
            stack.append(_Call(called.name, arguments))
        case _:
            raise fault(f"data.pkl holds the opcode {opcode}: no tensor's description needs it")


def _storage(value: Any, fault: Callable[[str], DamageError]) -> _Storage:
    match value:
        case ("storage", _Global(kind), str() as key, str(), int() as numel) if kind in _STORAGES:
            return _Storage(kind, key, numel)
    raise fault("data.pkl names something else than bytes (opcode BINPERSID)")
