"""What tasks share on the node's disk: verified, swept, and never in the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from l2s_hpc.recipes.models import Model
from l2s_hpc.task import scratch as module
from l2s_hpc.task.scratch import ROOM, UNUSED_DAYS, Copies, cache_folder
from tests.helpers import ROOT, toy_models
from tests.slurm.machine import SmallDisk, may_mount

OURS = f"l2s-{os.geteuid()}"
MOUNTS = pytest.mark.skipif(
    not may_mount(), reason="needs root with the right to mount a small disk"
)
TASK = """
import signal, sys, threading, time
from pathlib import Path
from l2s_hpc.recipes.models import Model
from l2s_hpc.task.scratch import Copies
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
model, copies = Model("big", Path(sys.argv[1])), Copies()
try:
    found = copies.near({"big": model}, sys.argv[2], {"big": model.identity})
    print(found["big"].folder, flush=True)
    # Not join: interrupted, it takes the thread for dead (Python 3.11).
    while any(thread.name == "copies" for thread in threading.enumerate()):
        time.sleep(0.01)
finally:
    copies.close()
"""


def parents(scratch: Path) -> Path:
    return scratch / OURS / "parents"


def copies(scratch: Path) -> list[Path]:
    return sorted(path for path in parents(scratch).iterdir() if path.is_dir())


def identities(models: Mapping[str, Model]) -> dict[str, str]:
    return {name: model.identity for name, model in models.items()}


def copying() -> bool:
    return any(thread.name == "copies" for thread in threading.enumerate())


@contextmanager
def task(models: Mapping[str, Model], scratch: Path | str) -> Iterator[dict[str, Model]]:
    """What a task reads while it runs."""
    own = Copies()
    try:
        yield own.near(models, str(scratch), identities(models))
    finally:
        own.close()


def after_a_task(
    models: Mapping[str, Model], scratch: Path | str, given: Mapping[str, str] | None = None
) -> dict[str, Model]:
    """What a task reads that runs until its copies are made."""
    own = Copies()
    try:
        found = own.near(models, str(scratch), given or identities(models))
        until(lambda: not copying())
        return found
    finally:
        own.close()


def brought(models: Mapping[str, Model], scratch: Path | str) -> dict[str, Model]:
    """What the second task of a node reads."""
    after_a_task(models, scratch)
    return after_a_task(models, scratch)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "complete.json"}


def own(name: str, folder: Path) -> Model:
    """A copy of a toy model that a test may change."""
    shutil.copytree(toy_models(name)[name].folder, folder)
    return Model(name, folder)


def big_model(folder: Path, size: int) -> Model:
    """A model with one tensor of so many random bytes."""
    folder.mkdir()
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"x": entry}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(size // 2**20):
            file.write(os.urandom(2**20))
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return Model("big", folder)


def in_a_process(model: Model, scratch: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TASK, str(model.folder), str(scratch)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stopped_while_it_copies(model: Model, scratch: Path) -> subprocess.Popen[str]:
    process = in_a_process(model, scratch)
    until(lambda: list(parents(scratch).glob("*/model.safetensors")))
    os.kill(process.pid, signal.SIGSTOP)
    (partial,) = copies(scratch)
    assert not (partial / "complete.json").exists(), "stopped too late"
    return process


def until(happened: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# Copies


def test_the_first_task_reads_the_originals_and_leaves_copies(tmp_path: Path) -> None:
    models = toy_models()
    assert after_a_task(models, tmp_path) == models
    assert len(copies(tmp_path)) == 3
    with task(models, tmp_path) as found:
        assert {name: model.folder.parent for name, model in found.items()} == (
            dict.fromkeys(models, parents(tmp_path))
        )


def test_an_engine_that_starts_again_has_the_copies(tmp_path: Path) -> None:
    """Within one task."""
    models, one = toy_models("slow"), Copies()
    assert one.near(models, str(tmp_path), identities(models)) == models
    until(lambda: not copying())
    again = one.near(models, str(tmp_path), identities(models))
    one.close()
    assert again["slow"].folder == copies(tmp_path)[0]


def test_only_this_user_can_read_copies(tmp_path: Path) -> None:
    after_a_task(toy_models("slow"), tmp_path / "new")
    for folder in (tmp_path / "new", tmp_path / "new" / OURS, *copies(tmp_path / "new")):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_copies_hold_what_the_node_needs(tmp_path: Path) -> None:
    models = toy_models()
    found = brought(models, tmp_path)
    assert found.keys() == models.keys()
    for name, model in models.items():
        assert found[name].folder.parent == parents(tmp_path)
        assert found[name].folder.name.startswith(model.identity)
        assert contents(found[name].folder) == contents(model.folder)
        seal = json.loads((found[name].folder / "complete.json").read_text(encoding="utf-8"))
        assert seal["files"].keys() == contents(model.folder).keys()
        assert {len(entry["sha256"]) for entry in seal["files"].values()} == {64}


def test_a_copy_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = toy_models("slow")
    first = brought(models, tmp_path)["slow"].folder
    inodes = {path.name: path.stat().st_ino for path in first.iterdir()}
    assert brought({"other": Model("other", models["slow"].folder)}, tmp_path)["other"].folder == (
        first
    )
    assert {path.name: path.stat().st_ino for path in first.iterdir()} == inodes
    assert capsys.readouterr().err.count("copying") == 1


def test_code_pickles_and_strangers_are_not_copied(tmp_path: Path) -> None:
    model = own("slow", tmp_path / "slow")
    for name in ("modeling.py", "pytorch_model.bin", "complete.json", ".hidden", "notes.pdf"):
        (model.folder / name).write_text("{}", encoding="utf-8")
    found = brought({"slow": model}, tmp_path)["slow"]
    assert contents(found.folder) == contents(toy_models("slow")["slow"].folder)


def test_equal_weights_with_another_template_are_another_copy(tmp_path: Path) -> None:
    """The identity speaks of weights alone."""
    model = own("slow", tmp_path / "slow")
    (model.folder / "chat_template.jinja").write_text("other", encoding="utf-8")
    found = brought({**toy_models("slow"), "mine": model}, tmp_path)
    assert found["slow"].identity == found["mine"].identity
    assert (found["mine"].folder / "chat_template.jinja").read_text(encoding="utf-8") == "other"
    assert found["slow"].folder != found["mine"].folder


@pytest.mark.parametrize("place", ["$PLACE/a", "${PLACE}/a", "~/a"])
def test_variables_are_the_nodes(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    found = brought(toy_models("slow"), place)["slow"]
    assert found.folder.parent == parents(tmp_path / "a")


def flip(path: Path, keep_time: bool) -> None:
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + 100] ^= 1
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", lambda path: flip(path, keep_time=False)),
        ("model.safetensors", lambda path: flip(path, keep_time=True)),
        ("tokenizer.json", lambda path: flip(path, keep_time=True)),
        ("model.safetensors", cut),
        ("config.json", Path.unlink),
        ("complete.json", cut),
        ("complete.json", lambda path: path.write_text("[]", encoding="utf-8")),
    ],
)
def test_a_damaged_copy_is_made_again(
    file: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    models = toy_models("slow")
    folder = brought(models, tmp_path)["slow"].folder
    damage(folder / file)
    assert after_a_task(models, tmp_path) == models, "the damaged one is not used"
    again = after_a_task(models, tmp_path)["slow"].folder
    assert again == folder
    assert contents(again) == contents(models["slow"].folder)


def test_a_change_that_the_samples_miss_is_seen_by_its_time(tmp_path: Path) -> None:
    models = {"big": big_model(tmp_path / "big", 20 * 2**20)}
    copy = brought(models, tmp_path / "scratch")["big"]
    with (copy.folder / "model.safetensors").open("r+b") as file:
        file.seek(2**20)
        file.write(bytes(9))
    assert Model("big", copy.folder).identity == models["big"].identity
    again = brought(models, tmp_path / "scratch")["big"]
    assert contents(again.folder) == contents(models["big"].folder)


def test_a_disk_that_gives_back_other_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = toy_models("slow")

    def damage(descriptor: int, *given: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name == "model.safetensors":
            flip(path, keep_time=True)

    monkeypatch.setattr(module.os, "posix_fadvise", damage)
    assert brought(models, tmp_path) == models
    assert "other bytes than were written" in capsys.readouterr().err
    assert copies(tmp_path) == []


def test_an_original_of_another_identity_is_not_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = toy_models("slow")
    assert after_a_task(models, tmp_path, {"slow": "0" * 16}) == models
    assert "changed while it was copied" in capsys.readouterr().err
    assert copies(tmp_path) == []


@pytest.mark.parametrize("identity", ["../../../../etc", "-", "a" * 15 + "/", "g" * 16])
def test_hostile_identities_name_no_folder(
    identity: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = toy_models("slow")
    assert after_a_task(models, tmp_path / "a", {"slow": identity}) == models
    assert "no identity of weights" in capsys.readouterr().err
    assert copies(tmp_path / "a") == []


def test_hostile_names_stay_inside(tmp_path: Path) -> None:
    """Of models, of files, and in an index."""
    model = own("slow", tmp_path / "a")
    strange = "-rf $(touch x);\n.safetensors"
    (model.folder / "model.safetensors").rename(model.folder / strange)
    index = {"weight_map": {name: f"../../{strange}" for name in ("x", "y")}}
    text = json.dumps(index)
    (model.folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    found = brought({"../../../x": Model("../../../x", model.folder)}, tmp_path / "s")
    (copy,) = copies(tmp_path / "s")
    assert found["../../../x"].folder == copy
    assert contents(copy) == contents(model.folder)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "s"}


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("$NOT_SET/x", "not an absolute path on this node"),
        ("relative", "not an absolute path on this node"),
        ("~nobody-of-this-name/x", "not an absolute path on this node"),
        ("/dev/null/x", "File exists"),
        ("/proc", "No such file or directory"),
    ],
)
def test_without_a_scratch_the_originals_are_read(
    place: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    models = toy_models("slow")
    assert brought(models, place) == models
    said = capsys.readouterr().err
    assert f"warning: no copies of the parents in {place}: {reason}" in said.replace(
        f"{place} is not", "not"
    )


def test_no_scratch_no_copies(capsys: pytest.CaptureFixture[str]) -> None:
    models = toy_models()
    assert brought(models, "") == models
    assert capsys.readouterr().err == ""


def test_an_unsafe_scratch_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More of this in `test_node`."""
    models = toy_models("slow")
    (tmp_path / OURS).mkdir()
    (tmp_path / OURS).chmod(0o755)
    assert brought(models, tmp_path) == models
    assert (
        f"warning: no copies of the parents in {tmp_path}: {tmp_path / OURS} is open to others "
        "(mode 755): remove it, or name another\n"
    ) in capsys.readouterr().err
    assert list((tmp_path / OURS).iterdir()) == []


# Several tasks


def test_who_finds_another_copying_waits_for_nothing(tmp_path: Path) -> None:
    model = big_model(tmp_path / "big", 200 * 2**20)
    copier = stopped_while_it_copies(model, tmp_path / "scratch")
    out, err = in_a_process(model, tmp_path / "scratch").communicate(timeout=60)
    assert Path(out.strip()) == model.folder
    assert (
        f"another task copies to {parents(tmp_path / 'scratch')}" in err and "copying '" not in err
    )
    os.kill(copier.pid, signal.SIGCONT)
    copier.communicate(timeout=60)
    assert contents(copies(tmp_path / "scratch")[0]) == contents(model.folder)


def test_what_a_killed_task_left_is_swept(tmp_path: Path) -> None:
    model = big_model(tmp_path / "big", 200 * 2**20)
    copier = stopped_while_it_copies(model, tmp_path / "scratch")
    (partial,) = copies(tmp_path / "scratch")
    os.kill(copier.pid, signal.SIGKILL)
    copier.communicate()
    out, err = in_a_process(model, tmp_path / "scratch").communicate(timeout=60)
    assert "copying 'big'" in err and Path(out.strip()) == model.folder
    assert copies(tmp_path / "scratch") == [partial]
    assert contents(partial) == contents(model.folder)


def test_many_tasks_at_once_copy_once(tmp_path: Path) -> None:
    model = big_model(tmp_path / "big", 20 * 2**20)
    tasks = [in_a_process(model, tmp_path / "scratch") for _ in range(4)]
    found = [task.communicate(timeout=120) for task in tasks]
    (copy,) = copies(tmp_path / "scratch")
    assert {out.strip() for out, _ in found} <= {str(copy), str(model.folder)}
    assert sum("copying" in err for _, err in found) == 1
    assert contents(copy) == contents(model.folder)


# The end of a task


def test_a_signal_leaves_no_copy_behind(tmp_path: Path) -> None:
    model = big_model(tmp_path / "big", 200 * 2**20)
    process = stopped_while_it_copies(model, tmp_path / "scratch")
    start = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - start < 2
    assert process.returncode == 143
    assert err.splitlines()[-1] == (
        f"the task ends: not all parents were copied to {parents(tmp_path / 'scratch')}"
    )
    assert copies(tmp_path / "scratch") == []


def held_up(monkeypatch: pytest.MonkeyPatch, call: str) -> tuple[threading.Event, threading.Event]:
    """Let a call to the disk take until the second event; the first says that it has begun."""
    begun, over = threading.Event(), threading.Event()
    real = getattr(os, call)

    def slow(*given: int) -> None:
        begun.set()
        over.wait(30)
        real(*given)

    monkeypatch.setattr(module.os, call, slow)
    return begun, over


def test_reading_a_copy_back_can_be_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"big": big_model(tmp_path / "big", 40 * 2**20)}
    (models["big"].folder / "config.json").unlink()
    one = Copies()
    begun, over = held_up(monkeypatch, "posix_fadvise")
    one.near(models, str(tmp_path / "scratch"), identities(models))
    begun.wait(30)
    threading.Timer(0.2, over.set).start()
    one.close()
    until(lambda: not copying())
    assert "the task ends: not all parents were copied" in capsys.readouterr().err
    assert copies(tmp_path / "scratch") == []


def test_a_disk_that_hangs_holds_up_neither_beginning_nor_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = toy_models()
    begun, over = held_up(monkeypatch, "fdatasync")
    start = time.monotonic()
    one = Copies()
    assert one.near(models, str(tmp_path), identities(models)) == models
    begun.wait(30)
    one.close()
    assert time.monotonic() - start < 3, "reading the models included"
    over.set()
    until(lambda: not copying())
    assert len([copy for copy in copies(tmp_path) if (copy / "complete.json").exists()]) == 0


# Full disks


@MOUNTS
def test_a_full_scratch_fails_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too small from the start, and filled by others in the middle."""
    models = {"big": big_model(tmp_path / "big", 6 * 2**20)}
    with SmallDisk(tmp_path / "disk", "4M") as disk:
        assert brought(models, disk.folder) == models
        assert "no copy of 'big' is made" in (said := capsys.readouterr().err)
        assert (
            f"no room for 0.0 GB and 2.0 GB beside it; it is read from {models['big'].folder}"
        ) in said
        assert copies(disk.folder) == []


@MOUNTS
def test_a_scratch_that_fills_up_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {**toy_models("slow"), "big": big_model(tmp_path / "big", 6 * 2**20)}
    usage = shutil.disk_usage
    monkeypatch.setattr(
        module.shutil, "disk_usage", lambda path: usage(path)._replace(free=2**40)
    )  # as if others filled it right after we looked
    with SmallDisk(tmp_path / "disk", "4M") as disk:
        found = brought(models, disk.folder)
        assert found["big"] == models["big"]
        assert found["slow"].folder.is_relative_to(disk.folder)
        assert "No space left on device" in capsys.readouterr().err
        assert copies(disk.folder) == [found["slow"].folder]
        disk.fill()
        assert brought(models, disk.folder)["slow"].folder == found["slow"].folder
        disk.free()
        disk.read_only()
        assert brought(models, disk.folder) == models


# Sweeping


def unused(copy: Path, days: float = UNUSED_DAYS + 1) -> None:
    long_ago = time.time() - days * 86_400
    os.utime(copy / "complete.json", (long_ago, long_ago))


def test_a_task_sweeps(tmp_path: Path) -> None:
    models = toy_models("slow", "fast")
    found = brought(models, tmp_path)
    unused(found["slow"].folder)
    partial = parents(tmp_path) / ("0" * 16)
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"x")
    (parents(tmp_path) / "file").touch()
    (parents(tmp_path) / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").mkdir()
    after_a_task({"fast": models["fast"]}, tmp_path)
    assert copies(tmp_path) == [found["fast"].folder]
    assert (tmp_path / "precious").is_dir()
    assert {path.name for path in parents(tmp_path).iterdir()} == {
        ".lock",
        found["fast"].folder.name,
    }


def test_use_keeps_a_copy(tmp_path: Path) -> None:
    models = toy_models("slow")
    seal = brought(models, tmp_path)["slow"].folder / "complete.json"
    unused(seal.parent, UNUSED_DAYS - 0.1)
    after_a_task(models, tmp_path)
    assert time.time() - seal.stat().st_mtime < 60


def test_what_a_task_uses_is_not_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = toy_models("slow", "fast")
    brought(models, tmp_path)
    with task({"slow": models["slow"]}, tmp_path) as found:
        copy = found["slow"].folder
        unused(copy)
        after_a_task({"fast": models["fast"]}, tmp_path)
        assert copy in copies(tmp_path)
        assert f"{copy} cannot be removed: another task uses it" in capsys.readouterr().err
        cut(copy / "config.json")
        assert after_a_task(models, tmp_path)["slow"] == models["slow"]
        said = capsys.readouterr().err
        assert f"the copy {copy} is damaged (config.json): it is not used, and made again" in said
        assert "no copy of 'slow' is made: another task uses it; it is read from" in said
        assert copy in copies(tmp_path)
    after_a_task(models, tmp_path)
    assert contents(copy) == contents(models["slow"].folder)


# The cache of vLLM


def test_the_cache_lies_beside_the_copies(tmp_path: Path) -> None:
    folder = cache_folder(str(tmp_path), "")
    assert folder == str(tmp_path / OURS / "vllm")
    assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    assert list(Path(folder).iterdir()) == []
    assert cache_folder(str(tmp_path), "") == folder


def test_a_named_cache_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", str(tmp_path))
    assert cache_folder(str(tmp_path / "s"), "$PLACE/a/b") == str(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    assert cache_folder("", "${PLACE}/a/b") == str(tmp_path / "a" / "b")
    assert not (tmp_path / "s").exists()


def test_neither_scratch_nor_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert cache_folder("", "") == ""
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("named", ["$NOT_SET", "relative/x", "~nobody-of-this-name/x"])
@pytest.mark.parametrize("as_scratch", [True, False])
def test_a_cache_that_is_no_path(
    named: str,
    as_scratch: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cache_folder(*(named, "") if as_scratch else ("", named)) == ""
    assert capsys.readouterr().err == (
        f"warning: vLLM's own cache is used, not {named}: {named} is not an absolute path on this "
        "node\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_others_may_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o775)
    assert cache_folder(str(tmp_path), str(tmp_path / "a")) == ""
    assert "a is open to others (mode 775): remove it, or name another" in capsys.readouterr().err
    (tmp_path / "a").chmod(0o755)
    assert cache_folder("", str(tmp_path / "a")) == str(tmp_path / "a"), "the user's own choice"


def test_little_room_for_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=ROOM - 10**8))
    assert cache_folder(str(tmp_path), "") == ""
    assert capsys.readouterr().err == (
        f"warning: vLLM's own cache is used, not {tmp_path}: 1.9 GB are free, 2.0 GB are needed\n"
    )
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=ROOM))
    assert cache_folder(str(tmp_path), "")


@MOUNTS
def test_a_full_disk_has_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a quota hides from who asks how much is free."""
    with SmallDisk(tmp_path / "disk", "4M") as disk:
        assert cache_folder(str(disk.folder), "") == ""
        assert "0.0 GB are free, 2.0 GB are needed" in capsys.readouterr().err
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=2**40))
        assert cache_folder(str(disk.folder), "") == str(disk.folder / OURS / "vllm")
        disk.read_only()
        assert cache_folder(str(disk.folder), "") == ""
        assert "Read-only file system" in capsys.readouterr().err
