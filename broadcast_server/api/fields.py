"""The kinds of text that forms of several nouns take: what is refused here never reaches a row or a topic."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Final

from fastapi import Path, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from broadcast_server.control.accounts import Proof

Name = Annotated[str, StringConstraints(min_length=1, max_length=120)]
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
IdPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
IdQuery = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
SearchQuery = Annotated[
    str | None,
    Query(alias="q", max_length=120, pattern=r"^[^\x00-\x1f]+$", description="part of the name; accents do not matter"),
]
Instant = Annotated[AwareDatetime, Field(ge=datetime(2000, 1, 1, tzinfo=UTC), lt=datetime(2200, 1, 1, tzinfo=UTC))]
"""An instant with its offset, in a time that radio knows."""
Day = Annotated[date, Field(ge=date(1900, 1, 1), lt=date(2200, 1, 1))]
"""A local date of the law."""
Secret = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,200}$")]


TAG: Final = "by:"
"""Begins the tag of a form that is one of several; it is no part of a field's name."""


class Form(BaseModel):
    """What a caller sends: a field nobody knows is an error, not silently dropped."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ProofForm(Form):
    """Password and one-time code (or a recovery code) of whoever asks: what weighs much is done by somebody present."""

    password: Annotated[str, StringConstraints(min_length=1, max_length=256)] = Field(repr=False)
    code: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(repr=False)

    def given(self) -> Proof:
        """As the verb takes it."""
        return Proof(self.password, self.code)


class Shown(BaseModel):
    """What a caller is answered."""

    model_config = ConfigDict(frozen=True)
