"""Parents near the merge on a GPU: the same bits by every way, also while memory is reused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU that torch can use (CUDA)", allow_module_level=True)

from safetensors.torch import load_file, save_file  # noqa: E402

from l2s_hpc.recipes.models import EMBEDDING, HEAD, Model, merged_tensors  # noqa: E402
from l2s_hpc.recipes.placement import parents_bytes  # noqa: E402
from l2s_hpc.task import parents as module  # noqa: E402
from l2s_hpc.task.engines import EngineError  # noqa: E402
from l2s_hpc.task.merge import merge  # noqa: E402
from l2s_hpc.task.parents import Parents  # noqa: E402
from tests.helpers import recipe_of, search_config, toy_models  # noqa: E402

WAYS = ("device", "host", "files")
GENES = [{"parameter": "weight"}, {"parameter": "density"}]


def loaded(model: Model) -> dict[str, torch.Tensor]:
    return {n: t for f in model.folder.glob("*.safetensors") for n, t in load_file(f).items()}


def random_models(folder: Path, count: int, side: int) -> dict[str, Model]:
    """Models of `count` bf16 matrices of side x side, and as many odd vectors."""
    models = {}
    for seed, name in enumerate(("slow", "fast", "base")):
        torch.manual_seed(seed)
        tensors = {f"m{n:02}": torch.randn(side, side).bfloat16() for n in range(count)}
        tensors |= {f"v{n:02}": torch.randn(n * 17 + 1).bfloat16() for n in range(count)}
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}", encoding="utf-8")
        save_file(tensors, folder / name / "model.safetensors")
        models[name] = Model(name, folder / name)
    return models


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["toy", "random"])
def test_equal_to_safetensors(family: str, way: str, tmp_path: Path) -> None:
    """The matrices of 128 MiB come in two pieces each."""
    models = toy_models() if family == "toy" else random_models(tmp_path, 4, 8192)
    expected = {name: loaded(model) for name, model in models.items()}
    with Parents(models, "cuda", placed=way) as parents:
        parents.read()
        for _ in range(2):
            for tensor in merged_tensors(models):
                for name in models:
                    found = parents.get(name, tensor)
                    assert found.is_cuda
                    assert torch.equal(found.cpu(), expected[name][tensor])
        if family == "toy":
            assert torch.equal(parents.get("slow", HEAD), parents.get("slow", EMBEDDING))
        parents.check()


def test_what_fits_stays_on_the_gpu_and_what_does_not_comes_and_goes() -> None:
    models = toy_models()
    size = parents_bytes(models)
    with Parents(models, "cuda") as free, Parents(models, "cuda", size) as exact:
        assert (free.placement, exact.placement) == ("device", "device")
        exact.read()
        assert size <= exact.bytes_on_device < size * 1.02
    with Parents(models, "cuda", size - 1) as parents:
        assert parents.placement == "host"
        assert parents.bytes_on_device == 0


def merged(models: Mapping[str, Model], way: str) -> list[dict[str, torch.Tensor]]:
    """Three merges one after another, while other work keeps the GPU busy."""
    found = []
    with Parents(models, "cuda", placed=way) as parents:
        parents.read()
        for weight in (0.3, 0.6, 0.9):
            recipe = recipe_of(search_config("ties", GENES), (weight, 0.5, 0.5, 0.6))
            tensors = merge(recipe, parents, merged_tensors(models), "cuda")
            found.append({name: tensor.cpu() for name, tensor in tensors})
    return found


def test_merges_are_equal_by_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small window, memory of tensors that went is taken by those that come."""
    monkeypatch.setattr(module, "_AHEAD", 200_000)
    models = toy_models()
    expected = merged(models, "files")
    for way in ("device", "host"):
        for ours, theirs in zip(merged(models, way), expected, strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_memory_is_not_taken_while_work_still_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU lags behind: sums are asked for long before they are computed."""
    monkeypatch.setattr(module, "_AHEAD", 1)
    models = random_models(tmp_path, 12, 2048)
    expected = {n: loaded(models["slow"])[n].cuda().double().sum() for n in merged_tensors(models)}
    sums = {}
    with Parents(models, "cuda", placed="host") as parents:
        for tensor in expected:
            found = parents.get("slow", tensor)
            torch.cuda._sleep(50_000_000)  # cycles: some hundredths of a second
            sums[tensor] = found.double().sum()
            del found
            parents.get("fast", tensor)
    assert all(torch.equal(sums[tensor], value) for tensor, value in expected.items())


def test_everything_is_given_back(tmp_path: Path) -> None:
    models = random_models(tmp_path, 4, 4096)
    before = torch.cuda.memory_allocated()
    parents = Parents(models, "cuda", placed="device")
    parents.read()
    taken = torch.cuda.memory_allocated() - before
    assert parents_bytes(models) <= parents.bytes_on_device <= taken < parents_bytes(models) * 1.05
    parents.close()
    assert torch.cuda.memory_allocated() == before


def test_no_room_is_an_engine_error() -> None:
    with Parents(toy_models(), "cuda", placed="device") as parents:
        reader = parents._kept._reader  # type: ignore[union-attr]
        with pytest.raises(EngineError, match="no room on cuda for"):
            reader.allocate(2**50)
