"""Durable writes: whole or not at all, one winner, and file systems that report nonsense."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc.errors import DamageError, UserError
from l2s_hpc.store.files import (
    create_json,
    link_durably,
    move_to_quarantine,
    process_start,
    read_json,
    remove_stale_temporaries,
    sha256_file,
    write_durably,
    write_json,
)
from l2s_hpc.store.layout import safe_name

link = Path.hardlink_to


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")

    def half(temporary: Path) -> None:
        temporary.write_text("ne", encoding="utf-8")
        raise OSError(errno.ENOSPC, "disk full")

    with pytest.raises(OSError, match="disk full"):
        write_durably(path, half)
    assert path.read_text(encoding="utf-8") == "old" and names(tmp_path) == ["a.txt"]


def test_a_write_appears_at_once_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"

    def write(temporary: Path) -> None:
        temporary.write_text("new", encoding="utf-8")
        assert not path.exists() and temporary.parent == path.parent

    write_durably(path, write)
    assert path.read_text(encoding="utf-8") == "new" and names(path.parent) == ["a.txt"]


def test_what_is_written_is_synced_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    seen: list[tuple[str, bool]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append(("folder" if name == tmp_path else "file", path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_json(path, {"a": 1})
    assert seen == [("file", False), ("folder", True)]
    seen.clear()
    path.unlink()
    assert create_json(path, {"a": 1})
    assert seen == [("file", False), ("folder", True)]


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("abé"), inner),
        max_leaves=9,
    )
)
def test_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "round.json"
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.parametrize("write", [write_json, create_json])
def test_the_order_of_keys_is_kept(tmp_path: Path, write: Callable[[Path, Any], Any]) -> None:
    """The first parent is the slow one, and which is first stands in this order alone."""
    write(tmp_path / "a.json", {"slow": {"b": 1, "a": 2}, "fast": 3})
    found = read_json(tmp_path / "a.json")
    assert list(found) == ["slow", "fast"] and list(found["slow"]) == ["b", "a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path, value: float) -> None:
    for write in (write_json, create_json):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write(tmp_path / "a.json", [value])
    assert names(tmp_path) == []


def test_create_keeps_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert create_json(path, 1)
    assert not create_json(path, 2)
    assert read_json(path) == 1 and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EIO, errno.ETIMEDOUT])
def test_a_link_that_succeeded_and_was_reported_as_failed_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def reported_as_failed(self: Path, target: Path) -> None:
        link(self, target)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "hardlink_to", reported_as_failed)
    assert create_json(tmp_path / "a.json", 1)
    assert read_json(tmp_path / "a.json") == 1 and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EPERM, errno.ENOSPC])
def test_a_link_that_failed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def failed(self: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "hardlink_to", failed)
    with pytest.raises(OSError, match=os.strerror(number)):
        create_json(tmp_path / "a.json", 1)
    assert names(tmp_path) == []


def test_of_many_processes_one_creates_a_file(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from l2s_hpc.store.files import create_json\n"
        "folder = Path(sys.argv[1]); sys.stdin.readline()\n"
        "print(sum(create_json(folder / f'{n}.json', sys.argv[2]) for n in range(100)))"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), str(n)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        for n in range(4)
    ]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    won = [int(process.communicate()[0]) for process in running]
    assert sum(won) == 100
    owners = [read_json(tmp_path / f"{n}.json") for n in range(100)]
    assert [owners.count(str(n)) for n in range(4)] == won
    assert len(names(tmp_path)) == 100


def test_linking_gives_a_second_name_also_over_an_old_file(tmp_path: Path) -> None:
    source, target = tmp_path / "a" / "s", tmp_path / "b" / "t"
    source.parent.mkdir()
    source.write_text("new", encoding="utf-8")
    for _ in range(2):
        link_durably(source, target)
        assert target.samefile(source) and names(target.parent) == ["t"]
    target.unlink()
    target.write_text("old", encoding="utf-8")
    link_durably(source, target)
    assert target.samefile(source) and names(target.parent) == ["t"]


def test_where_links_are_not_known_the_bytes_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", failed)
    (tmp_path / "s").write_text("new", encoding="utf-8")
    link_durably(tmp_path / "s", tmp_path / "t")
    assert (tmp_path / "t").read_text(encoding="utf-8") == "new"
    assert not (tmp_path / "t").samefile(tmp_path / "s") and names(tmp_path) == ["s", "t"]


def test_a_second_name_that_was_reported_as_failed_does_not_write_into_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reported_as_failed(self: Path, target: Path) -> None:
        link(self, target)
        raise OSError(errno.EIO, "reported as failed")

    source = tmp_path / "s"
    source.write_text("new", encoding="utf-8")
    before = source.stat().st_mtime_ns
    monkeypatch.setattr(Path, "hardlink_to", reported_as_failed)
    link_durably(source, tmp_path / "t")
    assert (tmp_path / "t").samefile(source) and source.stat().st_mtime_ns == before


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}}', b'"\xff"', b"\x00\x00"])
def test_what_is_not_json_is_damage_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "torn.json"
    path.write_bytes(content)
    with pytest.raises(DamageError, match=r"not valid JSON") as error:
        read_json(path)
    assert str(path) in str(error.value)


def test_quarantine_keeps_everything_under_names_that_tell(tmp_path: Path) -> None:
    found = []
    for content in ("1", "2"):
        folder = tmp_path / "attempts" / "search" / "0000" / "abc" / "1"
        folder.mkdir(parents=True)
        (folder / "scores.parquet").write_text(content, encoding="utf-8")
        found.append(move_to_quarantine(folder, tmp_path / "quarantine"))
        assert not folder.exists()
    assert len(set(found)) == 2
    assert all(path.name.startswith("search-0000-abc-1.") for path in found)
    kept = [(path / "scores.parquet").read_text(encoding="utf-8") for path in found]
    assert kept == ["1", "2"]


def test_only_temporaries_of_dead_writers_of_this_host_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, folder = socket.gethostname(), tmp_path / "a"
    folder.mkdir()
    stale = folder / f".{host}.{dead.pid}.0a1b.tmp"
    kept = [
        folder / f".{host}.{os.getpid()}.0a1b.tmp",
        folder / f".elsewhere.{dead.pid}.0a1b.tmp",
        folder / f".{host}.cluster.{dead.pid}.0a1b.tmp",
        folder / f"{host}.{dead.pid}.0a1b.tmp",
        folder / "scores.parquet",
    ]
    for path in (stale, *kept):
        path.touch()
    remove_stale_temporaries(tmp_path)
    assert not stale.exists() and all(path.exists() for path in kept)


def test_the_start_of_a_process_tells_it_from_others() -> None:
    assert process_start(os.getpid()) == process_start(os.getpid()) != ""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert process_start(dead.pid) == ""


def test_the_sha256_is_that_of_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256_file(path).startswith("ba7816bf8f01cfea")


@given(st.text(max_size=120))
def test_names_are_safe_in_folders_and_shells(word: str) -> None:
    try:
        assert safe_name(word) == word
    except UserError:
        return
    assert word.isascii() and not set(word) & set(" /\\'\"$`;&|<>*?()[]{}~!#\n\t\0")
    assert word[0] not in ".-" and json.loads(json.dumps(word)) == word
