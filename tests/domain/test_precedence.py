"""The reason a person is given when two things want the air."""

from itertools import permutations

import pytest

from broadcast_server.domain.precedence import Rule, explain, rank_of
from broadcast_server.domain.timeline import Entry
from speaker_protocol.rules import BulletinClass, Level, SourceKind
from tests.domain.builders import a_bulletin, a_priority, a_programme, a_relay, a_voice, an_emergency

UPPER = Level.PRIORITY_UPPER


@pytest.mark.parametrize(
    ("winner", "loser", "rule", "facts"),
    [
        (
            an_emergency("flood", "17:00", "18:00", 2),
            a_relay("vov", "17:00", "18:00"),
            Rule.LADDER,
            {"winner_level": 85, "loser_level": 40, "act": "after"},
        ),
        (
            a_programme("ours", "16:50", "18:00", (30,)),
            a_relay("vov", "17:00", "18:00"),
            Rule.MATRIX,
            {"row": "relay", "column": "programme", "act": "queue"},
        ),
        (
            a_voice("office", "16:50", "18:00"),
            a_priority("storm", "17:00", "18:00", 3),
            Rule.MATRIX,
            {"row": "priority", "column": "live", "act": "after"},
        ),
        (
            a_priority("ours", "17:00", "18:00", 3, origin_order=1),
            a_priority("theirs", "17:00", "18:00", 3, origin_order=2, level=UPPER),
            Rule.COMMUNE_ORDER,
            {"winner_order": 1, "loser_order": 2, "act": "commune_order"},
        ),
        (
            a_bulletin("early", "16:59", "18:00", 3),
            a_bulletin("a", "17:00", "18:00", 3),
            Rule.EARLIER_START,
            {"winner_start": "2026-06-01T16:59:00+07:00", "loser_start": "2026-06-01T17:00:00+07:00"},
        ),
        (a_bulletin("a", "17:00", "18:00", 3), a_bulletin("b", "17:00", "18:00", 3), Rule.ENTRY_ID, {"act": "queue"}),
    ],
    ids=lambda value: value.value if isinstance(value, Rule) else "",
)
def test_the_rule_that_decided(winner: Entry, loser: Entry, rule: Rule, facts: dict[str, object]):
    reason = explain(winner, loser)
    assert reason.code is rule
    assert {**facts, "winner_id": winner.id, "loser_id": loser.id}.items() <= reason.facts.items()


def test_rank_is_a_total_order_from_the_top_of_the_ladder_down():
    ladder = [
        an_emergency("flood", "17:00", "18:00", 2),
        a_voice("leader", "17:00", "18:00", level=Level.LIVE_LEADER),
        a_priority("theirs", "17:00", "18:00", 3, level=UPPER),
        a_priority("ours", "17:00", "18:00", 3),
        a_voice("office", "17:00", "18:00"),
        a_relay("vov", "17:00", "18:00"),
        a_bulletin("first", "17:00", "18:00", 3, origin_order=1),
        a_bulletin("early", "16:59", "18:00", 3, origin_order=2),
        a_bulletin("a", "17:00", "18:00", 3, origin_order=2),
        a_bulletin("b", "17:00", "18:00", 3, origin_order=2),
    ]
    upside_down = ladder[::-1]
    assert sorted(upside_down, key=rank_of) == ladder
    assert len({rank_of(entry) for entry in ladder}) == len(ladder)


def test_whoever_sends_it_a_priority_bulletin_queues_on_one_rung():
    ours = a_priority("ours", "17:00", "18:00", 3, origin_order=1)
    theirs = a_priority("theirs", "17:00", "18:00", 3, origin_order=2, level=UPPER)
    relay = a_bulletin("vov", "17:00", "18:00", 3, klass=BulletinClass.NORMAL, source=SourceKind.RELAY)
    for some in permutations([ours, theirs, relay]):
        assert sorted(some, key=rank_of) == [ours, theirs, relay]
