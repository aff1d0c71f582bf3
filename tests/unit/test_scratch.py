"""Copies of parents on the node's disk: verified, shared, swept; and never in the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from l2s_hpc.recipes.models import Model
from l2s_hpc.task import scratch as module
from l2s_hpc.task.scratch import UNUSED_DAYS, near, sweep
from tests.helpers import ROOT, toy_models
from tests.slurm.machine import SmallDisk, may_mount

NEAR = """
import sys
from pathlib import Path
from l2s_hpc.recipes.models import Model
from l2s_hpc.task.scratch import near
model = Model("big", Path(sys.argv[1]))
print(near({"big": model}, sys.argv[2], {"big": model.identity})["big"].folder, flush=True)
"""


def copies(scratch: Path) -> list[Path]:
    return sorted(path for path in (scratch / "l2s-parents").iterdir() if path.is_dir())


def identities(models: Mapping[str, Model]) -> dict[str, str]:
    return {name: model.identity for name, model in models.items()}


def brought(models: Mapping[str, Model], scratch: Path | str) -> dict[str, Model]:
    return near(models, str(scratch), identities(models))


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
        [sys.executable, "-c", NEAR, str(model.folder), str(scratch)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(happened: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_copies_hold_what_the_node_needs(tmp_path: Path) -> None:
    models = toy_models()
    found = brought(models, tmp_path)
    assert found.keys() == models.keys()
    for name, model in models.items():
        assert found[name].folder.parent == tmp_path / "l2s-parents"
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
    assert found.folder.parent == tmp_path / "a" / "l2s-parents"


def flip(path: Path, keep_time: bool) -> None:
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + 100] ^= 1
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


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
    again = brought(models, tmp_path)["slow"].folder
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
    real = module.sha256_file

    def hash_after_damage(path: Path) -> str:
        if path.name == "model.safetensors":
            flip(path, keep_time=True)
        return real(path)

    monkeypatch.setattr(module, "sha256_file", hash_after_damage)
    assert brought(models, tmp_path) == models
    assert "other bytes than were written" in capsys.readouterr().err
    assert copies(tmp_path) == []


def test_an_original_of_another_identity_is_not_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = toy_models("slow")
    assert near(models, str(tmp_path), {"slow": "0" * 16}) == models
    assert "changed while it was copied" in capsys.readouterr().err
    assert copies(tmp_path) == []


@pytest.mark.parametrize("identity", ["../../../../etc", "", "a" * 15 + "/", "g" * 16])
def test_hostile_identities_name_no_folder(
    identity: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = toy_models("slow")
    assert near(models, str(tmp_path / "a"), {"slow": identity}) == models
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
        ("/dev/null/x", "Not a directory"),
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


def test_a_folder_that_others_may_change_is_not_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = toy_models("slow")
    (tmp_path / "l2s-parents").mkdir()
    (tmp_path / "l2s-parents").chmod(0o777)
    assert brought(models, tmp_path) == models
    assert "others could change what is in it" in capsys.readouterr().err
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "l2s-parents").symlink_to(elsewhere)
    assert brought(models, tmp_path / "b") == models
    assert list(elsewhere.iterdir()) == []


def test_the_copier_is_killed_and_the_waiting_task_goes_on(tmp_path: Path) -> None:
    model = big_model(tmp_path / "big", 200 * 2**20)
    space = tmp_path / "scratch"
    copier = in_a_process(model, space)
    until(lambda: list(space.glob("l2s-parents/*/model.safetensors")))
    os.kill(copier.pid, signal.SIGSTOP)
    (partial,) = copies(space)
    assert not (partial / "complete.json").exists(), "stopped too late"
    waiting = in_a_process(model, space)
    assert waiting.stderr is not None
    assert "waiting for another task that copies parents" in waiting.stderr.readline()
    assert waiting.poll() is None
    os.kill(copier.pid, signal.SIGKILL)
    out, err = waiting.communicate(timeout=60)
    copier.communicate()
    assert "copying 'big'" in err
    assert Path(out.strip()) == partial == copies(space)[0]
    assert contents(partial) == contents(model.folder)


def test_many_tasks_at_once_copy_once(tmp_path: Path) -> None:
    model = big_model(tmp_path / "big", 20 * 2**20)
    tasks = [in_a_process(model, tmp_path / "scratch") for _ in range(4)]
    found = [task.communicate(timeout=120) for task in tasks]
    (copy,) = copies(tmp_path / "scratch")
    assert {out.strip() for out, _ in found} == {str(copy)}
    assert sum("copying" in err for _, err in found) == 1


def test_a_signal_leaves_no_copy_behind(tmp_path: Path) -> None:
    model = big_model(tmp_path / "big", 200 * 2**20)
    task = in_a_process(model, tmp_path / "scratch")
    until(lambda: list((tmp_path / "scratch").glob("l2s-parents/*/model.safetensors")))
    os.kill(task.pid, signal.SIGINT)
    task.communicate(timeout=60)
    assert task.returncode != 0
    assert copies(tmp_path / "scratch") == []


@pytest.mark.skipif(not may_mount(), reason="needs root with the right to mount a small disk")
def test_a_full_scratch_fails_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too small from the start, and filled by others in the middle."""
    models = {"big": big_model(tmp_path / "big", 6 * 2**20)}
    with SmallDisk(tmp_path / "disk", "4M") as disk:
        assert brought(models, disk.folder) == models
        assert "no copy of 'big'" in (said := capsys.readouterr().err)
        assert f"no room for 0.0 GB; it is read from {models['big'].folder}" in said
        assert copies(disk.folder) == []


@pytest.mark.skipif(not may_mount(), reason="needs root with the right to mount a small disk")
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


def test_sweep(tmp_path: Path) -> None:
    models = toy_models("slow", "fast")
    found = brought(models, tmp_path)
    long_ago = time.time() - (UNUSED_DAYS + 1) * 86_400
    os.utime(found["slow"].folder / "complete.json", (long_ago, long_ago))
    partial = tmp_path / "l2s-parents" / ("0" * 16)
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"x")
    (tmp_path / "l2s-parents" / "file").touch()
    (tmp_path / "l2s-parents" / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").mkdir()
    sweep(str(tmp_path))
    assert copies(tmp_path) == [found["fast"].folder]
    assert (tmp_path / "precious").is_dir()
    assert {path.name for path in (tmp_path / "l2s-parents").iterdir()} == {
        ".lock",
        found["fast"].folder.name,
    }


def test_use_keeps_a_copy(tmp_path: Path) -> None:
    models = toy_models("slow")
    seal = brought(models, tmp_path)["slow"].folder / "complete.json"
    almost = time.time() - (UNUSED_DAYS - 0.1) * 86_400
    os.utime(seal, (almost, almost))
    brought(models, tmp_path)
    assert time.time() - seal.stat().st_mtime < 60


def test_sweep_leaves_a_running_copy_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = big_model(tmp_path / "big", 200 * 2**20)
    task = in_a_process(model, tmp_path / "scratch")
    until(lambda: list((tmp_path / "scratch").glob("l2s-parents/*/model.safetensors")))
    os.kill(task.pid, signal.SIGSTOP)
    sweep(str(tmp_path / "scratch"))
    assert len(copies(tmp_path / "scratch")) == 1
    assert "another task copies" in capsys.readouterr().err
    os.kill(task.pid, signal.SIGCONT)
    out, _ = task.communicate(timeout=60)
    assert Path(out.strip()) == copies(tmp_path / "scratch")[0]
