"""`l2s import --tokenizer`: how long recorded answers are, where their files do not tell."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from l2s_hpc import open_run
from l2s_hpc.controller.verify import verify
from l2s_hpc.store.layout import RunPaths
from tests.command import l2s
from tests.foreign import row, write_outputs, write_scores

TOY = Path(__file__).parents[2] / "data" / "toy" / "slow"
TEXTS = {
    "slow": ["Let us see: 2 + 2 = 4, so it is \\boxed{4}.", "Well, well, well: \\boxed{7}"],
    "mid": ["It is \\boxed{4}", "\\boxed{7}"],
    "fast": ["\\boxed{5}", ""],
    "weak": ["Hm, it may well be \\boxed{4}", "Nobody knows"],
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for model, texts in TEXTS.items():
        right = [f"\\boxed{{{gold}}}" in text for text, gold in zip(texts, "47", strict=True)]
        rows = [
            row(i, "47"[i], "47"[i], code=[text], score=[ok])
            for i, (text, ok) in enumerate(zip(texts, right, strict=True))
        ]
        write_outputs(tmp_path / "published", model, "aime24", rows)
    return tmp_path / "published"


def imported(source: Path, run: Path, *more: Any) -> tuple[int, str, str]:
    return l2s("import", source, "--run", run, "--parents", "slow=slow,fast=fast", *more)


def counts(run: Path, model: str) -> list[int]:
    rows = open_run(run).scores().collect().to_dicts()
    mine = [row for row in rows if row["candidate"] == model]
    assert all(row["n_charged_tokens"] == row["n_output_tokens"] for row in mine)
    assert all(row["n_prompt_tokens"] is row["finish_reason"] is row["truncated"] for row in mine)
    texts = open_run(run).outputs(model).collect()
    assert texts["n_output_tokens"].to_list() == [row["n_output_tokens"] for row in mine]
    return [row["n_output_tokens"] for row in mine]


def test_tokens_are_counted_from_the_texts_without_special_tokens(
    source: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, out, _ = imported(source, run, "--tokenizer", TOY)
    assert code == 0
    assert "tokens were counted anew" in out and "approximately" in out
    tokenizer = Tokenizer.from_file(str(TOY / "tokenizer.json"))
    for model, texts in TEXTS.items():
        wanted = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
        assert counts(run, model) == wanted
    assert counts(run, "fast")[1] == 0
    assert verify(run) == (4, [])


def test_whatever_asks_for_lengths_works_on_what_was_counted(source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    imported(source, run, "--tokenizer", TOY)
    mean = sum(counts(run, "mid")) / 2
    code, out, err = l2s("front", run, "--json")
    assert (code, err) == (0, "")
    assert [(r["candidate"], r["tokens"]) for r in json.loads(out)] == [("mid", mean)]
    for words in (("--at-most", 40), ("--shortest-within", 1), ("--on", "ntr,tokens")):
        code, out, _ = l2s("front", run, *words, "--json")
        assert (code, json.loads(out)[0]["candidate"]) == (0, "mid")
    lengths = open_run(run).lengths(candidates=["mid"])
    assert lengths["mean"][0] == mean and lengths["saved"][0] > 0 and lengths["cut"][0] is None
    assert l2s("report", run)[0] == 0
    text = (run / "report.html").read_text("utf-8")
    assert "Tokens were counted anew" in text and "Answer lengths" in text
    assert "selection items" not in text and "searched candidate" not in text
    assert text.count("other model") > 2  # in the legends, and as points of front and lengths


def test_the_run_says_which_tokenizer_counted(source: Path, tmp_path: Path) -> None:
    for name, more in (("counted", ("--tokenizer", TOY)), ("bare", ())):
        imported(source, tmp_path / name, *more)
        said = json.loads(RunPaths(tmp_path / name).run_json.read_text("utf-8"))["imported"]
        assert bool(said["tokenizer"]) == bool(more)
        assert l2s("report", tmp_path / name)[0] == 0
        text = (tmp_path / name / "report.html").read_text("utf-8")
        assert (f"sha256 {said['tokenizer']}" in text) == bool(more)
        assert ("counted anew" in text) == bool(more)


def test_without_it_the_way_to_lengths_is_named(source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    imported(source, run)
    for words in (("--shortest-within", 1), ("--at-most", 40), ("--on", "tokens")):
        code, _, err = l2s("front", run, *words)
        assert code == 2
        assert "l2s import --tokenizer FOLDER" in err
    code, _, err = l2s("front", run)
    assert code == 0 and "l2s import --tokenizer FOLDER" in err


def other(tmp_path: Path, **changed: Any) -> Path:
    """Return the folder of another tokenizer."""
    folder = tmp_path / "other"
    folder.mkdir()
    content = json.loads((TOY / "tokenizer.json").read_text("utf-8")) | changed
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    return folder


def test_the_same_tokenizer_may_lie_elsewhere_and_another_is_refused(
    source: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    imported(source, run, "--tokenizer", TOY)
    before = counts(run, "slow")
    copied = tmp_path / "copied"
    copied.mkdir()
    shutil.copy(TOY / "tokenizer.json", copied)
    assert imported(source, run, "--tokenizer", copied)[0] == 0
    for more in ((), ("--tokenizer", other(tmp_path, padding=None, decoder=None))):
        code, _, err = imported(source, run, *more)
        assert code == 2 and "another tokenizer" in err
    assert counts(run, "slow") == before


def test_a_saved_limit_of_length_does_not_shorten_answers(source: Path, tmp_path: Path) -> None:
    limit = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    filled = {"strategy": {"Fixed": 999}, "direction": "Right", "pad_to_multiple_of": None,
              "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}  # fmt: skip
    imported(source, tmp_path / "a", "--tokenizer", TOY)
    folder = other(tmp_path, truncation=limit, padding=filled)
    assert imported(source, tmp_path / "b", "--tokenizer", folder)[0] == 0
    assert counts(tmp_path / "a", "slow") == counts(tmp_path / "b", "slow")


def test_a_folder_that_is_no_tokenizer_is_said_and_nothing_is_written(
    source: Path, tmp_path: Path
) -> None:
    run, broken = tmp_path / "run", tmp_path / "broken"
    broken.mkdir()
    code, _, err = imported(source, run, "--tokenizer", broken)
    assert code == 2 and "no tokenizer is there" in err
    for content in ("", "{}", '{"model": {"type": "BPE"}}'):
        (broken / "tokenizer.json").write_text(content, "utf-8")
        code, _, err = imported(source, run, "--tokenizer", broken)
        assert code == 2 and "the tokenizer cannot be read" in err
    assert not run.exists()


def test_bare_verdicts_have_nothing_to_count(source: Path, tmp_path: Path) -> None:
    write_scores(tmp_path / "bare", "a", aime24=[1, 0])
    code, _, err = l2s("import", tmp_path / "bare", "--run", tmp_path / "x", "--tokenizer", TOY)
    assert code == 2 and "no file holds texts" in err and not (tmp_path / "x").exists()
    write_scores(source, "bare", aime24=[1, 0])
    assert imported(source, tmp_path / "run", "--tokenizer", TOY)[0] == 0
    rows = open_run(tmp_path / "run").scores().collect()
    assert rows["n_output_tokens"].null_count() == 2
