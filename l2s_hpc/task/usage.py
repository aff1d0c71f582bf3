"""What an attempt used: seconds by phase, tokens a second, the device's idle share, memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime


class Clock:
    """Adds up the seconds of an attempt by phase, and those of the device that it has for itself.

    Attributes:
        started: when the attempt began.
        seconds: by phase.
        free_since: since when the device could have worked for this attempt, by
            `time.perf_counter`: the attempt's start, or the end of the generation before it.
        last: nothing comes after it in its worker, so that the device is free for nobody.
    """

    def __init__(self) -> None:
        self.started = now()
        self.seconds: dict[str, float] = {}
        self.free_since = time.perf_counter()
        self.last = False
        self._free_at: float | None = None
        self._busy = 0.0
        self._tokens = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 6)

    def loaded(self, seconds: Mapping[str, float]) -> None:
        """Count what the engine says of a load; the device was busy with all of it."""
        for name, value in seconds.items():
            self.add(name, value)
            self._busy += value

    @contextmanager
    def generating(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            with self.phase("generate"):
                yield
        finally:
            self._busy += time.perf_counter() - start

    def generated(self, tokens: int) -> None:
        """Count the tokens of a chunk."""
        self._tokens += tokens

    def device_is_free(self) -> float:
        """Note the end of the attempt's generation, and return when it was."""
        self._free_at = time.perf_counter()
        return self._free_at

    @property
    def device_seconds(self) -> float:
        """For how long the device was this attempt's, until now: see `Receipt`."""
        end = time.perf_counter() if self.last or self._free_at is None else self._free_at
        return max(round(end - self.free_since, 6), 0.0)

    def usage(self) -> dict[str, float]:
        """Return what is known: see `Receipt.usage`.

        `tokens_per_second`: generated ids a second of generating; `gpu_idle`: the share of the
        device's seconds in which it neither merged, loaded nor generated; `peak_host_gb`: this
        process at its largest, in 1e9 bytes.
        """
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = {"peak_host_gb": round(largest * 1024 / 1e9, 3)}
        generating, reserved = self.seconds.get("generate", 0.0), self.device_seconds
        if self._tokens and generating:
            found["tokens_per_second"] = round(self._tokens / generating, 1)
        if self._busy and reserved:
            found["gpu_idle"] = round(max(1 - self._busy / reserved, 0.0), 4)
        return found


def now() -> str:
    """Return the time as it stands in receipts."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
