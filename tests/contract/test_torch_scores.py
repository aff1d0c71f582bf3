"""What torch saves is what our reader, which knows no torch, reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from l2s_hpc.errors import DamageError
from l2s_hpc.evaluation.torch_file import read_bytes_tensor

torch = pytest.importorskip("torch", reason="needs torch")


@pytest.mark.parametrize("dtype", ["uint8", "bool"])
@pytest.mark.parametrize("length", [1, 30, 70_000])
def test_tensors_of_bytes_come_back(tmp_path: Path, dtype: str, length: int) -> None:
    values = (torch.arange(length) % 3 == 1).to(getattr(torch, dtype))
    torch.save(values, tmp_path / "x_scores.pt")
    assert list(read_bytes_tensor(tmp_path / "x_scores.pt")) == [int(v) for v in values]


def test_a_view_gives_its_own_values(tmp_path: Path) -> None:
    values = torch.arange(100, dtype=torch.uint8)[3:60:4]
    torch.save(values, tmp_path / "x_scores.pt")
    assert list(read_bytes_tensor(tmp_path / "x_scores.pt")) == values.tolist()


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(3, 2, dtype=torch.uint8),
        torch.zeros(3),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(0, dtype=torch.uint8),
        [torch.zeros(3, dtype=torch.uint8)],
        {"scores": torch.zeros(3, dtype=torch.uint8)},
        torch.nn.Parameter(torch.zeros(3)),
        Path("x"),
    ],
)
def test_what_is_no_tensor_of_bytes_is_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "x_scores.pt")
    with pytest.raises(DamageError):
        read_bytes_tensor(tmp_path / "x_scores.pt")


def test_the_format_before_zip_archives_is_refused(tmp_path: Path) -> None:
    values = torch.ones(3, dtype=torch.uint8)
    torch.save(values, tmp_path / "x_scores.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(DamageError, match="not a whole zip archive of torch"):
        read_bytes_tensor(tmp_path / "x_scores.pt")
