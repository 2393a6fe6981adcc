"""Two people or a template: every way in which one of them is missing has its reason."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from broadcast_server.domain.consent import (
    CONSENT_LIVES,
    READY_FINAL,
    Alarm,
    Consent,
    ConsentRole,
    Says,
    Template,
    Unfit,
    airworthy,
    ready_final,
)

NOW = datetime(2026, 6, 1, 2, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
FLOOD = Alarm("e1", "20194", ("20194",), "real", "alert", 6, Says("flood", ("evacuate",), "Vỡ đê", "north"), 60)


def consent(user: str, role: ConsentRole, of: Alarm = FLOOD, **more: Any) -> Consent:
    return Consent(user, role, of.content_hash, more.pop("at", NOW), **more)


def lan(**more: Any) -> Consent:
    return consent("lan", ConsentRole.INITIATOR, **more)


def minh(**more: Any) -> Consent:
    return consent("minh", ConsentRole.APPROVER, **more)


def judged(*consents: Consent, alarm: Alarm = FLOOD, **more: Any) -> Unfit | None:
    return airworthy(alarm, alarm.content_hash, consents, launched_at=more.pop("launched_at", NOW), **more)


def test_two_people_over_the_same_hash_raise_it_in_either_mode():
    drill = replace(FLOOD, mode="drill")

    assert judged(lan(), minh()) is None
    assert judged(lan(of=drill), minh(of=drill), alarm=drill) is None
    assert judged(lan(), minh(at=NOW + CONSENT_LIVES), launched_at=NOW + CONSENT_LIVES) is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], Unfit.CONSENT_MISSING),
        ([lan()], Unfit.CONSENT_MISSING),
        ([minh()], Unfit.CONSENT_MISSING),
        ([lan(), lan()], Unfit.CONSENT_MISSING),
        ([minh(), consent("lan", ConsentRole.APPROVER)], Unfit.CONSENT_MISSING),
        ([lan(), consent("lan", ConsentRole.APPROVER)], Unfit.SAME_PERSON),
        ([lan(seat="s1"), minh(seat="s1")], Unfit.SAME_SEAT),
        ([lan(at=NOW - CONSENT_LIVES - SECOND), minh()], Unfit.CONSENT_EXPIRED),
        ([lan(at=NOW), minh(at=NOW - SECOND)], Unfit.CONSENT_EXPIRED),
        ([lan(at=NOW - 40 * MINUTE), minh(at=NOW - 30 * MINUTE)], Unfit.CONSENT_EXPIRED),
        ([lan(), minh(at=NOW + SECOND)], Unfit.CONSENT_MISSING),
        ([lan(), minh(of=replace(FLOOD, mode="drill"))], Unfit.CONSENT_MISSING),
        ([lan(), consent("minh", ConsentRole.BREAK_GLASS)], Unfit.CONSENT_MISSING),
    ],
)
def test_less_than_two_people_raise_nothing(given: list[Consent], why: Unfit):
    assert judged(*given) is why


@pytest.mark.parametrize(
    "changed",
    [
        replace(FLOOD, emergency_id="e2"),
        replace(FLOOD, unit_id="48"),
        replace(FLOOD, units=("20194", "20195")),
        replace(FLOOD, mode="drill"),
        replace(FLOOD, nature="final"),
        replace(FLOOD, level=7),
        replace(FLOOD, expires_min=61),
        replace(FLOOD, replaces="e0"),
        replace(FLOOD, bulletin_version="v1"),
        replace(FLOOD, asset="a" * 64),
        replace(FLOOD, template_id="t1"),
        *(
            replace(FLOOD, says=replace(FLOOD.says, **{name: value}))
            for name, value in {
                "hazard": "storm", "phrases": ("stay_inside",), "text": "Vỡ đê!", "voice": "south",
                "tone_ms": 4_000, "times": 2, "gap_ms": 1, "every_min": 5,
            }.items()
        ),
    ],
)  # fmt: skip
def test_whatever_changes_after_they_agreed_voids_it(changed: Alarm):
    assert airworthy(changed, FLOOD.content_hash, [lan(), minh()], launched_at=NOW) is Unfit.CONTENT_CHANGED
    assert airworthy(changed, changed.content_hash, [lan(), minh()], launched_at=NOW) is not None


TEMPLATE = Template("t1", "20194", FLOOD.says, "lan", dict.fromkeys(("minh", "binh"), FLOOD.says.hash_for("20194")))
ALONE = replace(FLOOD, template_id="t1", expires_min=15)


def glass(alarm: Alarm = ALONE, template: Template | None = TEMPLATE, **more: Any) -> Unfit | None:
    given = consent("minh", ConsentRole.BREAK_GLASS, of=alarm, **more)
    return judged(given, alarm=alarm, template=template)


def test_one_person_raises_what_two_others_approved_to_the_letter():
    mine = TEMPLATE.content_hash

    assert glass() is None
    assert glass(at=NOW - 16 * MINUTE) is Unfit.CONSENT_MISSING
    assert glass(replace(ALONE, expires_min=16)) is Unfit.BREAK_GLASS_TOO_LONG
    assert glass(replace(ALONE, mode="drill")) is Unfit.BREAK_GLASS_DRILL
    assert glass(replace(ALONE, nature="correction")) is Unfit.BREAK_GLASS_DRILL
    assert glass(replace(ALONE, asset="a" * 64)) is Unfit.BREAK_GLASS_DRILL
    assert glass(replace(ALONE, says=replace(FLOOD.says, text="Khác"))) is Unfit.TEMPLATE_CHANGED
    for template in (
        None,
        replace(TEMPLATE, template_id="t2"),
        replace(TEMPLATE, approvals={"minh": mine}),
        replace(TEMPLATE, approvals={"minh": mine, "lan": mine}),
        replace(TEMPLATE, approvals={"minh": mine, "binh": "0" * 64}),
        replace(TEMPLATE, says=replace(FLOOD.says, text="Khác")),
        replace(TEMPLATE, unit_id="20195"),
        replace(TEMPLATE, is_retired=True),
    ):
        assert glass(template=template) is Unfit.TEMPLATE_UNAPPROVED
    assert judged(consent("minh", ConsentRole.APPROVER, of=ALONE), alarm=ALONE, template=TEMPLATE) is not None


def test_one_person_ends_it_in_the_ready_words_and_in_no_others():
    says = ready_final("real", FLOOD.says, "north")
    last = replace(FLOOD, emergency_id="e2", nature="final", replaces="e1", says=says, expires_min=15)

    def finished(alarm: Alarm, replaced: Alarm | None = FLOOD) -> Unfit | None:
        return judged(consent("minh", ConsentRole.FINISHER, of=alarm), alarm=alarm, replaced=replaced)

    assert finished(last) is None
    assert last.says.text == READY_FINAL["real"]
    for wrong in (
        replace(last, says=replace(says, text="Ở yên tại chỗ.")),
        replace(last, says=replace(says, hazard="storm")),
        replace(last, says=replace(says, phrases=("evacuate",))),
        replace(last, says=replace(says, times=3)),
        replace(last, nature="correction"),
        replace(last, units=("20194", "20195")),
        replace(last, mode="drill"),
        replace(last, expires_min=60),
        replace(last, asset="a" * 64),
        replace(last, replaces="e0"),
    ):
        assert finished(wrong) is Unfit.FINAL_OWN_WORDS
    assert finished(last, None) is Unfit.FINAL_OWN_WORDS
