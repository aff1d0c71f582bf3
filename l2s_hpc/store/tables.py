"""Where the tables of an accepted candidate lie, in this module alone.

A table begins as a file of its own. `l2s compact` joins those of a closed generation into one file
beside which a manifest says whose rows lie where; receipts and sha256 are in the manifest then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from l2s_hpc.errors import DamageError
from l2s_hpc.records import Receipt, Record
from l2s_hpc.store.files import read_json, sha256_file
from l2s_hpc.store.layout import RunPaths, Where

if TYPE_CHECKING:
    # Opening a run loads no pyarrow: what reads tables with it imports it then.
    import pyarrow as pa
    import pyarrow.parquet as pq

MENDED_BY = {
    "search": "`l2s run`",
    "evaluate": "`l2s evaluate`",
    "import": "the same `l2s import` command",
}
"""By a run's purpose, what makes tables anew that are in quarantine."""


def remedy(purpose: str) -> str:
    """Return what mends missing and damaged tables of a run, where it was made and in a copy."""
    return (
        f"where the run was made `l2s verify --quarantine`, then {MENDED_BY[purpose]} makes it "
        "again; in a copy: copy it anew, or `open_run(path, strict=False)` leaves it out"
    )


Stamp = tuple[int, int, int]
"""Size, time of the last change and inode of a file: what tells it from a later one."""


class JoinedTable(Record):
    """One candidate's rows in a joined file.

    Attributes:
        first, rows: they are `rows` many, from row `first` of the file on.
        content_sha256: for scores that of `content_sha256`, else of `rows_sha256`.
        receipt: what stood beside the table's own file, which it names by `file_sha256`; of a table
            of outputs this name alone.
    """

    candidate: str
    first: int
    rows: int
    content_sha256: str
    receipt: dict[str, Any]


class Manifest(Record):
    """What a joined file holds. `seal` is the hash of all the rest."""

    kind: str
    evaluation: str
    generation: int
    part: int
    file_sha256: str
    tables: tuple[JoinedTable, ...]
    seal: str = ""

    def sealed(self) -> Manifest:
        """Return it with its seal."""
        return self.model_copy(update={"seal": self._hash()})

    @property
    def sound(self) -> bool:
        """Whether it is as it was sealed."""
        return self.seal == self._hash()

    @property
    def rows(self) -> int:
        """Rows of the whole file."""
        return sum(table.rows for table in self.tables)

    def _hash(self) -> str:
        rest = self.model_dump(mode="json", exclude={"seal"})
        return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Place:
    """Where a table lies.

    Attributes:
        path: the file.
        manifest, table: of a joined file; None: the file is the table's own.
    """

    path: Path
    manifest: Manifest | None = None
    table: JoinedTable | None = None


def read_manifest(path: Path) -> Manifest | None:
    """Return a manifest; None if there is none.

    Raises:
        DamageError: it is not as it was written.
    """
    try:
        manifest = Manifest.model_validate(read_json(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        text = f"not a manifest of joined tables: {error.errors()[0]['msg']}"
        raise DamageError(text, path=path) from None
    if not manifest.sound:
        raise DamageError("the manifest of joined tables was changed", path=path)
    return manifest


def stamp_of(path: Path) -> Stamp:
    """Return what tells a file from a later one."""
    info = path.stat()
    return info.st_size, info.st_mtime_ns, info.st_ino


class Tables:
    """Finds and checks the tables of a run; a joined file is hashed once unless it changes."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._manifests: dict[Path, tuple[Stamp | None, dict[str, Place]]] = {}
        self._names: dict[tuple[str, str, int], Path] = {}
        self._hashed: dict[Path, Stamp] = {}
        self._group: tuple[Path, Stamp, int, pa.Table] | None = None

    def scores(self, where: Where) -> Place:
        """Return where a score table lies, whether or not it is there.

        Raises:
            DamageError: a manifest is damaged.
        """
        return self._joined("scores", where) or Place(self._paths.scores(*where))

    def outputs(self, where: Where) -> Place:
        """Return where the full texts lie, whether or not they are there."""
        return self._joined("outputs", where) or Place(self._paths.outputs(*where))

    def grades(self, grader: str, where: Where) -> Place:
        """Return where a grader's verdicts lie; those made last, in a file of their own, win."""
        own = self._paths.grades(grader, *where)
        joined = None if own.exists() else self._joined(self._paths.grades_kind(grader), where)
        return joined or Place(own)

    def grade_receipt(self, grader: str, where: Where) -> Any:
        """Return what stands beside a grader's verdicts; OSError where nothing does."""
        place = self.grades(grader, where)
        return place.table.receipt if place.table else read_json(place.path.with_suffix(".json"))

    def receipt(self, where: Where) -> Receipt:
        """Return the receipt of an accepted table.

        Raises:
            DamageError: it is missing, or not a receipt.
        """
        joined = self._joined("scores", where)
        path = joined.path if joined else self._paths.receipt(*where)
        try:
            said = joined.table.receipt if joined and joined.table else read_json(path)
            return Receipt.model_validate(said)
        except OSError:
            raise self.missing(Place(path), where, "the receipt of an accepted table") from None
        except ValidationError as error:
            raise DamageError(f"not a receipt: {error.errors()[0]['msg']}", path=path) from None

    def missing(self, place: Place, where: Where, what: str) -> DamageError:
        """Return the error that a file of scores is missing, or the manifest that maps its rows."""
        manifest = self._paths.joined("scores", *where[:2])
        if place.table is not None:
            return DamageError("a file of joined tables is missing", path=place.path)
        if self._paths.joined_parts("scores", *where[:2]) and not manifest.exists():
            return DamageError("the manifest of joined tables is missing", path=manifest)
        return DamageError(f"{what} is missing", path=place.path)

    def verified_scores(self, where: Where, receipt: Receipt) -> pa.Table:
        """Check a score table against its receipt, row by row, and return it.

        Raises:
            DamageError: it is missing, or differs.
        """
        from l2s_hpc.store.scores import verify_table

        place = self.scores(where)
        if place.table is None:
            return verify_table(place.path, receipt)
        self.check_file(place)
        return self.salvaged_scores(place, receipt)

    def salvaged_scores(self, place: Place, receipt: Receipt) -> pa.Table:
        """Return a candidate's rows of a joined file that may be damaged elsewhere.

        Raises:
            DamageError: these rows are.
        """
        from l2s_hpc.store.scores import SCORES, check_content

        table = self.rows(place, SCORES)
        check_content(table, receipt, place.path)
        return table

    def verified_outputs(self, where: Where, receipt: Receipt) -> pa.Table:
        """Check the full texts against the receipt of their score table, and return them.

        Raises:
            DamageError: they are missing, or differ.
        """
        from l2s_hpc.store.scores import OUTPUTS, read_table, verify_outputs

        place = self.outputs(where)
        if place.table is None:
            verify_outputs(place.path, receipt)
            return read_table(place.path, OUTPUTS)
        self.check_owner(place, receipt)
        self.check_file(place)
        return self.rows(place, OUTPUTS)

    def check_owner(self, place: Place, receipt: Receipt) -> None:
        """Check that joined outputs are those that a receipt names.

        Raises:
            DamageError: they are others.
        """
        if place.table and place.table.receipt.get("file_sha256") != receipt.outputs_sha256:
            raise DamageError("the outputs are not those of the receipt", path=place.path)

    def verified_grades(self, grader: str, where: Where, sha256: str) -> pa.Table:
        """Check a grader's verdicts against the sha256 in their receipt, and return them.

        Raises:
            DamageError: they differ. OSError: they are missing.
        """
        from l2s_hpc.store.scores import GRADES

        place = self.grades(grader, where)
        if place.table is not None:
            self.check_file(place)
        elif sha256_file(place.path) != sha256:
            raise DamageError("the sha256 differs from the receipt's", path=place.path)
        return self.rows(place, GRADES)

    def rows(self, place: Place, schema: pa.Schema) -> pa.Table:
        """Return a table; of a joined file the candidate's rows, whose content hash is checked.

        The content of scores is not hashed here: their receipt names it (`verified_scores`).

        Raises:
            DamageError: it cannot be read, or its rows are another's.
        """
        from l2s_hpc.store.scores import SCORES, rows_sha256

        table = self._slice(place, schema)
        if (
            place.table
            and schema is not SCORES
            and rows_sha256(table) != place.table.content_sha256
        ):
            raise DamageError("the content hash differs from its manifest's", path=place.path)
        return table

    def check_file(self, place: Place) -> None:
        """Hash a joined file unless that is done.

        Raises:
            DamageError: it is missing, or differs from its manifest by a byte.
        """
        try:
            stamp = stamp_of(place.path)
            if self._hashed.get(place.path) != stamp:
                if place.manifest and sha256_file(place.path) != place.manifest.file_sha256:
                    raise DamageError("the sha256 differs from its manifest's", path=place.path)
                self._hashed[place.path] = stamp
        except FileNotFoundError:
            raise DamageError("a file of joined tables is missing", path=place.path) from None

    def _joined(self, kind: str, where: Where) -> Place | None:
        evaluation, generation, candidate = where
        group = (kind, evaluation, generation)
        path = self._names.get(group)
        if path is None:
            path = self._names[group] = self._paths.joined(*group)
        try:
            stamp = stamp_of(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        known = self._manifests.get(path)
        if known is None or known[0] != stamp:
            known = self._manifests[path] = (stamp, self._places(path))
        return known[1].get(candidate)

    def _places(self, path: Path) -> dict[str, Place]:
        manifest = read_manifest(path)
        if manifest is None:
            return {}
        return places(self._paths, manifest)

    def _slice(self, place: Place, schema: pa.Schema) -> pa.Table:
        """Return the rows that the manifest names; whole row groups are read, the last one kept."""
        import pyarrow as pa

        from l2s_hpc.store.scores import conforming, read_table

        table = place.table
        if table is None:
            return read_table(place.path, schema)
        first, last = table.first, table.first + table.rows
        try:
            parts = list(self._overlapping(place.path, first, last))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DamageError(f"not a readable table: {error}", path=place.path) from error
        if not parts:
            raise DamageError("its rows are missing", path=place.path)
        return conforming(pa.concat_tables(parts), place.path, schema)

    def _overlapping(self, path: Path, first: int, last: int) -> Iterator[pa.Table]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            start = 0
            for number in range(file.metadata.num_row_groups):
                end = start + file.metadata.row_group(number).num_rows
                if start < last and first < end:
                    here = max(first - start, 0)
                    yield self._row_group(file, path, number).slice(here, last - start - here)
                start = end

    def _row_group(self, file: pq.ParquetFile, path: Path, number: int) -> pa.Table:
        stamp = stamp_of(path)
        if self._group is None or self._group[:3] != (path, stamp, number):
            self._group = (path, stamp, number, file.read_row_group(number, use_threads=False))
        return self._group[3]


def places(paths: RunPaths, manifest: Manifest) -> dict[str, Place]:
    """Return where the tables that a manifest names lie, by candidate."""
    path = paths.joined_part(manifest.kind, manifest.evaluation, manifest.generation, manifest.part)
    return {table.candidate: Place(path, manifest, table) for table in manifest.tables}
