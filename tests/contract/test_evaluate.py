"""`l2s evaluate`: existing checkpoints on whole benchmarks, resumable, with several samples."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from l2s_hpc import open_run
from l2s_hpc.store.layout import RunPaths
from tests.helpers import TOY
from tests.mini import LOCAL, kill_at_entry, state_of, write_mini

SAMPLES = 4


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_site(tmp_path)


def write_site(folder: Path, scripted: str = "", base: str = LOCAL) -> Path:
    """A site with two benchmarks of its own, 12 and 5 items, whose questions hold their answers."""
    lines = []
    for name, count in (("sums", 12), ("more", 5)):
        rows = [{"question": f"{name} {n} + {n} = {2 * n}", "answer": str(2 * n)}
                for n in range(count)]  # fmt: skip
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        lines.append(f'{name} = "{file}"')
    path = folder / "site.toml"
    benchmarks = "\n".join(lines)
    path.write_text(f"{base}\n[scripted]\n{scripted}\n[benchmarks]\n{benchmarks}\n", "utf-8")
    return path


def command(run: Path, site: Path, *words: str | Path) -> list[str]:
    given = [str(word) for word in words]
    if not any("toy" in word for word in given):
        given = [f"slow={TOY / 'slow'}", f"fast={TOY / 'fast'}", *given]
    own = [] if "--benchmarks" in given else ["--benchmarks", "sums,more"]
    own += [] if "--samples" in given else ["--samples", str(SAMPLES)]
    own += [] if "--prompt" in given else ["--prompt", "chat"]
    base = [sys.executable, "-m", "l2s_hpc.cli.main", "evaluate", *given, *own]
    return [*base, "--run", str(run), "--site", str(site)]


def evaluate(
    run: Path, site: Path, *words: str | Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(run, site, *words), capture_output=True, text=True, check=False, timeout=300,
        env=None if env is None else os.environ | env,
    )  # fmt: skip


def scores(run: Path, site: Path, *words: str | Path) -> list[dict[str, Any]]:
    done = evaluate(run, site, *words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["incomplete"] == {}
    rows: list[dict[str, Any]] = found["scores"]
    return rows


def refused(run: Path, site: Path, *words: str | Path) -> str:
    """Give a command that is wrong; nothing may be written, and the exit code is 2."""
    before = tree(run)
    done = evaluate(run, site, *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert tree(run) == before
    return done.stderr


def tree(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def tables(run: Path) -> dict[tuple[str, str], str]:
    return {key: accepted.content_sha256 for key, accepted in state_of(run).accepted.items()}


def l2s(*words: str | Path) -> subprocess.CompletedProcess[str]:
    base = [sys.executable, "-m", "l2s_hpc.cli.main", *map(str, words)]
    return subprocess.run(base, capture_output=True, text=True, check=False, timeout=120)


def brute_force(rows: pl.DataFrame, k: int) -> float:
    """The share of all sets of k samples that hold a right one, averaged over items."""
    found = []
    for _, item in rows.group_by("benchmark", "item"):
        subsets = list(combinations(item["correct"].to_list(), k))
        found.append(sum(map(any, subsets)) / len(subsets))
    return sum(found) / len(found)


def test_scores_are_those_of_the_tables(tmp_path: Path, site: Path) -> None:
    rows = scores(tmp_path / "run", site)
    assert [(row["label"], row["benchmark"]) for row in rows] == [
        (model, name) for model in ("slow", "fast") for name in ("all", "macro", "more", "sums")
    ]
    stored = open_run(tmp_path / "run").scores("evaluate").collect()
    assert stored.height == 2 * 17 * SAMPLES
    for row in rows:
        own = stored.filter(pl.col("candidate") == row["candidate"])
        parts = own.partition_by("benchmark") if row["benchmark"] == "macro" else [own]
        if row["benchmark"] in ("sums", "more"):
            parts = [own.filter(pl.col("benchmark") == row["benchmark"])]
        means = [part["correct"].cast(float).mean() for part in parts]
        tokens = [part["n_charged_tokens"].cast(float).mean() for part in parts]
        assert row["mean"] == pytest.approx(sum(means) / len(parts))
        assert row["tokens"] == pytest.approx(sum(tokens) / len(parts))
        assert row["items"] == sum(part.height for part in parts) / SAMPLES
        assert row["mean_low"] <= row["mean"] <= row["mean_high"]
        assert [entry["k"] for entry in row["pass"]] == [1, 2, 4]
        for entry in row["pass"]:
            expected = sum(brute_force(part, entry["k"]) for part in parts) / len(parts)
            assert entry["value"] == pytest.approx(expected)
            assert entry["low"] <= entry["value"] <= entry["high"]
    by_model = {(row["label"], row["benchmark"]): row["mean"] for row in rows}
    assert by_model["slow", "all"] > by_model["fast", "all"], "the scripted models are not alike"


def test_the_table_for_people(tmp_path: Path, site: Path) -> None:
    text = evaluate(tmp_path / "run", site).stdout
    for word in (
        "evaluate: prompt chat, temperature 0.6, top-p 0.95, at most 32,768 tokens, "
        "4 samples an item",
        "mean@4",
        "pass@2",
        "pass@4",
        "cut",
        "macro",
    ):
        assert word in text
    assert "pass@1" not in text


def test_one_benchmark_has_one_row(tmp_path: Path, site: Path) -> None:
    words = ["--benchmarks", "more", "--protocol", "search", "--samples", "1"]
    text = evaluate(tmp_path / "run", site, TOY / "slow", *words).stdout
    assert "evaluate: prompt chat, greedy, at most 10,240 tokens, one answer an item" in text
    assert text.count("│ slow") == 1 and "macro" not in text


def test_the_same_command_again_does_nothing(tmp_path: Path, site: Path) -> None:
    run = tmp_path / "run"
    first = scores(run, site)
    before = tree(run)
    assert scores(run, site) == first
    assert tree(run) == before


def test_where_rows_came_from_is_recorded_and_never_compared(tmp_path: Path, site: Path) -> None:
    run = tmp_path / "run"
    first = scores(run, site)
    path = RunPaths(run).evaluation("evaluate")
    described = json.loads(path.read_text(encoding="utf-8"))
    origins = described["origins"]
    found = {name: (o["source"], o["place"], o["items"]) for name, o in origins.items()}
    assert found == {
        "sums": ("file", str(tmp_path / "sums.jsonl"), 12),
        "more": ("file", str(tmp_path / "more.jsonl"), 5),
    }
    assert all(o["revision"] is None for o in origins.values())
    (tmp_path / "moved").mkdir()
    moved = write_site(tmp_path / "moved")
    before = tree(run)
    assert scores(run, moved) == first and tree(run) == before
    # As older versions wrote it.
    del described["origins"]
    path.write_text(json.dumps(described), encoding="utf-8")
    assert scores(run, moved) == first


def test_models_and_names_are_added(tmp_path: Path, site: Path) -> None:
    run = tmp_path / "run"
    scores(run, site, f"slow={TOY / 'slow'}")
    alone = tables(run)
    rows = scores(run, site, TOY / "fast")
    assert {row["label"] for row in rows} == {"fast"}
    scores(run, site, "shipped:toy/slow", "--samples", "1", "--protocol", "search", "--name", "one")
    found = tables(run)
    assert len(found) == 3 and alone.items() <= found.items()
    opened = open_run(run)
    assert opened.evaluations == ["evaluate", "one"]
    assert list(opened.labels.values()) == ["slow", "fast"]
    assert {row["label"] for row in opened.samples("evaluate")} == {"slow", "fast"}
    assert opened.samples()[0]["samples"] == 1, "the last evaluation is the one that is shown"
    together = tmp_path / "together"
    scores(together, site)
    assert {k: v for k, v in tables(together).items() if k in found} == {
        k: v for k, v in found.items() if k[0] == "evaluate"
    }


def test_a_limit_takes_the_first_of_the_draw(tmp_path: Path, site: Path) -> None:
    run = tmp_path / "run"
    few = scores(run, site, "--limit", "3", "--name", "few")
    assert few[0]["items"] == 6
    scores(run, site, "--name", "all")
    scores(run, site, "--limit", "3", "--seed", "1", "--name", "other")
    items = {
        name: {
            (item["benchmark"], item["item"])
            for item in json.loads((run / f"evaluations/{name}.json").read_text("utf-8"))["items"]
        }
        for name in ("few", "all", "other")
    }
    assert items["few"] < items["all"] and items["other"] < items["all"]
    assert items["few"] != items["other"]


def test_another_protocol_under_the_same_name_is_refused(tmp_path: Path, site: Path) -> None:
    run = tmp_path / "run"
    scores(run, site, "--name", "mine")
    text = refused(run, site, "--name", "mine", "--max-tokens", "99", "--benchmarks", "sums")
    assert "the evaluation 'mine' of this run is another one" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["setting", "in", "the", "run", "given", "now"] in lines
    assert ["max_tokens", "32768", "99"] in lines
    assert any(line[0] == "items.more" and line[-2:] == ["(not", "set)"] for line in lines if line)
    assert "give another --name" in text


def test_an_evaluation_may_have_the_name_of_a_split(tmp_path: Path, site: Path) -> None:
    run = tmp_path / "run"
    first = scores(run, site, "--name", "report")
    assert [row["benchmark"] for row in first[:2]] == ["all", "macro"]
    scores(run, site, "--name", "selection", "--samples", "2")
    before = tree(run)
    assert scores(run, site, "--name", "report") == first and tree(run) == before
    assert l2s("report", run).returncode == 0 and l2s("verify", run).returncode == 0


CHATML = "qwen25-math-cot"
"""Its template is no model's own."""


def test_other_models_prompts_are_named_in_a_refusal(tmp_path: Path, site: Path) -> None:
    run = tmp_path / "run"
    scores(run, site)
    lines = [line.split() for line in refused(run, site, "--prompt", CHATML).splitlines()]
    (row,) = [line for line in lines if line[:1] == ["template"]]
    assert row[1:4] == ["each", "model's", "own"] and len(row) == 5


def test_another_model_under_the_same_name_is_refused(tmp_path: Path, site: Path) -> None:
    run = tmp_path / "run"
    scores(run, site, f"it={TOY / 'slow'}")
    text = refused(run, site, f"it={TOY / 'fast'}")
    assert "'it' is another model in this run" in text and "NAME=" in text


def test_a_model_that_moved_is_the_same(tmp_path: Path, site: Path) -> None:
    run = tmp_path / "run"
    scores(run, site, f"it={TOY / 'slow'}")
    moved = shutil.copytree(TOY / "slow", tmp_path / "toy" / "moved")
    before = tables(run)
    scores(run, site, f"it={moved}")
    assert tables(run) == before
    scores(run, site, f"it={moved}", "--name", "again")
    assert str(moved) in (run / "models" / "it.json").read_text("utf-8")


def test_a_search_is_left_alone(tmp_path: Path, site: Path) -> None:
    folder = tmp_path / "mini"
    folder.mkdir()
    write_mini(folder).run(tmp_path / "search")
    text = refused(tmp_path / "search", site)
    assert "the run directory holds a search" in text and "l2s export" in text
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    assert "not empty and not a run directory (found thesis.tex)" in refused(other, site)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--benchmarks", "summs"], "unknown benchmark 'summs'"),
        (["--benchmarks", ","], "no benchmark is named"),
        (["--temperature", "0"], "4 samples at temperature 0 would be 4 times the same answer"),
        (["--samples", "0"], "'samples': input should be greater than or equal to 1"),
        (["--prompt", "chatt"], "'prompt'"),
        (["--prompt", "r1"], "model 'slow': protocol.prompt: the prompt preset 'r1' needs"),
        (["--protocol", "raport"], "no protocol 'raport'"),
        (["--name", "../x"], "'../x' cannot be a name here"),
        (["--parents", "slow,fats"], "--parents names 'fats', which is no model of this command"),
        (["--set", "search.seed=1"], "there is no job here, but a site and a protocol"),
        (["--set", "protocol.sed=1"], "unknown key 'sed': did you mean 'seed'?"),
        (["./toy/nowhere"], "model 'nowhere' is not here"),
        ([f"a={TOY / 'slow'}", f"a={TOY / 'fast'}"], "two models are called 'a'"),
        (["--detach"], "--detach submits the controller to Slurm"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_input(tmp_path: Path, site: Path, words: list[str], said: str) -> None:
    assert said in refused(tmp_path / "run", site, *words)


def test_answers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    site = write_site(tmp_path, base=LOCAL.replace("scripted", "transformers"))
    text = refused(tmp_path / "run", site)
    for model in ("slow", "fast"):
        assert f"model '{model}': an answer of 32768 tokens leaves no room for a prompt" in text
    assert text.count("Hint: lower --max-tokens") == 1


def test_a_model_that_never_stops_is_refused(tmp_path: Path, site: Path) -> None:
    endless = shutil.copytree(TOY / "slow", tmp_path / "toy" / "endless")
    for name in ("config.json", "generation_config.json"):
        config = json.loads((endless / name).read_text("utf-8"))
        config.pop("eos_token_id", None)
        (endless / name).write_text(json.dumps(config), "utf-8")
    text = refused(tmp_path / "run", site, endless)
    assert "model 'endless' names no eos_token_id in its config.json" in text


def test_killed_again_and_again(tmp_path: Path) -> None:
    """kill -9 of the controller at many places, then the same command: the same tables."""
    site = write_site(tmp_path, scripted="chunk_delay = 0.02")
    words = ("--set", "protocol.chunk_items=2")
    scores(tmp_path / "calm", site, *words)
    run = tmp_path / "run"
    kills = sum(kill_at_entry(command(run, site, *words), run, n) for n in (1, 2, 3, 4, 5, 6))
    assert kills >= 3
    scores(run, site, *words)
    assert tables(run) == tables(tmp_path / "calm")


def test_killed_in_the_middle_of_a_model_with_its_workers(tmp_path: Path) -> None:
    """A node that loses power takes controller and workers at once; chunks that are there stay."""
    site = write_site(tmp_path, scripted="chunk_delay = 0.2")
    words = ("--set", "protocol.chunk_items=1")
    calm, run = tmp_path / "calm", tmp_path / "run"
    scores(calm, site, *words)
    process = subprocess.Popen(
        command(run, site, *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(list(run.rglob("chunk-*.parquet"))) >= 6)
    workers = children(process.pid)
    for pid in [process.pid, *workers]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert workers and not state_of(run).accepted
    kept = {path.name for path in run.rglob("chunk-*.parquet")}
    scores(run, site, *words)
    assert tables(run) == tables(calm)
    second = {path.name for path in run.rglob("2/chunk-*.parquet")}
    assert kept and len(second & kept) < len(kept), "what was durable is not generated again"


def test_a_model_that_fails_is_named_and_tried_again(tmp_path: Path, site: Path) -> None:
    run = tmp_path / "run"
    names = [f"slow={TOY / 'slow'}", f"fast={TOY / 'fast'}", f"base={TOY / 'base'}"]
    # Which of the scripted models fail is decided by their ids.
    fault = {"L2S_SCRIPTED": json.dumps({"faults": {"error": 0.5}})}
    done = evaluate(run, site, *names, env=fault)
    assert done.returncode == 3, done.stdout + done.stderr
    lost = [line for line in done.stdout.splitlines() if "has no scores" in line]
    assert 0 < len(lost) < 3, "a fault that hits all or none says nothing"
    assert all("scripted failure of" in line for line in lost)
    before = tables(run)
    assert len(before) == 3 - len(lost)
    rows = scores(run, site, *names)
    assert {row["label"] for row in rows} == {"slow", "fast", "base"}
    assert before.items() <= tables(run).items()


def test_one_worker_serves_several_models(tmp_path: Path) -> None:
    """An engine that gives its device back only with its process begins anew for each model."""
    base = LOCAL.replace("parallel = 2", "parallel = 1")
    site = write_site(tmp_path, scripted="new_process = true", base=base)
    run = tmp_path / "run"
    names = [f"slow={TOY / 'slow'}", f"fast={TOY / 'fast'}", f"base={TOY / 'base'}"]
    scores(run, site, *names)
    log = "".join(path.read_text("utf-8") for path in (run / "logs").glob("*.log"))
    begun = [line for line in log.splitlines() if "goes on in a new process" in line]
    assert len(begun) == 2
    assert all("the next model needs an engine of its own" in line for line in begun)
    assert not state_of(run).failures


def test_other_verbs_on_such_a_run(tmp_path: Path, site: Path) -> None:
    run = tmp_path / "run"
    names = [f"slow={TOY / 'slow'}", f"fast={TOY / 'fast'}", f"mine={TOY / 'base'}"]
    scores(run, site, *names, "--parents", "slow,fast")
    found = json.loads(l2s("status", run, "--json").stdout)
    assert (found["phase"], found["accepted"]) == ("complete", 3)
    rows = json.loads(l2s("ntr", run, "--json").stdout)
    assert {row["label"] for row in rows} == {"parent.slow", "parent.fast", "mine"}
    assert all(row["ntr"] is not None for row in rows if row["benchmark"] == "all")
    assert l2s("verify", run).returncode == 0
    assert l2s("report", run, "--svg", run / "charts").returncode == 0
    page = (run / "report.html").read_text("utf-8")
    assert "mean@4" in page and "parent.fast" in page
    assert "Models by benchmark in evaluate" in page and "of the 17 items of the" in page
    assert {path.name for path in (run / "charts").iterdir()} == {"transfer.svg", "items.svg"}
    opened = open_run(run)
    assert list(opened.parents) == ["slow", "fast"] and opened.best_evaluation() == "evaluate"
    assert opened.tensor(evaluation="evaluate").values.shape == (3, 17)
    assert [m["model"] for m in opened.recipe("mine").config["models"]] == ["mine"]
    table = next((run / "scores").rglob("*.parquet"))
    table.write_bytes(table.read_bytes()[:-1])
    assert l2s("verify", run, "--quarantine").returncode == 3
    assert len(scores(run, site, *names)) == 12
    assert l2s("verify", run).returncode == 0


def test_real_models_of_unlike_shapes(tmp_path: Path) -> None:
    """Each model has an engine to itself, so that any checkpoints go together."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch = pytest.importorskip("torch", reason="needs torch")
    torch.manual_seed(1)
    config = transformers.AutoConfig.from_pretrained(TOY / "slow")
    config.num_hidden_layers, config.layer_types = 2, config.layer_types[:2]
    small = shutil.copytree(TOY / "slow", tmp_path / "toy" / "small")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(small)
    base = LOCAL.replace("scripted", "transformers").replace("parallel = 2", "parallel = 1")
    site = write_site(tmp_path, base=base)
    copy = shutil.copytree(TOY / "slow", tmp_path / "toy" / "my-merge.1")
    words = [TOY / "slow", small, copy, "--benchmarks", "toy_easy,toy_hard", "--limit", "4"]
    words += ["--max-tokens", "230", "--samples", "2"]
    rows = {
        row["label"]: row
        for row in scores(tmp_path / "run", site, *words)
        if row["benchmark"] == "all"
    }
    assert list(rows) == ["slow", "small", "my_merge_1"]
    assert rows["slow"]["mean"] > 0.7 and rows["small"]["mean"] < 0.2
    same = {k: v for k, v in rows["my_merge_1"].items() if k not in ("label", "candidate")}
    assert same == {k: v for k, v in rows["slow"].items() if k in same}
    (receipt,) = (tmp_path / "run").glob(f"receipts/*/*/{rows['small']['candidate']}.json")
    assert "transformers" in json.loads(receipt.read_text("utf-8"))["versions"]


def wait_for(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text("utf-8").split()]
