"""Keeps the parents as near to the merge as they fit.

Either all of their tensors stay on the device; or several threads read them from the page cache,
ahead of the merge, so that the way to the device overlaps with arithmetic; or, where the device is
the CPU, they are views of their mapped files. All three give the same bits. Bytes are read straight
from where the safetensors headers say that they lie.
"""

from __future__ import annotations

import math
import mmap
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch

from l2s_hpc.errors import UserError
from l2s_hpc.recipes.models import EMBEDDING, HEAD, Model, merged_tensors
from l2s_hpc.recipes.placement import (
    Placement,
    choose,
    merging_bytes,
    parents_bytes,
    room_beside,
)
from l2s_hpc.task.engines import EngineError
from l2s_hpc.task.reader import CUT, PIECE, File, Near, Place, Reader, Stored, stored_in

_AHEAD = 2**30
"""Bytes that are read ahead of the merge where the device has no room for all."""
_ALIGNED = 256
"""Where tensors begin on a device: as they would if each were allocated by itself."""


class _Kept(Protocol):
    """One of the three ways."""

    @property
    def held(self) -> int: ...
    def read(self) -> None: ...
    def get(self, tensor: str, stored: Stored) -> torch.Tensor: ...
    def close(self) -> None: ...


class Parents:
    """The tensors of the input models.

    Args:
        models: the models by the names that recipes give them; what is the same file for two of
            them is read and kept once.
        device: `cpu`, `cuda`, or a GPU as torch calls it.
        room: bytes on the device that the parents may take; None: what is free now, but for what
            merges need.
        placed: keep them so, whatever fits.

    Raises:
        EngineError: a model's files are missing, damaged, or hold an unknown type.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        device: str,
        room: int | None = None,
        placed: Placement | None = None,
    ) -> None:
        self._models = dict(models)
        self._files: dict[Path, File] = {}
        self._kept: _Kept | None = None
        try:
            self._stored = {(s.model, s.tensor): s for s in self._all_stored()}
        except EngineError:
            self.close()
            raise
        where = torch.device(device)
        if room is None:
            free = torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else 0
            room = room_beside(free, 0, merging_bytes(models))
        self.placement: Placement = placed or choose(where.type, parents_bytes(models), room)
        self._kept = self._keep(where)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def bytes_on_device(self) -> int:
        """What the parents take of the device now; views of mapped files take nothing."""
        return self._kept.held if self._kept else 0

    def read(self) -> float:
        """Begin to bring the parents near; return the seconds that the beginning took.

        All memory of the device that they need to stay there is taken before this returns. What
        cannot be read is told by `get`.

        Raises:
            EngineError: the device has no room for them.
        """
        start = time.perf_counter()
        self._way.read()
        return time.perf_counter() - start

    def get(self, model: str, tensor: str) -> torch.Tensor:
        """Return a tensor on the device, as soon as it is there; it must not be changed in place.

        A tied model's head is its embedding matrix.

        Raises:
            EngineError: there is no such tensor, or its file could not be read.
        """
        stored = self._find(model, tensor)
        if stored is None:
            folder = self._models[model].folder if model in self._models else None
            raise EngineError(f"model '{model}' has no tensor {tensor}", path=folder)
        return self._way.get(tensor, stored)

    def check(self) -> None:
        """Make sure that the files are the ones that were opened.

        Raises:
            EngineError: one was changed, touched, replaced or removed.
        """
        for file in self._files.values():
            file.check()

    def close(self) -> None:
        """Free the device and close the files; tensors that were given out stay valid."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()
        files, self._files = self._files, {}
        for file in files.values():
            os.close(file.descriptor)

    @property
    def _way(self) -> _Kept:
        if self._kept is None:
            raise EngineError("the parents are closed")
        return self._kept

    def _keep(self, device: torch.device) -> _Kept:
        if self.placement == "files":
            return _Mapped(device, list(self._files.values()))
        reader = Reader(device, max((s.size for s in self._stored.values()), default=0))
        if self.placement == "device":
            return _Resident(reader, list(self._stored.values()))
        names = merged_tensors(self._models)
        found = {
            name: {model: stored for model in self._models if (stored := self._find(model, name))}
            for name in names
        }
        return _Window(reader, found, list(self._files.values()))

    def _find(self, model: str, tensor: str) -> Stored | None:
        if tensor == HEAD and model in self._models and self._models[model].tied:
            tensor = EMBEDDING
        return self._stored.get((model, tensor))

    def _all_stored(self) -> Iterator[Stored]:
        for model, source in self._models.items():
            try:
                tensors = source.tensors
            except UserError as error:
                text = f"model '{model}': {error.message}"
                raise EngineError(text, hint=error.hint, path=error.path) from error
            except OSError as error:
                text = f"model '{model}': {error.strerror}"
                raise EngineError(text, path=error.filename or source.folder) from error
            for name, tensor in tensors.items():
                path = tensor.file.resolve()
                if path not in self._files:
                    self._files[path] = File(model, path)
                yield stored_in(model, name, tensor, self._files[path])


class _Resident:
    """All tensors stay on the device, in one piece of memory for each file."""

    def __init__(self, reader: Reader, stored: Sequence[Stored]) -> None:
        self.held = 0
        self._reader = reader
        self._distinct = {
            s.place: s for s in sorted(stored, key=lambda s: (s.file.descriptor, s.start))
        }
        self._near: dict[Place, Near] = {}

    def read(self) -> None:
        if self._near:
            return
        targets = list(self._targets())
        for stored, target in targets:
            self._near[stored.place] = self._reader.bring(stored, target)
        self._reader.end()

    def get(self, tensor: str, stored: Stored) -> torch.Tensor:
        self.read()
        return self._near[stored.place].get()

    def close(self) -> None:
        self._reader.stop()
        self._near.clear()
        self.held = 0

    def _targets(self) -> Iterator[tuple[Stored, torch.Tensor]]:
        by_file: dict[int, list[Stored]] = {}
        for stored in self._distinct.values():
            by_file.setdefault(stored.file.descriptor, []).append(stored)
        for group in by_file.values():
            memory = self._reader.allocate(sum(_aligned(stored.size) for stored in group))
            self.held += len(memory)
            begin = 0
            for stored in group:
                yield stored, memory[begin : begin + stored.size]
                begin += _aligned(stored.size)


class _Window:
    """Tensors come to the device shortly before a merge asks for them, and go after it.

    The order is always the same. A merge is expected to ask for the models that were asked for the
    tensor before: of the first tensor, those of the merge before.
    """

    def __init__(
        self,
        reader: Reader,
        stored: Mapping[str, Mapping[str, Stored]],
        files: Sequence[File],
    ) -> None:
        self._reader, self._stored, self._files = reader, stored, files
        self._order = list(stored)
        self._position = {name: index for index, name in enumerate(self._order)}
        self._near: dict[Place, Near] = {}
        self._now = ""
        self._asked = {model for group in stored.values() for model in group}

    @property
    def held(self) -> int:
        return sum(near.tensor.nbytes for near in self._near.values())

    def read(self) -> None:
        self._reader.warm(self._files)

    def get(self, tensor: str, stored: Stored) -> torch.Tensor:
        if tensor != self._now:
            self._go_on(tensor, self._asked)
        self._asked.add(stored.model)
        return self._begin(stored).get()

    def close(self) -> None:
        self._reader.stop()
        self._near.clear()

    def _begin(self, stored: Stored) -> Near:
        near = self._near.get(stored.place)
        if near is None:
            near = self._reader.bring(stored, self._reader.allocate(stored.size))
            self._near[stored.place] = near
        return near

    def _go_on(self, tensor: str, models: set[str]) -> None:
        """Let the earlier tensors go, and begin to bring this one and those that come next."""
        self._now, self._asked = tensor, set()
        wanted = list(self._next(tensor, models))
        places = {stored.place for stored in wanted}
        for place in self._near.keys() - places:
            del self._near[place]
        for stored in wanted:
            self._begin(stored)

    def _next(self, tensor: str, models: set[str]) -> Iterator[Stored]:
        ahead = 0
        here = self._position.get(tensor, len(self._order))
        for name in self._order[here:]:
            group = [s for model, s in self._stored[name].items() if model in models]
            size = sum({stored.place: stored.size for stored in group}.values())
            if name != tensor and ahead and ahead + size > _AHEAD:
                return
            if name != tensor:
                ahead += size
            yield from group


class _Mapped:
    """Tensors are views of their mapped files; pages that a merge has left are let go."""

    held = 0

    def __init__(self, device: torch.device, files: Sequence[File]) -> None:
        self._device, self._files = device, files
        self._reader = Reader(torch.device("cpu"), PIECE)
        self._maps: dict[int, mmap.mmap] = {}
        self._now = ""
        self._used: set[tuple[mmap.mmap, int, int]] = set()

    def read(self) -> None:
        self._reader.warm(self._files)

    def get(self, tensor: str, stored: Stored) -> torch.Tensor:
        if tensor != self._now:
            self._let_go()
            self._now = tensor
        pages = self._map(stored)
        if not stored.size:
            found = torch.empty(stored.shape, dtype=stored.dtype)
        else:
            count = math.prod(stored.shape)
            found = torch.frombuffer(pages, dtype=stored.dtype, count=count, offset=stored.start)
        self._used.add((pages, stored.start, stored.size))
        return found.view(stored.shape).to(self._device)

    def close(self) -> None:
        self._reader.stop()
        self._used.clear()
        self._maps.clear()

    def _map(self, stored: Stored) -> mmap.mmap:
        file = stored.file.descriptor
        if file not in self._maps:
            try:  # writable, or torch warns; the file itself stays as it is
                self._maps[file] = mmap.mmap(file, 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise stored.fault(f"cannot be mapped: {error}") from error
        if os.fstat(file).st_size < stored.start + stored.size:
            raise stored.fault(CUT)
        return self._maps[file]

    def _let_go(self) -> None:
        """Who still holds a view reads the pages again: they were not written to."""
        for pages, start, size in self._used:
            begin = start - start % mmap.PAGESIZE
            pages.madvise(mmap.MADV_DONTNEED, begin, start + size - begin)
        self._used.clear()


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
