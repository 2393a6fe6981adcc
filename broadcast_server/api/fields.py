"""The kinds of text that forms of several nouns take: what is refused here never reaches a row or a topic."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, StringConstraints

Name = Annotated[str, StringConstraints(min_length=1, max_length=120)]
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
IdPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
IdQuery = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
SearchQuery = Annotated[
    str | None,
    Query(alias="q", max_length=120, pattern=r"^[^\x00-\x1f]+$", description="part of the name; accents do not matter"),
]
Secret = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,200}$")]


class Form(BaseModel):
    """What a caller sends: a field nobody knows is an error, not silently dropped."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Shown(BaseModel):
    """What a caller is answered."""

    model_config = ConfigDict(frozen=True)
