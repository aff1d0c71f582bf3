"""An exported candidate is the model that was scored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from l2s_hpc.errors import UserError
from l2s_hpc.export import export
from l2s_hpc.records import Evaluation
from l2s_hpc.store.layout import RunPaths
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
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real search."""
    folder = tmp_path_factory.mktemp("export") / "run"
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    command = [sys.executable, "-m", "l2s_hpc.cli.main", "run", "toy", "--run", str(folder)]
    subprocess.run([*command, *settings], check=True, capture_output=True)
    return folder


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
    out = model.generate(
        **batch, max_new_tokens=evaluation.protocol.max_tokens, do_sample=False, eos_token_id=stop
    )
    found = {}
    for item, row in zip(evaluation.items, out[:, batch["input_ids"].shape[1] :], strict=True):
        ids = row.tolist()
        ends = [n for n, token in enumerate(ids) if token in stop]
        count = ends[0] + 1 if ends else len(ids)
        text = tokenizer.decode(ids[: ends[0]] if ends else ids)
        found[item.item] = (text, count, "stop" if ends else "length")
    assert found == recorded(run, candidate)


def test_exported_folder_explains_itself(run: Path, tmp_path: Path) -> None:
    folder = export(run, "average", tmp_path / "model")
    recipe = yaml.safe_load((folder / "mergekit_config.yml").read_text(encoding="utf-8"))
    assert recipe["merge_method"] == "linear"
    assert [entry["model"] for entry in recipe["models"]] == [
        "shipped:toy/slow",
        "shipped:toy/fast",
    ]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| slow | shipped:toy/slow |" in card
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "qwen2"
    assert not list(tmp_path.glob(".*"))


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
