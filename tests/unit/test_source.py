"""The source itself: no pickles, no asserts for users, encodings said, nothing too long to read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "l2s_hpc"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name not in ("data", "jobs"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "shelve", "cloudpickle", "marshal", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
CATCHES_ALL = {"task/worker.py", "evaluation/grading/child.py"}
"""The outermost frame of the node's worker may catch everything: it writes down the failure."""

MOST_LINES_OF_A_FUNCTION, MOST_LINES_OF_A_FILE = 60, 400


def faults(source: str, name: str = "some.py") -> list[str]:
    """A line for everything in a source text that must not be there."""
    found = [
        f"{name}:{getattr(node, 'lineno', 0)}: {fault}"
        for node in ast.walk(ast.parse(source))
        for fault in (
            *_unsafe(node),
            *_without_encoding(node),
            *_asserts(node),
            *([] if name in CATCHES_ALL else _broad_excepts(node)),
            *_long_functions(node),
        )
    ]
    lines = source.count("\n")
    if lines > MOST_LINES_OF_A_FILE:
        found.append(f"{name}: {lines} lines")
    return found


def _unsafe(node: ast.AST) -> Iterator[str]:
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
    for name in names:
        if name.partition(".")[0] in FORBIDDEN_MODULES:
            yield f"imports {name}"
    if isinstance(node, ast.Call):
        called = node.func
        if isinstance(called, ast.Name) and called.id in FORBIDDEN_CALLS:
            yield f"calls {called.id}"
        if ast.unparse(called) == "torch.load":
            yield "calls torch.load"
        if any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in node.keywords):
            yield "gives text to a shell"


def _without_encoding(node: ast.AST) -> Iterator[str]:
    if not isinstance(node, ast.Call):
        return
    called = node.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    if ast.unparse(called) in ("os.open", "tarfile.open", "webbrowser.open"):
        return
    keywords = {keyword.arg for keyword in node.keywords}
    if name in ("read_text", "write_text") and "encoding" not in keywords:
        yield f"{name} without encoding"
    if name == "open" and "encoding" not in keywords and "b" not in _mode(node):
        yield "open without encoding"


def _mode(call: ast.Call) -> str:
    """The mode of a call of `open(path, mode)` or `path.open(mode)`."""
    given = [k.value for k in call.keywords if k.arg == "mode"]
    position = 1 if isinstance(call.func, ast.Name) else 0
    given += call.args[position : position + 1]
    mode = given[0] if given else None
    return mode.value if isinstance(mode, ast.Constant) and isinstance(mode.value, str) else "r"


def _asserts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Assert):
        yield "assert"


def _broad_excepts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ExceptHandler):
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        for kind in kinds:
            if kind is None or ast.unparse(kind) in ("Exception", "BaseException"):
                yield "catches everything"


def _long_functions(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        lines = (node.end_lineno or 0) - node.lineno + 1
        if lines > MOST_LINES_OF_A_FUNCTION:
            yield f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_the_source_keeps_the_rules(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert faults(source, path.relative_to(PACKAGE).as_posix()) == []
    assert ast.get_docstring(ast.parse(source)), "a file says what it is for"


def test_the_source_is_there() -> None:
    assert len(FILES) > 30


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import pickle", "imports pickle"),
        ("from dill.source import x", "imports dill.source"),
        ("def f():\n    import shelve as s", "imports shelve"),
        ("eval('1')", "calls eval"),
        ("exec(text)", "calls exec"),
        ("torch.load(path)", "calls torch.load"),
        ("subprocess.run(text, shell=True)", "gives text to a shell"),
        ("path.read_text()", "read_text without encoding"),
        ("path.write_text(text)", "write_text without encoding"),
        ("open(path)", "open without encoding"),
        ("open(path, 'w')", "open without encoding"),
        ("path.open()", "open without encoding"),
        ("path.open(mode='a')", "open without encoding"),
        ("assert x", "assert"),
        ("try:\n    f()\nexcept:\n    pass", "catches everything"),
        ("try:\n    f()\nexcept (OSError, Exception):\n    pass", "catches everything"),
        ("def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
        ("x = 1\n" * 401, "401 lines"),
    ],
)
def test_each_rule_can_fail(source: str, fault: str) -> None:
    (line,) = faults(source)
    assert line.endswith(fault)


@pytest.mark.parametrize(
    "source",
    [
        "path.read_text(encoding='utf-8')",
        "open(path, 'rb')",
        "path.open('wb')",
        "path.open(mode='rb')",
        "os.open(path, os.O_RDONLY)",
        "model.eval()",
        "try:\n    f()\nexcept OSError:\n    pass",
        "def f():\n" + "    x = 1\n" * 59,
    ],
)
def test_what_is_fine_is_left_alone(source: str) -> None:
    assert faults(source) == []


def test_only_the_worker_may_catch_everything() -> None:
    source = "try:\n    f()\nexcept Exception:\n    pass"
    assert faults(source, "task/worker.py") == [] != faults(source, "task/merge.py")
