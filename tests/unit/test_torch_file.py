"""`.pt` files are read without torch and without unpickling, and hostile ones are refused."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l2s_hpc.errors import DamageError
from l2s_hpc.evaluation.torch_file import MAX_FILE, read_bytes_tensor
from tests.foreign import archive, description, found_upstream, number, pt, short

VALUES = [1, 0, 0, 1, 1, 0, 1]


def read(folder: Path, content: bytes) -> bytes:
    path = folder / "x_scores.pt"
    path.write_bytes(content)
    return read_bytes_tensor(path)


def test_values_come_back_in_order(tmp_path: Path) -> None:
    assert list(read(tmp_path, pt(VALUES))) == VALUES


def test_bool_tensors_and_views_are_read(tmp_path: Path) -> None:
    assert list(read(tmp_path, pt(VALUES, storage="torch\nBoolStorage"))) == VALUES
    view = description(3, numel=7, offset=1, stride=2)
    content = archive({"x/data.pkl": view, "x/data/0": bytes(VALUES)})
    assert list(read(tmp_path, content)) == VALUES[1::2]


@pytest.mark.skipif(found_upstream() is None, reason="needs ../shared/upstream")
def test_recorded_files_have_the_published_number_of_items() -> None:
    folder = found_upstream()
    assert folder is not None
    scores = folder / "scores" / "DEEPSEEK-R1" / "1.5B" / "scores"
    values = read_bytes_tensor(scores / "gsm8k_scores.pt")
    assert len(values) == 1319
    assert sum(values) == 1042


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty (0 bytes): it was torn when it was written"),
        (pt(VALUES)[:-30], "not a whole zip archive of torch"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "not a whole zip archive of torch"),
        (archive({"x/other": b""}), "0 entries NAME/data.pkl"),
        (archive({"x/data.pkl": b"", "y/data.pkl": b""}), "2 entries NAME/data.pkl"),
        (archive({"x/data.pkl": description(7)}), "the bytes that data.pkl names are not there"),
        (
            archive({"x/data.pkl": description(7), "x/data/0": b"\1\0"}),
            "2 of 7 values are there: it is torn",
        ),
        (
            archive({"x/data.pkl": description(7), "x/data/0": bytes(1000)}),
            "an entry has 1000 bytes, at most 7 are expected",
        ),
        (pt(VALUES, key="../0"), "the bytes that data.pkl names are not there"),
        (pt(VALUES, numel=-1), "the tensor is empty, or reaches beyond its bytes"),
        (pt(VALUES, offset=1), "the tensor is empty, or reaches beyond its bytes"),
        (pt(VALUES, stride=-1), "the tensor is empty, or reaches beyond its bytes"),
        (pt([]), "the tensor is empty, or reaches beyond its bytes"),
        (pt(VALUES, shape=number(7) + number(1) + b"\x86"), "something else than one 1-D tensor"),
        (pt(VALUES, storage="torch\nFloatStorage"), "'torch.FloatStorage' (opcode GLOBAL)"),
        (pt(VALUES, rebuild="os\nsystem"), "'os.system' (opcode GLOBAL)"),
        (pt(VALUES, rebuild="collections\nOrderedDict"), "something else than one 1-D tensor"),
        (
            archive({"x/data.pkl": b"\x80\x02" + short("a") + b")R.", "x/data/0": b""}),
            "data.pkl calls what is no function (opcode REDUCE)",
        ),
        (
            archive({"x/data.pkl": b"\x80\x02}.", "x/data/0": b""}),
            "data.pkl holds the opcode EMPTY_DICT: no tensor's description needs it",
        ),
        (
            archive({"x/data.pkl": b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "x/data/0": b""}),
            "data.pkl holds the opcode SHORT_BINUNICODE",
        ),
        (archive({"x/data.pkl": description(7)[:40]}), "data.pkl is torn"),
        (archive({"x/data.pkl": b"\x80\x02" + b"(" * 20_000}), "an entry has 20002 bytes"),
        (
            archive({"x/data.pkl": description(7)}, zipfile.ZIP_DEFLATED),
            "an entry is compressed; torch compresses nothing",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_anything_else_is_refused_with_its_reason(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(DamageError) as caught:
        read(tmp_path, content)
    assert message in caught.value.message
    assert caught.value.path == tmp_path / "x_scores.pt"


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x_scores.pt"
    path.touch()
    os.truncate(path, MAX_FILE + 1)
    with pytest.raises(DamageError, match="too many for the scores of a benchmark"):
        read_bytes_tensor(path)


def test_a_bomb_of_zeros_is_refused_by_its_compression(tmp_path: Path) -> None:
    entries = {"x/data.pkl": description(7), "x/data/0": bytes(50_000_000)}
    with pytest.raises(DamageError, match="is compressed"):
        read(tmp_path, archive(entries, zipfile.ZIP_DEFLATED))


def test_tuples_that_hold_each_other_over_and_over_take_no_time(tmp_path: Path) -> None:
    # Fifty doublings: written out they would be 2^50 entries.
    doubled = b"\x80\x02)" + b"q\x00h\x00\x86" * 50 + b"."
    with pytest.raises(DamageError, match="something else"):
        read(tmp_path, archive({"x/data.pkl": doubled, "x/data/0": b""}))


_GOOD = pt(VALUES)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(_GOOD) - 1), st.binary(min_size=1, max_size=6)), max_size=8
    ),
    cut=st.integers(0, len(_GOOD)),
)
def test_mutated_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]], cut: int
) -> None:
    content = bytearray(_GOOD)
    for at, new in changes:
        content[at : at + len(new)] = new
    refused_or_read(tmp_path_factory.mktemp("pt"), bytes(content[:cut] if cut else content))


_OPCODES = st.sampled_from(
    [
        b"\x80\x02", b"(", b")", b"t", b"\x85", b"\x86", b"\x87", b"Q", b"R", b".", b"q\x00",
        b"h\x00", b"\x88", b"\x89", b"K\x01", b"M\x01\x00", number(7), number(-1), short("storage"),
        short("0"), short("cpu"), b"ctorch\nByteStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n", b"cos\nsystem\n", b"b", b"}", b"\x93", b"I1\n", b"Pid\n",
    ]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(program=st.lists(_OPCODES, max_size=40))
def test_arbitrary_programs_are_never_run(
    tmp_path_factory: pytest.TempPathFactory, program: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("pt")
    marker = folder / "ran"
    payload = b"cos\nsystem\n" + short(f"touch {marker}") + b"\x85R"
    code = b"".join(program) + payload + b"".join(program) + b"."
    refused_or_read(folder, archive({"x/data.pkl": code, "x/data/0": bytes(VALUES)}))
    assert not marker.exists()


def refused_or_read(folder: Path, content: bytes) -> None:
    try:
        values = read(folder, content)
    except DamageError:
        return
    assert 0 < len(values) <= len(content)
