"""Job and site files: faults, `--set`, what is shipped, documentation of the keys."""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from l2s_hpc.config import (
    OPERATIONAL,
    Config,
    SearchConfig,
    SiteConfig,
    documented,
    flatten,
    load_job,
    load_site,
    science,
    validate,
)
from l2s_hpc.errors import UserError
from l2s_hpc.store.layout import shipped

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").rglob("*.toml"))
SITES = sorted((ROOT / "hpc" / "sites").glob("*.toml"))
JOB = """
name = "small"
benchmarks = ["toy_easy"]

[parents]
slow = "shipped:toy/slow"
fast = { path = "./fast" }

[merge]
method = "linear"

[[genes]]
parameter = "weight"
low = 0
high = 1
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(JOB, encoding="utf-8")
    return path


def faults(path: Path, *overrides: str) -> list[str]:
    """The lines of the error that a job with these overrides raises, without place and hint."""
    with pytest.raises(UserError) as error:
        load_job(path, overrides)
    return error.value.message.splitlines()


def test_all_faults_are_said_at_once(job: Path) -> None:
    lines = faults(
        job,
        "serch=1",
        "seed=-1",
        "search.start=nowhere",
        "splits.search.share=2",
        "genes.0.low=3",
        "protocol={max_tokens=0, top_p=0}",
    )
    assert sorted(lines) == [
        "'genes.0': low = 3.0 must be below high = 1.0",
        "'protocol.max_tokens': input should be greater than or equal to 1 (given: 0)",
        "'protocol.top_p': input should be greater than 0 (given: 0)",
        "'search.start': input should be 'random' or 'grid' (given: 'nowhere')",
        "'seed': input should be greater than or equal to 0 (given: -1)",
        "'splits.search.share': input should be less than or equal to 1 (given: 2)",
        "unknown key 'serch': did you mean 'search'?",
    ]


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("benchmark", "benchmarks"),
        ("search.populaton", "population"),
        ("splits.report.max_item", "max_items"),
        ("genes.0.parametr", "parameter"),
        ("parents.fast.revison", "revision"),
        ("merge.group", "groups"),
    ],
)
def test_an_unknown_key_names_its_nearest_valid_key(job: Path, key: str, near: str) -> None:
    assert f"unknown key '{key}': did you mean '{near}'?" in faults(job, f"{key}=1")


def test_an_unknown_key_like_no_other_lists_the_valid_keys(job: Path) -> None:
    (line,) = faults(job, "references.zzz=1")
    assert line == "unknown key 'references.zzz': valid: sweep"


def test_missing_keys_are_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("", encoding="utf-8")
    missing = ["name", "parents", "merge", "genes", "benchmarks"]
    assert faults(path) == [f"missing key '{key}'" for key in missing]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("key", ["protocol.temperature", "genes.0.high", "search.mutation_eta"])
def test_numbers_that_are_not_finite_are_refused(job: Path, key: str, value: str) -> None:
    assert faults(job, f"{key}={value}") == [
        f"'{key}': input should be a finite number (given: {value})"
    ]


def test_a_faulty_entry_is_one_fault_not_a_short_list_too(job: Path) -> None:
    assert faults(job, "genes.0=3") == [
        "'genes.0': input should be a valid dictionary or instance of GeneConfig (given: 3)"
    ]
    (short,) = faults(job, "genes=[]")
    assert short.startswith("'genes': tuple should have at least 1 item")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["genes.0.log=true"], "'genes.0': log = true needs low > 0, not 0.0"),
        (
            ["splits.report={share=0.9}"],
            "'splits': the shares overlap: they add up to 1.4, at most 1 is there",
        ),
        (['benchmarks=["math", "gsm8k", "math"]'], "'benchmarks': named twice: math"),
        (
            ["protocol.budgets={toy_easy=9, gsm8=9, aime=9}"],
            "'protocol': budgets are given for what is no benchmark of this job: aime, gsm8; "
            "its benchmarks: toy_easy",
        ),
        (
            ["protocol.budgets.toy_easy=0"],
            "'protocol.budgets.toy_easy': input should be greater than 0 (given: 0)",
        ),
        (
            ["protocol.budgets.gsm8=9", "benchmarks=[]"],
            "'benchmarks': tuple should have at least 1 item after validation, not 0",
        ),
    ],
)
def test_rules_over_several_values(job: Path, overrides: list[str], line: str) -> None:
    assert faults(job, *overrides) == [line]


def test_a_budget_may_be_above_the_longest_answer_of_the_others(job: Path) -> None:
    found = load_job(job, ["protocol.budgets.toy_easy=99", "protocol.max_tokens=9"]).protocol
    assert (found.max_tokens, found.budgets) == (9, {"toy_easy": 99})


@pytest.mark.parametrize("name", ["slow-r1", "a b", "", "a.b"])
def test_names_that_constraints_could_not_hold_are_refused(name: str) -> None:
    data = tomllib.loads(JOB)
    data["parents"][name] = "x"
    with pytest.raises(UserError, match=r"string should match pattern"):
        validate(SearchConfig, data)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("seed=7", "seed", 7),
        ("seed = 7", "seed", 7),
        ("protocol.temperature=0.5", "protocol.temperature", 0.5),
        ("protocol.prompt=chat", "protocol.prompt", "chat"),
        ('name="quoted"', "name", "quoted"),
        ("name=plain = text", "name", "plain = text"),
        ("description=", "description", ""),
        ("genes.0.step=0.25", "genes.0.step", 0.25),
        ('objectives=["accuracy"]', "objectives", ["accuracy"]),
        ("objectives.1=ntr", "objectives", ["accuracy", "ntr"]),
        ('objectives=["ntr"]', "objectives", ["ntr"]),
        ("merge.parameters.normalize=false", "merge.parameters.normalize", False),
        ("parents.third={path='./x'}", "parents.third.path", None),
    ],
)
def test_set_takes_toml_or_plain_text(job: Path, text: str, key: str, value: Any) -> None:
    given_list = "objectives=['accuracy', 'tokens']"
    found = flatten(load_job(job, [given_list, text]).model_dump(mode="json"))[key]
    assert found == (str((job.parent / "x").resolve()) if value is None else value)
    assert type(found) is (str if value is None else type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "--set seed\n  Hint: write --set key.name=value"),
        ("=3", "--set =3\n  Hint: write --set key.name=value"),
        ("name.x=3", "--set name.x=3: a value stands where a table must be"),
        ("name.x.y=3", "--set name.x.y=3: a value stands where a table must be"),
        ("genes.1.low=3", "--set genes.1.low=3: no such entry, they count from 0"),
        ("genes.first=3", "--set genes.first=3: no such entry, they count from 0"),
        ("benchmarks.1=math", "--set benchmarks.1=math: no such entry, they count from 0"),
    ],
)
def test_set_says_what_it_does_not_understand(job: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_job(job, [text])
    assert str(error.value) == message


keys = st.lists(st.sampled_from(["genes", "0", "low", "x", "name", "-1"]) | st.text(), max_size=4)


@given(keys.map(".".join), st.text() | st.sampled_from(["[]", "{}", "3", "nan"]))
def test_no_override_leads_to_another_error_than_the_users(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "override.toml"
    if not path.exists():
        path.write_text(JOB, encoding="utf-8")
    with contextlib.suppress(UserError):
        load_job(path, [f"{key}={value}"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = ", "cannot be read as TOML: Invalid value"),
        (b'name = "\xe9"', "cannot be read as TOML: 'utf-8' codec can't decode"),
        (None, "cannot be read as TOML: .* No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_the_users_fault(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "bad.toml"
    if content is not None:
        path.write_bytes(content)
    for load in (load_job, load_site):
        with pytest.raises(UserError, match=message) as error:
            load(path)
        assert str(path) in str(error.value) and error.value.exit_code == 2


def test_something_is_shipped() -> None:
    assert JOBS and SITES
    assert shipped("jobs") == ROOT / "jobs" and shipped("hpc/sites") == ROOT / "hpc" / "sites"


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.stem)
def test_every_shipped_job_loads(path: Path) -> None:
    assert load_job(path).description


@pytest.mark.parametrize("path", SITES, ids=lambda p: p.stem)
def test_every_shipped_site_loads(path: Path) -> None:
    assert load_site(path).description


def kinds(of: type[BaseModel] = Config) -> list[type[BaseModel]]:
    return [kind for sub in of.__subclasses__() for kind in [sub, *kinds(sub)]]


@pytest.mark.parametrize("kind", kinds(), ids=lambda k: k.__name__)
def test_every_field_is_documented(kind: type[BaseModel]) -> None:
    undocumented = [name for name, f in kind.model_fields.items() if not f.description]
    assert not undocumented
    assert (kind.__doc__ or "").strip()


def test_the_documented_keys_are_those_of_a_resolved_job(job: Path) -> None:
    keys = {key for key, _, _ in documented(SearchConfig)}
    assert {"name", "splits.search.share", "genes", "merge.method", "search.population"} <= keys
    assert all(text for _, _, text in documented(SearchConfig) + documented(SiteConfig))


def test_operational_keys_are_not_science(job: Path) -> None:
    before = science(load_job(job))
    grown = load_job(job, ["search.generations=99", "search.failures=1", "description=new"])
    assert science(grown) == before
    assert not before.keys() & set(OPERATIONAL)
    assert before.keys() | set(OPERATIONAL) == flatten(load_job(job).model_dump(mode="json")).keys()


@pytest.mark.parametrize(
    "override",
    ["seed=1", "search.population=4", "protocol.top_p=0.9", "genes.0.high=2", "references.sweep=0"],
)
def test_other_keys_are_science(job: Path, override: str) -> None:
    before, after = science(load_job(job)), science(load_job(job, [override]))
    key = override.partition("=")[0]
    assert [k for k in before if before[k] != after[k]] == [key]


leaves = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())
names = st.text(st.characters(categories=["L"]), min_size=1)
trees = st.recursive(leaves, lambda inner: st.dictionaries(names, inner, min_size=1), max_leaves=9)


@settings(max_examples=50)
@given(st.dictionaries(names, trees, min_size=1))
def test_flatten_loses_nothing(tree: dict[str, Any]) -> None:
    back: dict[str, Any] = {}
    for key, value in flatten(tree).items():
        *parents, last = key.split(".")
        node = back
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    assert back == tree


def test_a_resolved_job_is_a_job_again(job: Path) -> None:
    found = load_job(job)
    assert validate(SearchConfig, found.model_dump(mode="json")) == found


def test_relative_folders_are_meant_from_the_job_file(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = job.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    overrides = ["parents.up=../up", "parents.hub=org/name", "merge.base=./base"]
    found = load_job(Path("..") / "job.toml", overrides)
    assert found.parents["fast"].path == str(job.parent.resolve() / "fast")
    assert found.parents["up"].path == str(job.parent.parent.resolve() / "up")
    assert found.parents["hub"].path == "org/name"
    assert found.parents["slow"].path == "shipped:toy/slow"
    assert found.merge.base is not None
    assert found.merge.base.path == str(job.parent.resolve() / "base")


def test_configurations_cannot_be_changed(job: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_job(job).seed = 3  # type: ignore[misc]
