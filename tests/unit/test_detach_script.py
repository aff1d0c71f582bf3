"""The controller's sbatch script: what it asks for, and that no name in it reaches a shell."""

from __future__ import annotations

import shlex
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2s_hpc.cluster.detach import controller_name, controller_script, take_own_job
from l2s_hpc.config import SiteConfig
from l2s_hpc.errors import UserError

HOSTILE = [
    "plain",
    "two words",
    "it's",
    'a "quoted" one',
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned #",
    "%j-%A",
    "-rf",
    "*",
    "~",
    "$HOME",
    "ünïcode λ",
]


def site(**controller: object) -> SiteConfig:
    return SiteConfig(
        name="s",
        executor="slurm",
        partition="gpu",
        account="proj",
        qos="normal",
        gres="gpu:1",
        constraint="a100",
        setup=["module load cuda"],
        sbatch={"exclusive": True},
        controller=controller,
    )


def script(
    where: SiteConfig, *, folder: Path = Path("/work"), log: str = "/run/logs/controller.log"
) -> list[str]:
    text = controller_script("mini-01234567", ["run", "toy"], "python", folder, Path(log), where)
    return text.splitlines()


def directives(lines: list[str]) -> dict[str, str]:
    words = [shlex.split(line)[1] for line in lines if line.startswith("#SBATCH ")]
    return dict(word.removeprefix("--").partition("=")[::2] for word in words)


def test_it_asks_for_one_core_and_nothing_of_the_tasks() -> None:
    assert directives(script(site())) == {
        "job-name": "l2s-mini-01234567-controller",
        "dependency": "singleton",
        "requeue": "",
        "open-mode": "append",
        "output": "/run/logs/controller.log",
        "ntasks": "1",
        "cpus-per-task": "1",
        "time": "1440",
        "mem": "2G",
        "partition": "gpu",
        "account": "proj",
        "qos": "normal",
    }
    assert "module" not in "\n".join(script(site()))


def test_its_own_settings_win() -> None:
    asked = directives(
        script(
            site(
                partition="small",
                account="a",
                qos="q",
                minutes=30,
                memory="1G",
                mail="me@example.org",
                sbatch={"nice": 5, "no-requeue": True, "exclude": "n1", "comment": False},
            )
        )
    )
    assert asked["partition"] == "small" and asked["account"] == "a" and asked["qos"] == "q"
    assert asked["time"] == "30" and asked["mem"] == "1G"
    assert asked["mail-user"] == "me@example.org"
    assert asked["mail-type"] == "END,FAIL,REQUEUE"
    assert asked["nice"] == "5" and asked["exclude"] == "n1" and "comment" not in asked
    assert "no-requeue" in asked and "requeue" not in asked


def test_the_last_lines_go_to_the_folder_and_become_python() -> None:
    lines = script(site(), folder=Path("/a b"))
    assert lines[0] == "#!/bin/sh"
    assert lines[-2:] == [
        "cd -- '/a b' || exit 1",
        'exec python -uP -m l2s_hpc.cli.main run toy "$@"',
    ]


def test_percent_signs_of_a_path_are_no_patterns_of_slurm() -> None:
    assert directives(script(site(), log="/r%j/c.log"))["output"] == "/r%%j/c.log"


@pytest.mark.parametrize(
    "settings",
    [
        {"partition": "a\nrm -rf ~"},
        {"mail": "me@x\ntouch pwned"},
        {"sbatch": {"a\ntouch pwned": 1}},
        {"sbatch": {"comment": "x\ntouch pwned"}},
        {"sbatch": {"comment=x --wrap": "y"}},
    ],
)
def test_what_would_begin_a_line_of_its_own_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match="cannot stand in a script of Slurm's"):
        script(site(**settings))


@pytest.mark.parametrize("log", ["/a\nb/c.log", "/a\\b/c.log"])
def test_a_log_that_slurm_cannot_write_is_refused(log: str) -> None:
    with pytest.raises(UserError):
        script(site(), log=log)


def run_script(folder: Path, arguments: list[str]) -> list[str]:
    """Run a script with a stand-in for Python that writes its arguments and its folder."""
    python = folder.parent / "py thon"
    python.write_text('#!/bin/sh\npwd\nprintf "%s\\0" "$@"\n', encoding="utf-8")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    log = folder.parent / "log"
    text = controller_script("m-0", arguments, str(python), folder, log, site())
    path = folder.parent / "controller.sbatch"
    path.write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["/bin/sh", str(path), "--unless-stopped"],
        capture_output=True,
        check=True,
        cwd="/",
    )
    where, _, words = done.stdout.decode().partition("\n")
    assert where == str(folder)
    return words.removesuffix("\0").split("\0")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_arrive_as_they_are(name: str, tmp_path: Path) -> None:
    folder = tmp_path.resolve() / name
    folder.mkdir()
    arguments = ["run", name, "--site", name, "--run", name, "--set", f"a.b={name}"]
    seen = run_script(folder, arguments)
    assert seen == ["-uP", "-m", "l2s_hpc.cli.main", *arguments, "--unless-stopped"]
    assert not list(tmp_path.rglob("pwned"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)))
def test_any_arguments_arrive_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("any").resolve() / "x"
    folder.mkdir()
    assert run_script(folder, words)[3:-1] == words


def test_own_job_leaves_nothing_for_the_jobs_that_it_submits() -> None:
    environ = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": controller_name("m-0"),
        "SLURM_RESTART_COUNT": "2",
        "SLURM_MEM_PER_NODE": "300",
        "SLURMD_NODENAME": "n1",
        "SLURM_WORKING_CLUSTER": "c:127.0.0.1:1:2:3",
        "SLURM_CONF": "/etc/slurm.conf",
        "SBATCH_ACCOUNT": "mine",
        "HOME": "/root",
    }
    own = take_own_job(environ)
    assert own is not None
    assert (own.id, own.name, own.restarts) == ("7", "l2s-m-0-controller", 2)
    assert environ == {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "mine", "HOME": "/root"}
    assert take_own_job(environ) is None
