"""Reads tensors of safetensors files with several threads, from where the headers say they lie."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from l2s_hpc.recipes.models import Tensor
from l2s_hpc.task.engines import EngineError

Place = tuple[int, str]
"""A file's descriptor and the name of a tensor in it."""

CUT = "the file ends before it"

_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PIECE = 64 * 2**20
"""Bytes of one read on its way to the device."""

_THREADS = 8
_WARMED = 4 * 2**20
"""Bytes of one read that only fills the page cache."""


class File:
    """An open weight file, and what it was when it was opened."""

    def __init__(self, model: str, path: Path) -> None:
        self.model, self.path = model, path
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise EngineError(f"model '{model}': {error.strerror}", path=path) from error
        self._state = _state(os.fstat(self.descriptor))

    def check(self) -> None:
        """Make sure that this is the file that was opened, as it was then.

        Its time decides: a small change in place shows in nothing else that is quickly read.

        Raises:
            EngineError: it was changed, touched, replaced or removed.
        """
        try:
            now = _state(self.path.stat())
        except OSError:
            now = None
        if now != self._state:
            raise EngineError(
                f"a weight file of model '{self.model}' was changed or touched during the search",
                hint="leave the parents alone until it ends; the attempt is tried again with the "
                "file as it is now",
                path=self.path,
            )


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    model: str
    tensor: str
    file: File
    start: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def place(self) -> Place:
        """The same for two models that share the file."""
        return self.file.descriptor, self.tensor

    def fault(self, what: str) -> EngineError:
        return EngineError(
            f"model '{self.model}', tensor {self.tensor}: {what}", path=self.file.path
        )


@dataclass
class Near:
    """A tensor on the device, and what is still to be read of it."""

    tensor: torch.Tensor
    pieces: list[Future[None]] = field(default_factory=list)

    def get(self) -> torch.Tensor:
        for piece in self.pieces:
            piece.result()
        self.pieces.clear()
        return self.tensor


class Reader:
    """Threads that read pieces of files into buffers of their own, and on to the device."""

    def __init__(self, device: torch.device, largest: int) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._size = min(PIECE, max(largest, 1))
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(_THREADS, "parents")

    def allocate(self, size: int) -> torch.Tensor:
        """Return so many bytes of the device.

        Raises:
            EngineError: it has no room.
        """
        try:
            return torch.empty(size, dtype=torch.uint8, device=self.device)
        except RuntimeError as error:
            raise EngineError(
                f"no room on {self.device} for {size / 1e9:.2f} GB of the parents: {error}"
            ) from error

    def bring(self, stored: Stored, target: torch.Tensor) -> Near:
        """Begin to bring a tensor to where it has room: as many bytes of the device."""
        usable = None
        if self._cuda:  # what stood there before may still be in use by work in the queue
            usable = torch.cuda.Event()
            usable.record(torch.cuda.current_stream(self.device))
        pieces = [
            self._pool.submit(self._bring_piece, stored, begin, target, usable)
            for begin in range(0, stored.size, self._size)
        ]
        return Near(target.view(stored.dtype).view(stored.shape), pieces)

    def warm(self, files: Sequence[File]) -> None:
        """Begin to bring files into the page cache."""
        for file in files:
            for begin in range(0, os.fstat(file.descriptor).st_size, PIECE):
                self._pool.submit(self._warm_piece, file, begin)

    def end(self) -> None:
        """Let the threads, and their buffers, go when what was begun is done."""
        self._pool.shutdown(wait=False)

    def stop(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _bring_piece(
        self, stored: Stored, begin: int, target: torch.Tensor, usable: torch.cuda.Event | None
    ) -> None:
        end = min(begin + self._size, stored.size)
        try:
            buffer = self._buffer()[: end - begin]
            _fill(stored, begin, memoryview(buffer.numpy()))
            with torch.inference_mode():  # the target may have been made in that mode
                if usable is None:
                    target[begin:end].copy_(buffer)
                    return
                with torch.cuda.stream(self._stream()):
                    usable.wait()
                    target[begin:end].copy_(buffer, non_blocking=True)
                self._stream().synchronize()
        except RuntimeError as error:
            raise stored.fault(f"cannot be brought to {self.device}: {error}") from error

    def _warm_piece(self, file: File, begin: int) -> None:
        size = min(len(self._buffer()), _WARMED)
        room = memoryview(self._buffer()[:size].numpy())
        for offset in range(begin, begin + PIECE, size):
            if os.preadv(file.descriptor, [room], offset) < size:
                return

    def _buffer(self) -> torch.Tensor:
        if not hasattr(self._own, "buffer"):
            self._own.buffer = torch.empty(self._size, dtype=torch.uint8, pin_memory=self._cuda)
        buffer: torch.Tensor = self._own.buffer
        return buffer

    def _stream(self) -> torch.cuda.Stream:
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self.device)
        return self._own.stream


def stored_in(model: str, name: str, tensor: Tensor, file: File) -> Stored:
    """Check what a header says of a tensor."""
    dtype = _DTYPES.get(tensor.dtype)
    stored = Stored(
        model, name, file, tensor.start, tensor.size, dtype or torch.uint8, tensor.shape
    )
    if dtype is None:
        raise stored.fault(f"unknown type {tensor.dtype}")
    if math.prod(tensor.shape) * dtype.itemsize != tensor.size:
        shape = list(tensor.shape)
        raise stored.fault(f"the header gives {tensor.size} bytes to {tensor.dtype} {shape}")
    return stored


def _fill(stored: Stored, begin: int, room: memoryview) -> None:
    """Read a piece of a tensor."""
    offset = stored.start + begin
    while room:
        try:
            count = os.preadv(stored.file.descriptor, [room], offset)
        except OSError as error:
            raise stored.fault(f"cannot be read: {error.strerror}") from error
        if not count:
            raise stored.fault(CUT)
        room, offset = room[count:], offset + count


def _state(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
