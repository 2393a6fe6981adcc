"""Whether an emergency may sound: who agreed, to exactly what, and when.

Pure, and asked twice: by `control` before it is put in force, and by the signer before it is signed. A maintainer must
not break: (1) a consent is over the hash of everything that decides what sounds where, how long and in which mode,
the emergency's own id among it, so it can stand for no other; (2) two different people agree within `CONSENT_LIVES`, or
one takes a template that two others approved (break-glass), or one ends an alarm with the ready-made last words; there
is no fourth way; (3) whatever is missing or doubtful is a reason, never a default.

Source: `docs/adr/0040-two-people-or-a-template.md`; Hawaii 2018 (one click, one person, one wording for test and real).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

CONSENT_LIVES: Final = timedelta(minutes=15)
"""So long after the first consent the second may be given, and after the second the alarm may be put in force."""
BREAK_GLASS_LONGEST_MIN: Final = 15
BREAK_GLASS_A_DAY: Final = 2
REVIEW_WITHIN: Final = timedelta(hours=24)
TEMPLATE_APPROVERS: Final = 2
FINAL_MIN: Final = 15
"""How long a ready-made last notice stays for nodes that were away."""

READY_FINAL: Final[Mapping[str, str]] = {
    "real": "Tin cuối cùng. Tình huống khẩn cấp đã kết thúc.",
    "drill": "Tin cuối cùng. Buổi diễn tập đã kết thúc.",
}
"""The last words one person may say, by mode."""

_REAL: Final = "real"
_ALERT, _FINAL = "alert", "final"


class ConsentRole(StrEnum):
    """As what somebody agreed."""

    INITIATOR = "initiator"
    APPROVER = "approver"
    BREAK_GLASS = "break_glass"
    """One person, from a template that two others approved."""
    FINISHER = "finisher"
    """One person, who ends it with the ready-made last words."""


class Unfit(StrEnum):
    """Why an emergency may not sound."""

    CONTENT_CHANGED = "content_changed"
    """It is not what its hash says any more."""
    CONSENT_MISSING = "consent_missing"
    """Nobody, or one person alone, agreed to exactly this."""
    SAME_PERSON = "same_person"
    SAME_SEAT = "same_seat"
    """Both consents came through one log-in."""
    CONSENT_EXPIRED = "consent_expired"
    TEMPLATE_UNAPPROVED = "template_unapproved"
    TEMPLATE_CHANGED = "template_changed"
    """What it says is not what was approved."""
    BREAK_GLASS_TOO_LONG = "break_glass_too_long"
    BREAK_GLASS_DRILL = "break_glass_drill"
    """A drill, a correction or a bulletin has time for two people."""
    FINAL_OWN_WORDS = "final_own_words"
    """Words of somebody's own need two people, also as the last ones."""


@dataclass(frozen=True, slots=True)
class Says:
    """What is heard of an alarm beside a bulletin, and how it goes round; None: the node's usual figure."""

    hazard: str | None = None
    phrases: tuple[str, ...] = ()
    text: str | None = None
    voice: str | None = None
    tone_ms: int | None = None
    times: int | None = None
    gap_ms: int | None = None
    every_min: int | None = None

    def hash_for(self, unit_id: str) -> str:
        """SHA-256 of a unit's template that says this."""
        return _sha256({"unit": unit_id, "says": self._told()})

    def _told(self) -> dict[str, Any]:
        return asdict(self) | {"phrases": list(self.phrases)}


@dataclass(frozen=True, slots=True)
class Alarm:
    """Everything people agree to. `mode`, `nature`: the stored words; `asset`: the bulletin's, never speech made later
    of the text, for the text is agreed to.
    """

    emergency_id: str
    unit_id: str
    units: tuple[str, ...]
    mode: str
    nature: str
    level: int
    says: Says
    expires_min: int
    replaces: str | None = None
    bulletin_version: str | None = None
    asset: str | None = None
    template_id: str | None = None

    @property
    def content_hash(self) -> str:
        """SHA-256 over all of it."""
        told = asdict(self) | {"units": sorted(self.units), "says": asdict(self.says)}
        told["says"]["phrases"] = list(self.says.phrases)
        return _sha256(told)


@dataclass(frozen=True, slots=True)
class Consent:
    """One person agreed. `seat`: the log-in (session or token) it came through, None where there was none."""

    user_id: str
    role: ConsentRole
    content_hash: str
    at: datetime
    seat: str | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """What one person may raise alone. `approvals`: user → the hash that person approved."""

    template_id: str
    unit_id: str
    says: Says
    author_id: str
    approvals: Mapping[str, str]
    is_retired: bool = False

    @property
    def content_hash(self) -> str:
        """Over what it says and whose it is."""
        return self.says.hash_for(self.unit_id)

    @property
    def is_approved(self) -> bool:
        """Whether two people beside its author approved exactly this."""
        mine = self.content_hash
        people = {user for user, approved in self.approvals.items() if approved == mine and user != self.author_id}
        return not self.is_retired and len(people) >= TEMPLATE_APPROVERS


def airworthy(
    alarm: Alarm,
    content_hash: str,
    consents: Collection[Consent],
    *,
    launched_at: datetime,
    template: Template | None = None,
    replaced: Alarm | None = None,
) -> Unfit | None:
    """None if the alarm may sound from `launched_at` on, else why not.

    `content_hash`: what is kept as agreed to; `template`: the alarm's, `replaced`: what it stands in the place of.
    """
    if alarm.content_hash != content_hash:
        return Unfit.CONTENT_CHANGED
    mine = [one for one in consents if one.content_hash == content_hash and one.at <= launched_at]
    if alarm.template_id is not None:
        return _broken_glass(alarm, mine, launched_at, template)
    if any(one.role is ConsentRole.FINISHER for one in mine):
        return _finished(alarm, mine, launched_at, replaced)
    return _two_people(mine, launched_at)


def _two_people(consents: Collection[Consent], launched_at: datetime) -> Unfit | None:
    firsts = [one for one in consents if one.role is ConsentRole.INITIATOR]
    seconds = [one for one in consents if one.role is ConsentRole.APPROVER]
    found = [_pair(first, second, launched_at) for first in firsts for second in seconds]
    if not found:
        return Unfit.CONSENT_MISSING
    if None in found:
        return None
    return min((one for one in found if one is not None), key=_GRAVITY.index)


_GRAVITY: Final = (Unfit.CONSENT_EXPIRED, Unfit.SAME_SEAT, Unfit.SAME_PERSON)
"""Of several pairs that fail, the one that came closest is told."""


def _pair(first: Consent, second: Consent, launched_at: datetime) -> Unfit | None:
    if first.user_id == second.user_id:
        return Unfit.SAME_PERSON
    if first.seat is not None and first.seat == second.seat:
        return Unfit.SAME_SEAT
    if not timedelta(0) <= second.at - first.at <= CONSENT_LIVES or launched_at - second.at > CONSENT_LIVES:
        return Unfit.CONSENT_EXPIRED
    return None


def _broken_glass(
    alarm: Alarm, consents: Iterable[Consent], launched_at: datetime, template: Template | None
) -> Unfit | None:
    if not any(one.role is ConsentRole.BREAK_GLASS and launched_at - one.at <= CONSENT_LIVES for one in consents):
        return Unfit.CONSENT_MISSING
    if alarm.mode != _REAL or alarm.nature != _ALERT or alarm.bulletin_version is not None or alarm.asset is not None:
        return Unfit.BREAK_GLASS_DRILL
    if alarm.expires_min > BREAK_GLASS_LONGEST_MIN:
        return Unfit.BREAK_GLASS_TOO_LONG
    if template is None or template.template_id != alarm.template_id or not template.is_approved:
        return Unfit.TEMPLATE_UNAPPROVED
    if template.says != alarm.says:
        return Unfit.TEMPLATE_CHANGED
    return None


def _finished(alarm: Alarm, consents: Iterable[Consent], launched_at: datetime, replaced: Alarm | None) -> Unfit | None:
    is_recent = any(one.role is ConsentRole.FINISHER and launched_at - one.at <= CONSENT_LIVES for one in consents)
    if not is_recent:
        return Unfit.CONSENT_EXPIRED
    is_ready_made = (
        alarm.nature == _FINAL
        and alarm.bulletin_version is None
        and alarm.asset is None
        and alarm.expires_min <= FINAL_MIN
        and replaced is not None
        and replaced.emergency_id == alarm.replaces
        and (alarm.unit_id, sorted(alarm.units), alarm.mode)
        == (replaced.unit_id, sorted(replaced.units), replaced.mode)
        and alarm.says == ready_final(alarm.mode, replaced.says, alarm.says.voice)
    )
    return None if is_ready_made else Unfit.FINAL_OWN_WORDS


def ready_final(mode: str, replaced: Says, voice: str | None) -> Says:
    """The ready-made last words for an alarm that said `replaced`."""
    return Says(hazard=replaced.hazard, text=READY_FINAL[mode], voice=voice, times=1)


def _sha256(told: Mapping[str, Any]) -> str:
    text = json.dumps(told, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
