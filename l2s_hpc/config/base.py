"""What all parts of a configuration file have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Scalar = bool | int | float | str
Name = Annotated[str, Field(pattern=r"^\w+$")]
"""A name that the user gives: it stands between dots in gene names and constraints."""


class Config(BaseModel):
    """A part of a configuration file: immutable, unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
