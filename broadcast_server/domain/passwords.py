"""What a password may be: long, and not made of what a stranger would guess first.

No list of anybody's passwords is carried. The rule is one: take away the words everybody uses, the words of the person
(login, name, places), years, keyboard rows, runs and repetitions; what is left must still be long.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from broadcast_server.domain.errors import Invalid

SHORTEST: Final = 12
LONGEST: Final = 200
LEFT_OVER: Final = 6
"""Characters that must remain when all that is easily guessed is taken away."""

_COMMON: Final = (
    "abc admin administrator anhyeuem bimat changeme daitruyenthanh dangnhap default demo emyeuanh hanoi "
    "hochiminh huyen iloveyou letmein loa login macdinh master matkhau nguoidung passphrase passwd "
    "password phatsong phatthanh phuong quantri quantrivien radio root saigon secret test tinh "
    "truyenthanh ubnd user uybannhandan vietnam welcome xinchao yeuem"
)
_ROWS: Final = (
    "abcdefghijklmnopqrstuvwxyz",
    "qwertyuiop",
    "asdfghjkl",
    "zxcvbnm",
    "qazwsxedcrfvtgbyhnujm",
    "01234567890",
)
_RUN: Final = 4
"""Of three there are many in any language ("tre")."""
_LEET: Final = str.maketrans("0134578@$!", "oieastbasi")
_YEAR: Final = re.compile(r"(?:19|20)\d\d")
_REPEATED: Final = re.compile(r"(.{1,8}?)\1+")


def normal(password: str) -> str:
    """The form that is hashed: keyboards compose Vietnamese letters differently (NFKC, RFC 8265 §4.2)."""
    return unicodedata.normalize("NFKC", password)


def check(password: str, personal: Iterable[str] = (), *, field: str = "new_password") -> None:
    """Return if it may be a password. `personal`: login, names, places of its owner.

    Raises `Invalid` with the field and what to do: `password_too_short`, `password_too_long`, `password_common`.
    """
    text = normal(password)
    if len(text) < SHORTEST:
        raise Invalid("password_too_short", field=field, least=SHORTEST, fix="take_three_words")
    if len(text) > LONGEST:
        raise Invalid("password_too_long", field=field, most=LONGEST, fix="take_three_words")
    if left_over(text, personal) < LEFT_OVER or len(set(text)) < LEFT_OVER:
        raise Invalid("password_common", field=field, fix="take_three_words")


def left_over(text: str, personal: Iterable[str] = ()) -> int:
    """Characters of `text` that no stranger has for nothing."""
    words = {word for told in personal for word in (_plain(told), *_plain(told, " ").split()) if len(word) > 2}
    folded = _fold(text)
    return min(_without(folded, words), _without(folded.translate(_LEET), words))


def _without(folded: str, words: set[str]) -> int:
    text = "".join(letter for letter in folded if letter.isalnum())
    for word in sorted({*words, *_COMMON.split()}, key=lambda one: (-len(one), one)):
        text = text.replace(word, " ")
    text = _YEAR.sub(" ", text)
    for row in _ROWS:
        for line in (row, row[::-1]):
            text = _without_runs(text, line)
    text = _REPEATED.sub(r"\1", text)
    return len(text.replace(" ", ""))


def _without_runs(text: str, line: str) -> str:
    kept, at = "", 0
    while at < len(text):
        length = 1
        while at + length < len(text) and text[at : at + length + 1] in line:
            length += 1
        kept += text[at] if length < _RUN or text[at] == " " else ""
        at += 1 if length < _RUN or text[at] == " " else length
    return kept


def _plain(text: str, between: str = "") -> str:
    return "".join(letter if letter.isalnum() else between for letter in _fold(text))


def _fold(text: str) -> str:
    plain = unicodedata.normalize("NFD", text.lower().replace("đ", "d"))
    return "".join(letter for letter in plain if not unicodedata.combining(letter))
