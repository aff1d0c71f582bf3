"""Parents near the merge: all three ways give the bits that safetensors gives, and say faults.

What is different on a GPU is tested in `tests/gpu/test_parents.py`; threads, offsets, pieces and
the order of reading are the same on a CPU.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from l2s_hpc.recipes.methods import METHODS, RANDOM
from l2s_hpc.recipes.models import EMBEDDING, HEAD, Model, merged_tensors
from l2s_hpc.recipes.placement import Placement, parents_bytes
from l2s_hpc.records import Recipe
from l2s_hpc.task import parents as module
from l2s_hpc.task import reader
from l2s_hpc.task.engines import EngineError
from l2s_hpc.task.merge import merge
from l2s_hpc.task.parents import Parents
from tests.helpers import recipe_of, search_config, toy_models

torch.set_num_threads(1)

PLACEMENTS: tuple[Placement, ...] = ("files", "host", "device")
WEIGHT, DENSITY, T = {"parameter": "weight"}, {"parameter": "density"}, {"parameter": "t"}
NORM = "model.norm.weight"


@pytest.fixture(params=PLACEMENTS)
def placed(request: pytest.FixtureRequest) -> Placement:
    found: Placement = request.param
    return found


def opened(models: Mapping[str, Model], placed: Placement) -> Parents:
    return Parents(models, "cpu", placed=placed)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return (found.dtype, found.shape, bits(found)) == (
        expected.dtype,
        expected.shape,
        bits(expected),
    )


def loaded(model: Model) -> dict[str, torch.Tensor]:
    return {n: t for file in model.folder.glob("*.safetensors") for n, t in load_file(file).items()}


def written(folder: Path, tensors: Mapping[str, torch.Tensor], name: str = "m") -> Model:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    save_file(dict(tensors), folder / "model.safetensors")
    return Model(name, folder)


def copied(name: str, folder: Path) -> Model:
    shutil.copytree(toy_models(name)[name].folder, folder)
    return Model(name, folder)


def by_hand(folder: Path, entries: Mapping[str, Any], data: bytes) -> Model:
    """A model whose header says anything."""
    folder.mkdir()
    header = json.dumps(entries).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return Model("m", folder)


def test_equal_to_safetensors(placed: Placement) -> None:
    models = toy_models()
    expected = {name: loaded(model) for name, model in models.items()}
    with opened(models, placed) as parents:
        assert parents.placement == placed
        assert 0 <= parents.read() < 10
        for tensor in merged_tensors(models):
            for name in models:
                assert same(parents.get(name, tensor), expected[name][tensor])
        parents.check()


def test_any_order_and_without_read(placed: Placement) -> None:
    models = toy_models()
    expected = {name: loaded(model) for name, model in models.items()}
    asked = [(name, tensor) for name in models for tensor in expected[name]] * 2
    random.Random(0).shuffle(asked)
    with opened(models, placed) as parents:
        for name, tensor in asked:
            assert same(parents.get(name, tensor), expected[name][tensor])


def test_a_tied_head_is_the_embedding(placed: Placement) -> None:
    with opened(toy_models(), placed) as parents:
        assert same(parents.get("slow", HEAD), parents.get("slow", EMBEDDING))


def test_what_is_one_folder_is_kept_once(tmp_path: Path) -> None:
    """Also behind links, as in the hub's cache."""
    (slow,) = toy_models("slow").values()
    (tmp_path / "link").mkdir()
    for file in slow.folder.iterdir():
        (tmp_path / "link" / file.name).symlink_to(file)
    models = {"slow": slow, "base": Model("base", slow.folder), "c": Model("c", tmp_path / "link")}
    size = sum(tensor.nbytes for tensor in loaded(slow).values())
    assert parents_bytes(models) == size
    with opened(models, "device") as parents:
        parents.read()
        assert size <= parents.bytes_on_device < size * 1.02
        places = {parents.get(name, NORM).data_ptr() for name in models}
        assert len(places) == 1
    assert parents.bytes_on_device == 0


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(reader._DTYPES)), st.lists(st.integers(0, 7), max_size=3)),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 9),
    st.integers(1, 40),
)
def test_any_type_shape_and_offset(
    tensors: Sequence[tuple[str, list[int]]], gap: int, piece: int
) -> None:
    """Bytes between tensors put them where no type would lie by itself."""
    entries, data, expected = {}, b"", {}
    for number, (dtype, shape) in enumerate(tensors):
        data += bytes(gap)
        kind = reader._DTYPES[dtype]
        size = torch.Size(shape).numel() * kind.itemsize
        raw = random.Random(number).randbytes(size)
        raw = bytes(byte & 1 for byte in raw) if dtype == "BOOL" else raw
        place = [len(data), len(data) + size]
        entries[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": place}
        data += raw
        expected[f"t{number}"] = (kind, tuple(shape), raw)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(reader, "PIECE", piece)
        model = by_hand(Path(folder) / "m", entries, data)
        for placed in PLACEMENTS:
            with opened({"m": model}, placed) as parents:
                for name, (kind, shape, raw) in expected.items():
                    found = parents.get("m", name)
                    assert (found.dtype, tuple(found.shape)) == (kind, shape)
                    assert bits(found) == raw


def test_large_tensors_come_in_pieces(
    placed: Placement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PIECE", 100_000)
    torch.manual_seed(1)
    tensors = {f"t{n}": torch.randn(n * 7001 + 1) for n in range(20)}
    with opened({"m": written(tmp_path, tensors)}, placed) as parents:
        parents.read()
        assert all(same(parents.get("m", name), tensor) for name, tensor in tensors.items())


# Merges.

CASES = {
    "linear": ("linear", [WEIGHT], (0.3, 0.9), {"base": None}),
    "slerp": ("slerp", [T], (0.35,), {"base": "slow"}),
    "task_arithmetic": ("task_arithmetic", [WEIGHT], (0.3, 0.9), {}),
    "ties": ("ties", [WEIGHT, DENSITY], (0.3, 0.9, 0.5, 0.6), {}),
    "dare_ties": ("dare_ties", [WEIGHT, DENSITY], (0.3, 0.9, 0.5, 0.6), {"seed": 11}),
}


def some_names(models: Mapping[str, Model]) -> list[str]:
    """The embedding, one layer and what comes after: enough for an order, and soon merged."""
    return [name for name in merged_tensors(models) if ".layers." not in name or ".2." in name]


def recipe(case: str) -> Recipe:
    method, genes, values, options = CASES[case]
    return recipe_of(search_config(method, genes, **options), values)


def test_merges_are_equal_and_leave_the_parents_alone(placed: Placement, tmp_path: Path) -> None:
    """In turn, with recipes that use other models; float32 parents are not copied by a cast."""
    models = {}
    for name, model in toy_models().items():
        tensors = {tensor: value.float() for tensor, value in loaded(model).items()}
        models[name] = written(tmp_path / name, tensors, name)
    names = some_names(models)
    with opened(models, placed) as parents:
        parents.read()
        for case in [*CASES, *CASES]:
            with opened(models, "files") as fresh:
                expected = dict(merge(recipe(case), fresh, names))
            found = {name: tensor.clone() for name, tensor in merge(recipe(case), parents, names)}
            assert all(same(found[name], expected[name]) for name in names), case
        for name in models:
            assert all(same(parents.get(name, t), v) for t, v in loaded(models[name]).items())


SPARSE = {
    "slow": {"weight": 0.4, "density": 0.6, "gamma": 0.1, "epsilon": 0.05},
    "fast": {"weight": 0.7, "density": 0.5, "gamma": 0.1, "epsilon": 0.05},
}


@pytest.mark.parametrize("method", sorted(METHODS.keys() - set(CASES)))
def test_untested_methods_leave_the_parents_alone(method: str, tmp_path: Path) -> None:
    models = {}
    for name, model in toy_models().items():
        tensors = {tensor: value.float() for tensor, value in loaded(model).items()}
        models[name] = written(tmp_path / name, tensors, name)
    shared = {"t": 0.4, "r": 0.2, "select_topk": 0.3}
    own: dict[str, dict[str, float]] = SPARSE
    base: str | None = "base"
    if method in ("passthrough", "nearswap", "arcee_fusion"):
        own, base = {"fast": {"scale": 0.5}}, "slow"
    if method in ("passthrough", "karcher"):
        base = None
    config: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": name, "parameters": dict(values)} for name, values in own.items()],
        "parameters": shared,
        "dtype": "float32",
        "out_dtype": "float32" if method == "passthrough" else "bfloat16",
    } | ({"base_model": base} if base else {})
    made = Recipe(config=config, identities={}, seed=3 if method in RANDOM else 0)
    with opened(models, "device") as parents:
        merged = dict(merge(made, parents, some_names(models)))
        assert merged
        for name in models:
            assert all(same(parents.get(name, t), v) for t, v in loaded(models[name]).items())


def test_a_merge_in_inference_mode_after_one_without(placed: Placement) -> None:
    with opened(toy_models(), placed) as parents:
        first = parents.get("slow", NORM).clone()
        with torch.inference_mode():
            assert same(parents.get("slow", NORM), first)
            assert same(parents.get("slow", EMBEDDING), parents.get("slow", HEAD))
        assert same(parents.get("slow", EMBEDDING) + 0, parents.get("slow", HEAD))


# What is read when.


def many(folder: Path, count: int, size: int) -> dict[str, Model]:
    """Two models of so many tensors of so many bytes."""
    return {
        name: written(
            folder / name,
            {f"t{n:02}": torch.full((size // 4,), float(n + shift)) for n in range(count)},
            name,
        )
        for shift, name in enumerate(("a", "b"))
    }


def test_the_next_tensors_of_the_models_in_use_are_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AHEAD", 4 * 8000)
    models = many(tmp_path, 30, 4000)
    begun: list[tuple[str, str]] = []
    bring = reader.Reader.bring

    def noted(self: reader.Reader, stored: reader.Stored, target: torch.Tensor) -> reader.Near:
        begun.append((stored.model, stored.tensor))
        return bring(self, stored, target)

    monkeypatch.setattr(reader.Reader, "bring", noted)
    with opened(models, "host") as parents:
        for number in range(30):
            before = len(begun)
            parents.get("a", f"t{number:02}")
            parents.get("b", f"t{number:02}")
            ahead = min(29, number + 4)
            assert (len(begun) > before) == (number <= 25)
            assert {("a", f"t{ahead:02}"), ("b", f"t{ahead:02}")} <= set(begun)
            assert parents.bytes_on_device <= 5 * 8000
        assert len(begun) == len(set(begun)) == 60  # nothing is read twice
        begun.clear()
        for number in range(30):  # now the recipe has one model only
            parents.get("b", f"t{number:02}")
        assert sorted(name for name, _ in begun).count("a") <= 5


def test_one_tensor_that_is_larger_than_the_window_is_read_ahead_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AHEAD", 10)
    with opened(many(tmp_path, 3, 4000), "host") as parents:
        parents.get("a", "t00")
        assert parents.bytes_on_device == 4 * 4000


def resident_of_files() -> int:
    """Bytes of mapped files in this process's memory."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if "RssFile" in line) * 1024


def test_mapped_pages_are_let_go(tmp_path: Path) -> None:
    models = many(tmp_path, 16, 8 * 2**20)
    with opened(models, "files") as parents:
        before, most = resident_of_files(), 0
        for number in range(16):
            for name in models:
                parents.get(name, f"t{number:02}").sum()
            most = max(most, resident_of_files() - before)
        assert 8 * 2**20 < most < 40 * 2**20  # of 256 MiB
        assert parents.bytes_on_device == 0


def test_read_returns_at_once_and_get_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a disk that gives nothing before it is told to."""
    go = threading.Event()
    fill = reader._fill

    def slow_fill(stored: reader.Stored, begin: int, room: memoryview) -> None:
        assert go.wait(30)
        fill(stored, begin, room)

    monkeypatch.setattr(reader, "_fill", slow_fill)
    with opened(many(tmp_path, 2, 4000), "device") as parents:
        parents.read()
        assert parents.bytes_on_device >= 16_000
        got: list[float] = []
        thread = threading.Thread(target=lambda: got.append(parents.get("b", "t01")[0].item()))
        thread.start()
        time.sleep(0.1)
        assert not got
        go.set()
        thread.join(30)
        assert got == [2.0]


def test_closing_in_the_middle(placed: Placement, tmp_path: Path) -> None:
    parents = opened(many(tmp_path, 40, 2**20), placed)
    parents.read()
    kept = parents.get("a", "t00")
    before = kept.clone()
    parents.close()
    assert same(kept, before)
    with pytest.raises(EngineError, match="the parents are closed"):
        parents.get("a", "t00")
    parents.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("parents")]


# Faults.


def test_a_missing_tensor(placed: Placement) -> None:
    with opened(toy_models(), placed) as parents:
        with pytest.raises(EngineError, match=r"model 'slow' has no tensor no\.such") as caught:
            parents.get("slow", "no.such")
        assert str(toy_models()["slow"].folder) in str(caught.value)
        with pytest.raises(EngineError, match="model 'nobody' has no tensor"):
            parents.get("nobody", NORM)


def test_a_file_that_was_cut_after_it_was_opened(placed: Placement, tmp_path: Path) -> None:
    models = {**toy_models("fast"), "slow": copied("slow", tmp_path / "slow")}
    file = models["slow"].folder / "model.safetensors"
    last = max(models["slow"].tensors.items(), key=lambda item: item[1].start)[0]
    with opened(models, placed) as parents:
        os.truncate(file, file.stat().st_size - 1)
        with pytest.raises(EngineError) as caught:
            parents.get("slow", last)
        for part in ("model 'slow'", last, "the file ends before it", str(file)):
            assert part in str(caught.value)
        with pytest.raises(EngineError):  # and again
            parents.get("slow", last)
        parents.get("fast", last)


def damaged_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:8] + b"}" + file.read_bytes()[9:])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: os.truncate(file, file.stat().st_size - 1), "its header says"),
        (lambda file: os.truncate(file, 4), "header is damaged"),
        (lambda file: os.truncate(file, 0), "not a safetensors file"),
        (damaged_header, "the safetensors header is damaged"),
        (Path.unlink, "has no safetensors weights"),
    ],
)
def test_a_file_that_is_damaged_from_the_start(
    damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    model = copied("slow", tmp_path / "slow")
    damage(model.folder / "model.safetensors")
    with pytest.raises(EngineError, match=words) as caught:
        Parents({"slow": model}, "cpu")
    assert "model 'slow'" in str(caught.value)
    assert str(model.folder) in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"dtype": "F7", "shape": [2], "data_offsets": [0, 8]}, "tensor x: unknown type F7"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, r"gives 8 bytes to F32 \[3\]"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, r"gives 8 bytes to F32 \[-2\]"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "header is damaged"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, "header is damaged"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0]}, "header is damaged"),
        ({"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}, "header is damaged"),
        ({"shape": [2], "data_offsets": [0, 8]}, "header is damaged"),
        ([], "header is damaged"),
    ],
)
def test_a_header_that_says_nonsense(entry: Any, words: str, tmp_path: Path) -> None:
    model = by_hand(tmp_path / "m", {"x": entry}, bytes(8))
    with pytest.raises(EngineError, match=words) as caught:
        Parents({"m": model}, "cpu")
    assert "model 'm'" in str(caught.value)
    assert str(model.folder / "model.safetensors") in str(caught.value)


def touched(file: Path) -> None:
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


def overwritten(file: Path) -> None:
    """In place, with as many bytes."""
    middle = file.stat().st_size // 2
    with file.open("r+b") as stream:
        stream.seek(middle)
        byte = stream.read(1)
        stream.seek(middle)
        stream.write(bytes([byte[0] ^ 1]))
    touched(file)


def replaced(file: Path) -> None:
    """By a file of the same size and time."""
    before = file.stat()
    shutil.copy(file, file.with_suffix(".new"))
    os.utime(file.with_suffix(".new"), ns=(before.st_atime_ns, before.st_mtime_ns))
    file.with_suffix(".new").replace(file)


def grown(file: Path) -> None:
    before = file.stat()
    file.write_bytes(file.read_bytes() + b"x")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def patched(file: Path) -> None:
    """In place, where `Model.identity` takes no sample."""
    model = Model("slow", file.parent)
    before = model.identity
    for place in range(file.stat().st_size // 2, file.stat().st_size, 4099):
        with file.open("r+b") as stream:
            stream.seek(place)
            byte = stream.read(1)
            stream.seek(place)
            stream.write(bytes([byte[0] ^ 1]))
            stream.flush()
            if Model("slow", file.parent).identity == before:
                return touched(file)
            stream.seek(place)
            stream.write(byte)
    raise AssertionError("every byte is a sample")


def with_a_damaged_header(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(8)
        stream.write(b"}")
    touched(file)


@pytest.mark.parametrize(
    "change",
    [overwritten, patched, touched, with_a_damaged_header, replaced, grown, Path.unlink],
)
def test_check_finds_a_changed_file(
    change: Callable[[Path], None], placed: Placement, tmp_path: Path
) -> None:
    models = {**toy_models("fast"), "slow": copied("slow", tmp_path / "slow")}
    with opened(models, placed) as parents:
        parents.check()
        file = models["slow"].folder / "model.safetensors"
        change(file)
        message = "a weight file of model 'slow' was changed or touched during the search"
        with pytest.raises(EngineError, match=message) as caught:
            parents.check()
        assert str(file) in str(caught.value)
        assert "the attempt is tried again with the file as it is now" in str(caught.value)
        with pytest.raises(EngineError, match=message):
            parents.check()  # for ever


def test_no_room(tmp_path: Path) -> None:
    """An address space that is too small stands for a GPU that is full."""
    with opened(many(tmp_path, 2, 4000), "device") as parents:
        reader_of = parents._kept._reader  # type: ignore[union-attr]
        with pytest.raises(EngineError, match=r"no room on cpu for \d+\.\d\d GB of the parents"):
            reader_of.allocate(2**50)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith("parents")]
