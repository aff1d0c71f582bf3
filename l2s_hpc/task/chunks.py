"""The finished chunks of an attempt: durable at once, and read by the attempts after it."""

from __future__ import annotations

from collections.abc import Sequence

from l2s_hpc.errors import DamageError
from l2s_hpc.records import Output
from l2s_hpc.store.files import read_json, sha256_file, write_json
from l2s_hpc.store.layout import AttemptPaths
from l2s_hpc.store.scores import OUTPUTS, read_table, write_table


class Chunks:
    """Writes the chunks of the newest of some attempts, and reads those of all."""

    def __init__(self, attempts: Sequence[AttemptPaths], candidate: str, protocol: str) -> None:
        """Take the attempts' folders, the newest first, and the hash of the protocol."""
        self._attempts = attempts
        self._candidate = candidate
        self._protocol = protocol

    def keep(self, number: int, outputs: Sequence[Output]) -> None:
        """Make a finished chunk durable; the small file after it says that it is whole."""
        path = self._attempts[0].chunk(number)
        sha256 = write_table(path, self.rows(outputs), OUTPUTS)
        write_json(path.with_suffix(".json"), {"sha256": sha256, "protocol": self._protocol})

    def kept(self, number: int) -> list[Output] | None:
        """Return a chunk that some attempt has finished; None if there is none that is whole."""
        for attempt in self._attempts:
            outputs = self._read(attempt, number)
            if outputs is not None:
                return outputs
        return None

    def rows(self, outputs: Sequence[Output]) -> list[dict[str, object]]:
        """Return the rows of outputs in a table of them."""
        return [{"candidate": self._candidate, **vars(output)} for output in outputs]

    def _read(self, attempt: AttemptPaths, number: int) -> list[Output] | None:
        path = attempt.chunk(number)
        seal = path.with_suffix(".json")
        try:
            if not seal.exists() or read_json(seal) != {
                "sha256": sha256_file(path),
                "protocol": self._protocol,
            }:
                return None
            rows = read_table(path, OUTPUTS).to_pylist()
        except (OSError, DamageError):
            return None
        return [Output(**{k: v for k, v in row.items() if k != "candidate"}) for row in rows]
