"""Sentences for people: a message code and its facts become Vietnamese or English.

The mechanism is gettext's: one `Translations` object per language, English behind it, the code itself behind that, so
templates and forms can install the same objects. The source is `locale/codes/<noun>.yaml`, both languages side by side
(`code: {vi: …, en: …}`), because whoever writes a code writes both sentences at once and no compiled file can be stale.

A maintainer must not break: (1) a missing sentence is never an error: the code is shown and counted in `unknown`;
(2) placeholders are names of facts (`{field}`), and a fact that is missing shows as `…`; (3) a code has one home
(a test looks; at run time the first file wins).
"""

from __future__ import annotations

import collections
import functools
import gettext
import string
from collections.abc import Iterable, Mapping
from enum import StrEnum
from importlib.resources import files
from typing import Any

import yaml

from broadcast_server.domain.errors import Corrupt

_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Locale(StrEnum):
    """The languages users are spoken to in; the first is the default."""

    VI = "vi"
    EN = "en"


unknown: collections.Counter[str] = collections.Counter()
"""Codes that were asked for and have no sentence."""


class Translations(gettext.NullTranslations):
    """One language of the catalogue behind gettext's own interface; message ids are codes."""

    def __init__(self, sentences: Mapping[str, str]) -> None:
        super().__init__()
        self._sentences = sentences

    def gettext(self, message: str) -> str:
        """The template of a code; what stands behind this language where it has none."""
        found = self._sentences.get(message)
        return super().gettext(message) if found is None else found


@functools.cache
def translations(locale: Locale) -> Translations:
    """The catalogue in one language, English behind it."""
    made = Translations({code: entry[locale.value] for code, entry in entries().items() if locale.value in entry})
    if locale is not Locale.EN:
        made.add_fallback(translations(Locale.EN))
    return made


@functools.cache
def entries() -> Mapping[str, Mapping[str, str]]:
    """Every code with its sentences by language, from all files. Raises `Corrupt("catalogue_damaged")`."""
    found: dict[str, Mapping[str, str]] = {}
    folder = files("broadcast_server") / "locale" / "codes"
    for source in sorted(folder.iterdir(), key=lambda path: path.name):
        if not source.name.endswith(".yaml"):
            continue
        told = yaml.load(source.read_text(encoding="utf-8"), Loader=_Loader) or {}  # noqa: S506 - a safe loader
        for code, sentences in told.items():
            if not isinstance(sentences, dict):
                raise Corrupt("catalogue_damaged", file=source.name, entry=str(code))
            found.setdefault(str(code), sentences)
    return found


def sentence(code: str, facts: Mapping[str, Any], locale: Locale | str = Locale.VI) -> str:
    """What a person reads for `code`, its placeholders filled from `facts`; the code itself if nothing is written."""
    template = translations(Locale(locale)).gettext(code)
    if template == code:
        unknown[code] += 1
        return code
    return _FORMATTER.vformat(template, (), {name: _shown(value) for name, value in facts.items()})


def has_sentence(code: str) -> bool:
    """Whether the catalogue knows the code."""
    return code in entries()


def locale_of(accept_language: str | None) -> Locale:
    """The language to answer in: the best of ours that the header asks for, Vietnamese otherwise (RFC 9110 §12.5.4)."""
    best, best_quality = Locale.VI, 0.0
    for part in (accept_language or "").split(","):
        tag, _, parameters = part.strip().partition(";")
        language = tag.strip().lower().split("-", maxsplit=1)[0]
        quality = _quality(parameters)
        if quality > best_quality and language in set(Locale):
            best, best_quality = Locale(language), quality
    return best


def _quality(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    if name.strip().lower() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0


class _Formatter(string.Formatter):
    """Names only: a template can neither look into a fact nor fail on a missing one."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:  # noqa: ARG002 - the base's shape
        return kwargs.get(field_name, "…"), field_name


_FORMATTER = _Formatter()


def _shown(value: object) -> object:
    match value:
        case None:
            return "…"
        case bool() | int() | str():
            return value
        case float():
            return f"{value:g}"
        case Mapping():
            return ", ".join(f"{name}: {_shown(inner)}" for name, inner in value.items())
        case Iterable():
            return ", ".join(str(_shown(inner)) for inner in value)
    return str(value)
