"""The published searches plan on stand-ins of the real models' layout, and are fetched as said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from l2s_hpc.cli.main import app
from l2s_hpc.config import SiteConfig, load_job
from l2s_hpc.controller.fetch import fetch
from l2s_hpc.controller.plan import plan
from l2s_hpc.controller.resolve import find_job, resolve, shipped_files
from l2s_hpc.errors import UserError
from l2s_hpc.evaluation.benchmarks import load, source
from l2s_hpc.store.layout import RunPaths, shipped

LAYERS, HIDDEN, VOCABULARY = 28, 8, 32
SLOW = {"max_position_embeddings": 131072, "tie_word_embeddings": False, "eos_token_id": 151643}
FAST = {"max_position_embeddings": 4096, "eos_token_id": 151643}
SITE = SiteConfig(name="here", executor="local")
PUBLISHED = [name for name in shipped_files(shipped("jobs")) if name.startswith("published/")]


def write_model(folder: Path, tied: bool, **config: object) -> Path:
    """Write a model of Qwen2's layout and tensor names, with very small random tensors."""
    folder.mkdir(parents=True)
    layer = {
        "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        "self_attn.q_proj.bias": (HIDDEN,),
        "self_attn.k_proj.weight": (HIDDEN, HIDDEN),
        "self_attn.k_proj.bias": (HIDDEN,),
        "self_attn.v_proj.weight": (HIDDEN, HIDDEN),
        "self_attn.v_proj.bias": (HIDDEN,),
        "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        "mlp.gate_proj.weight": (HIDDEN, HIDDEN),
        "mlp.up_proj.weight": (HIDDEN, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, HIDDEN),
        "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for number in range(LAYERS):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    if not tied:
        shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    generator = torch.Generator().manual_seed(len(folder.name))
    tensors = {n: torch.randn(s, generator=generator).bfloat16() for n, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    body = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": HIDDEN,
        "vocab_size": VOCABULARY,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(body), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> SiteConfig:
    """A site with stand-ins for the four models, and for the benchmarks."""
    folder = tmp_path_factory.mktemp("stand-ins")
    models = {
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": write_model(folder / "r1", False, **SLOW),
        "Qwen/Qwen2.5-Math-1.5B": write_model(folder / "math", True, **FAST),
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": write_model(folder / "r1-7b", False, **SLOW),
        "Qwen/Qwen2.5-Math-7B": write_model(folder / "math-7b", False, **FAST),
    }
    benchmarks = {}
    for name in ("gsm8k", "aime24", "math500", "minerva_math", "olympiadbench", "college_math"):
        path = folder / f"{name}.jsonl"
        rows = [{"question": f"{name}: what is {n} + 1?", "answer": str(n + 1)} for n in range(80)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        benchmarks[name] = str(path)
    return SiteConfig(
        name="stand-in",
        executor="local",
        models={name: str(path) for name, path in models.items()},
        benchmarks=benchmarks,
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_plan(name: str, site: SiteConfig, tmp_path: Path) -> None:
    names = list(site.benchmarks)
    resolved = resolve(load_job(find_job(name), [f"other_snapshots={names}"]), site)
    found = plan(resolved, RunPaths(tmp_path))
    frozen = [gene["gene"] for gene in found["genes"] if gene["frozen"] is not None]
    # The published TIES search: with one task vector and `normalize` the weight does nothing.
    assert frozen == (["weight.slow"] if "ties" in name else [])
    assert len(found["first_generation"]) == 20
    assert set(found["items"]["search"]) == set(site.benchmarks)
    assert found["protocol"]["stop_ids"] == [151643]
    assert found["protocol"]["prompt"] == "plain" and found["protocol"]["max_tokens"] == 10240


def test_a_model_from_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`l2s fetch --offline` on a cache of the hub's layout records revision and hashes."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub"
    for repo, tied in (("models--org--slow", False), ("models--org--fast", True)):
        snapshot = cache / repo / "snapshots" / revision
        write_model(snapshot, tied, eos_token_id=1)
        (cache / repo / "refs").mkdir()
        (cache / repo / "refs" / "main").write_text(revision, encoding="utf-8")
    _write_dataset(cache / "datasets--openai--gsm8k", revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    config = load_job(
        find_job("published/ta-1.5b"),
        ["parents.slow=org/slow", "parents.fast=org/fast", 'benchmarks=["gsm8k"]'],
    )
    found = fetch(config, SITE, offline=True)
    assert found["models"]["slow"]["revision"] == revision
    assert len(found["models"]["slow"]["files"]["model.safetensors"]) == 64
    fetched = found["benchmarks"]["gsm8k"]
    assert (fetched["rows"], fetched["unknown"], fetched["missing"]) == (40, 40, 1319)
    assert fetched["revision"] == revision
    with pytest.raises(UserError, match="1319 of 1319 are missing, 40 are unknown"):
        resolve(config, SITE, frozen={})
    resolved = resolve(config.model_copy(update={"other_snapshots": ("gsm8k",)}), SITE, frozen={})
    golds = {item.gold for item in resolved.evaluations["search"].items}
    assert golds <= {str(n) for n in range(40)}
    assert resolved.models["slow"].folder.name == revision
    origin = resolved.evaluations["search"].origins["gsm8k"]
    assert (origin.source, origin.place, origin.items) == ("hub", "openai/gsm8k", 40)
    assert (origin.revision, origin.rows_sha256) == (revision, fetched["rows_sha256"])


def test_a_snapshot_that_is_named_after_no_commit_gives_no_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_dataset(tmp_path / "hub" / "datasets--openai--gsm8k", "main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    origin = load(source("gsm8k"), {}, other_snapshot=True).origin
    assert (origin.source, origin.revision, origin.items) == ("hub", None, 40)


def test_fetch_names_what_it_does_not_fetch(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"question": "1 + 1?", "answer": "2"}\n', encoding="utf-8")
    job = ["fetch", "toy", "--offline", "--set", f"site.benchmarks.mine={own}"]
    names = ["--set", 'benchmarks=["toy_easy", "mine"]']
    done = CliRunner().invoke(app, [*job, *names])
    assert done.exit_code == 0, done.output
    said = "".join(done.stdout.split("\n"))
    assert "benchmarks: toy_easy: comes with the package" in said
    assert f"benchmarks: mine: local file: {own}" in said
    assert "nothing to fetch: everything is shipped or local" in said
    done = CliRunner().invoke(app, [*job, *names, "--json"])
    assert json.loads(done.stdout)["benchmarks"] == {
        "toy_easy": {"note": "comes with the package"},
        "mine": {"note": "local file", "path": str(own)},
    }
    done = CliRunner().invoke(app, [*job, "--set", 'benchmarks=["toy_esy"]'])
    assert isinstance(done.exception, UserError)
    assert "unknown benchmark 'toy_esy'" in str(done.exception)
    assert "did you mean 'toy_easy'?" in str(done.exception)


def test_what_is_not_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = load_job(find_job("published/ta-1.5b"))
    with pytest.raises(UserError, match=r"model 'slow' \(deepseek-ai/.*\) cannot be fetched"):
        fetch(config, SITE, offline=True)
    with pytest.raises(
        UserError, match=r"model 'slow' \(deepseek-ai/.*\) is not in the hub's cache"
    ):
        resolve(config, SITE)


def test_every_published_benchmark_has_a_source() -> None:
    for name in load_job(find_job("published/ta-7b")).benchmarks:
        assert source(name).dataset and source(name).licence


def _write_dataset(folder: Path, revision: str) -> None:
    """Write a repository like openai/gsm8k: a card that names its files, and one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    snapshot = folder / "snapshots" / revision
    (snapshot / "main").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision, encoding="utf-8")
    rows = [{"question": f"q{n}", "answer": f"Work.\n#### {n}"} for n in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), snapshot / "main" / "test-00000-of-00001.parquet")
    files = "  data_files:\n  - split: test\n    path: main/test-*"
    card = f"---\nconfigs:\n- config_name: main\n{files}\n---\n"
    (snapshot / "README.md").write_text(card, encoding="utf-8")
