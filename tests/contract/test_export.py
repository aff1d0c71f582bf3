"""An exported candidate is the model that was scored."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from l2s_hpc import open_run
from l2s_hpc.errors import UserError
from l2s_hpc.export import export
from l2s_hpc.records import Evaluation
from l2s_hpc.store.layout import RunPaths, shipped
from tests.helpers import TOY
from tests.mini import state_of

SETTINGS = (
    "search.start=random",
    "search.population=2",
    "search.generations=1",
    "references.sweep=0",
    "splits.search.max_items=4",
    "splits.selection.max_items=1",
    "splits.report.max_items=1",
)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slow parent, which does not know that the id 454 ends an answer; the fast one does."""
    folder = shutil.copytree(TOY / "slow", tmp_path_factory.mktemp("parents") / "slow")
    for path in [*folder.glob("*.json"), folder / "chat_template.jinja"]:
        text = path.read_text(encoding="utf-8").replace("<|im_end|>", "<|turn|>")
        path.write_text(text, encoding="utf-8")
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(config | {"eos_token_id": 455}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(slow: Path) -> Path:
    """A small real search of parents with unlike stop ids."""
    folder = slow.parent / "run"
    settings = [
        part for setting in (*SETTINGS, f"parents.slow={slow}") for part in ("--set", setting)
    ]
    l2s("run", "toy", "--run", folder, *settings)
    return folder


def l2s(*words: str | Path) -> str:
    command = [sys.executable, "-m", "l2s_hpc.cli.main", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def recorded(run: Path, candidate: str) -> dict[str, tuple[str, int, str]]:
    """Return text, number of tokens and finish reason of each item, as they were stored."""
    state = state_of(run)
    generation = state.accepted["search", candidate].generation
    table = pq.read_table(RunPaths(run).outputs("search", generation, candidate))
    return {
        row["item"]: (row["text"], row["n_output_tokens"], row["finish_reason"])
        for row in table.to_pylist()
    }


@pytest.mark.parametrize("which", ["asked", "average", "parent.slow"])
def test_exported_model_gives_the_recorded_answers(run: Path, tmp_path: Path, which: str) -> None:
    """Plain transformers on the exported folder, in the batch of the search."""
    state = state_of(run)
    word = state.generations[0].candidates[0] if which == "asked" else which
    folder = export(run, word, tmp_path / "model")
    candidate = _candidate_of_card(folder)
    evaluation = Evaluation.model_validate_json(
        RunPaths(run).evaluation("search").read_text(encoding="utf-8")
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    stop = list(evaluation.protocol.stop_ids)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": item.question}], tokenize=False, add_generation_prompt=True
        )
        for item in evaluation.items
    ]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    out = model.generate(**batch, max_new_tokens=evaluation.protocol.max_tokens, do_sample=False)
    found = {}
    for item, row in zip(evaluation.items, out[:, batch["input_ids"].shape[1] :], strict=True):
        ids = row.tolist()
        ends = [n for n, token in enumerate(ids) if token in stop]
        count = ends[0] + 1 if ends else len(ids)
        text = tokenizer.decode(ids[: ends[0]] if ends else ids)
        found[item.item] = (text, count, "stop" if ends else "length")
    assert found == recorded(run, candidate)


def test_exported_folder_explains_itself(run: Path, slow: Path, tmp_path: Path) -> None:
    folder = export(run, "average", tmp_path / "model")
    recipe = yaml.safe_load((folder / "mergekit_config.yml").read_text(encoding="utf-8"))
    assert recipe["merge_method"] == "linear"
    assert [entry["model"] for entry in recipe["models"]] == [
        str(slow),
        "shipped:toy/fast",
    ]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"| slow | {slow} |" in card
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "qwen2"
    assert not list(tmp_path.glob(".*"))


def test_an_exported_knee_has_the_scores_of_the_search(run: Path, tmp_path: Path) -> None:
    """`l2s evaluate` on the exported folder, with the protocol and the items of the search."""
    folder = export(run, "knee", tmp_path / "knee")
    for name in ("config.json", "generation_config.json"):
        found = json.loads((folder / name).read_text(encoding="utf-8"))
        assert found["eos_token_id"] == [454, 455], name
    site, names = _site_of_items(run, tmp_path)
    protocol = ["--protocol", "search", "--prompt", "chat", "--max-tokens", 230, "--seed", 0]
    command = ["evaluate", folder, "--benchmarks", names, "--run", tmp_path / "evaluated"]
    l2s(*command, "--name", "report", "--site", site, *map(str, protocol))
    (candidate,) = open_run(tmp_path / "evaluated").labels
    found = _scores(tmp_path / "evaluated", "report", candidate)
    assert len(found) == 16
    assert found == _scores(run, "search", state_of(run).picks["knee"])


def _site_of_items(run: Path, folder: Path) -> tuple[Path, str]:
    """Write a site whose benchmarks have the search's items alone; return it and their names."""
    evaluation = Evaluation.model_validate_json(
        RunPaths(run).evaluation("search").read_text(encoding="utf-8")
    )
    rows: dict[str, list[str]] = {}
    for item in evaluation.items:
        row = json.dumps({"question": item.question, "answer": item.gold})
        rows.setdefault(item.benchmark, []).append(row)
    text = (shipped("hpc/sites") / "local.toml").read_text(encoding="utf-8") + "[benchmarks]\n"
    for name, lines in rows.items():
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(lines), encoding="utf-8")
        text += f'{name} = "{file}"\n'
    (folder / "site.toml").write_text(text, encoding="utf-8")
    return folder / "site.toml", ",".join(rows)


def _scores(run: Path, evaluation: str, candidate: str) -> dict[tuple[str, str], tuple[int, bool]]:
    """Return tokens and verdict of each item."""
    frame = open_run(run).scores(evaluation).collect()
    rows = frame.filter(frame["candidate"] == candidate).to_dicts()
    return {(r["benchmark"], r["item"]): (r["n_output_tokens"], r["correct"]) for r in rows}


def test_only_a_search_is_exported(run: Path, tmp_path: Path) -> None:
    site, names = _site_of_items(run, tmp_path)
    other = tmp_path / "other"
    command = ["evaluate", TOY / "fast", "--benchmarks", names, "--run", other, "--site", site]
    l2s(*command, "--set", "site.engine=scripted", "--prompt", "chat")
    with pytest.raises(UserError, match="the run holds no search, so there is nothing to export"):
        export(other, "fast", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        export(run, "average", tmp_path / "there")
    with pytest.raises(UserError, match="no candidate, pick or reference 'avrage'") as error:
        export(run, "avrage", tmp_path / "new")
    assert "did you mean 'average'?" in str(error.value)
    assert not (tmp_path / "new").exists()


def _candidate_of_card(folder: Path) -> str:
    text = (folder / "README.md").read_text(encoding="utf-8")
    return text.partition("# Candidate ")[2].split()[0]
