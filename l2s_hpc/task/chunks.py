"""The finished chunks of an attempt: durable at once, and read by the attempts after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from l2s_hpc.errors import DamageError
from l2s_hpc.records import Output, Record, deciding
from l2s_hpc.store.files import read_json, sha256_file, write_json
from l2s_hpc.store.layout import AttemptPaths
from l2s_hpc.store.scores import OUTPUTS, read_table, write_table


class Seal(Record):
    """The small file after a chunk: it is whole, and this made it."""

    sha256: str
    protocol: str
    device: str
    versions: dict[str, str]


class Chunks:
    """Writes the chunks of the newest of some attempts, and reads those of all.

    One table holds answers of one device and of one engine: other chunks are as good as none.
    """

    def __init__(self, attempts: Sequence[AttemptPaths], candidate: str, protocol: str) -> None:
        """Take the attempts' folders, the newest first, and the hash of the protocol."""
        self._attempts = attempts
        self._candidate = candidate
        self._protocol = protocol
        self._maker: tuple[str, dict[str, str]] | None = None

    def made_by(self, device: str, versions: Mapping[str, str]) -> None:
        """Hear what makes the chunks from now on."""
        self._maker = device, deciding(versions)

    def keep(self, number: int, outputs: Sequence[Output]) -> None:
        """Make a finished chunk durable; its seal comes last."""
        path = self._attempts[0].chunk(number)
        sha256 = write_table(path, self.rows(outputs), OUTPUTS)
        device, versions = self._maker or ("", {})
        seal = Seal(sha256=sha256, protocol=self._protocol, device=device, versions=versions)
        write_json(path.with_suffix(".json"), seal.model_dump(mode="json"))

    def kept(self, number: int) -> list[Output] | None:
        """Return a chunk that some attempt has finished; None if there is none that is whole."""
        path = self._whole(number)
        try:
            rows = read_table(path, OUTPUTS).to_pylist() if path else None
        except (OSError, DamageError):
            return None
        if rows is None:
            return None
        return [Output(**{k: v for k, v in row.items() if k != "candidate"}) for row in rows]

    def durable(self) -> int:
        """Return how many chunks, from the first on and without a gap, need not be made again.

        Before it is known what makes them, chunks of any device and engine count.
        """
        number = 0
        while self._whole(number):
            number += 1
        return number

    def rows(self, outputs: Sequence[Output]) -> list[dict[str, object]]:
        """Return the rows of outputs in a table of them."""
        return [{"candidate": self._candidate, **vars(output)} for output in outputs]

    def _whole(self, number: int) -> Path | None:
        """Return the file of a chunk that is whole and made alike; None if there is none."""
        paths = (attempt.chunk(number) for attempt in self._attempts)
        return next((path for path in paths if self._is_whole(path)), None)

    def _is_whole(self, path: Path) -> bool:
        seal = path.with_suffix(".json")
        try:
            if not seal.exists():
                return False
            found = Seal.model_validate(read_json(seal))
            alike = self._maker in (None, (found.device, deciding(found.versions)))
            return alike and found.protocol == self._protocol and found.sha256 == sha256_file(path)
        except (OSError, ValueError, DamageError):
            return False
