"""Column types that refuse what must never be stored: naive times and unknown words."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Dialect, String, TypeDecorator

from broadcast_server.domain.errors import Corrupt, Invalid


class UtcDateTime(TypeDecorator[datetime]):
    """An aware instant, stored as integer UTC microseconds so that both dialects compare and keep it alike."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        """Raises `Invalid` on a naive time."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise Invalid("naive_time", field="instant")
        return round(value.timestamp() * 1_000_000)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Aware UTC."""
        if value is None:
            return None
        seconds, micros = divmod(int(value), 1_000_000)
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros)


class Word(TypeDecorator[StrEnum]):
    """A `StrEnum` stored as its text; a word the program does not know is `Corrupt`, never silently passed."""

    impl = String(40)
    cache_ok = True

    def __init__(self, words: type[StrEnum]) -> None:
        super().__init__()
        self.words = words

    def process_bind_param(self, value: StrEnum | str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Accepts the enum or its text."""
        return None if value is None else self.words(value).value

    def process_result_value(self, value: Any, dialect: Dialect) -> StrEnum | None:  # noqa: ARG002
        """Raises `Corrupt` on a word that is not in the enum."""
        if value is None:
            return None
        try:
            return self.words(value)
        except ValueError:
            raise Corrupt("unknown_word", words=self.words.__name__, value=value) from None


def fold(text: str) -> str:
    """Search form of Vietnamese text: lower case, no diacritics, đ as d; no two databases fold alike."""
    plain = unicodedata.normalize("NFD", text.lower().replace("đ", "d"))
    return "".join(letter for letter in plain if not unicodedata.combining(letter))
