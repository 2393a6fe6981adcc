"""Stories of two bulletins of ưu tiên due at once: the commune's order, the default, and who may not reorder whom."""

from __future__ import annotations

import pytest

from broadcast_server.control import scheduling, sending, ties
from broadcast_server.control.scheduling import NewSchedule
from broadcast_server.control.ties import OrderTie
from broadcast_server.domain.errors import Conflict, Invalid, Refused
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.store.tables import TieRow
from broadcast_server.store.words import ContentKind, TieState
from speaker_protocol.rules import BulletinClass
from tests.control.test_sending import audited, heard, programme, to
from tests.support.village import DONG, HA, LAN, NGOC, PROVINCE, TAY, Village, a_village, at, daily, once


async def two_sent(village: Village, *units: str) -> None:
    """Dịch tả lợn and Cháy rừng, both for the session at 17:00."""
    for title in ("Dịch tả lợn", "Cháy rừng"):
        bulletin = await village.bulletin(title, unit=PROVINCE, klass=BulletinClass.PRIORITY)
        await sending.send_bulletin(village.desk, HA, to(bulletin, *(units or (DONG,))))


async def the_tie(village: Village) -> TieRow:
    (row,) = await ties.list_ties(village.desk, LAN, unit_id=DONG)
    return row


async def test_two_priority_bulletins_wait_for_the_commune_with_options_deadline_and_default() -> None:
    async with a_village() as village:
        await programme(village, daily("17:00"))
        await two_sent(village)
        row = await the_tie(village)
        assert (row.state, row.collides_at, row.deadline) == (TieState.PENDING, at(17), at(16, 55))
        assert [option["title"] for option in row.options] == ["Dịch tả lợn", "Cháy rừng"]
        assert row.options[0]["before_next_by"] == "reason_entry_id"
        assert row.chosen == [option["entry_id"] for option in row.options]
        assert await ties.attend(village.desk) == "0 ties opened, 0 by default"
        assert (await the_tie(village)).id == row.id


async def test_the_commune_decides_and_that_is_what_is_heard() -> None:
    async with a_village() as village:
        await programme(village, daily("17:00"))
        await two_sent(village)
        row = await the_tie(village)
        assert [title for title, _ in await heard(village)] == ["Dịch tả lợn", "Cháy rừng", "Tin xã"]
        decided = await ties.order_tie(village.desk, LAN, OrderTie(row.id, tuple(reversed(row.chosen))))
        assert (decided.state, decided.decided_by) == (TieState.DECIDED, "lan")
        assert [title for title, _ in await heard(village)] == ["Cháy rừng", "Dịch tả lợn", "Tin xã"]
        await ties.order_tie(village.desk, LAN, OrderTie(row.id, tuple(row.chosen)))
        await village.clock.advance(8 * 3600)
        assert await ties.attend(village.desk) == "0 ties opened, 0 by default"
        assert (await the_tie(village)).state is TieState.DECIDED
        assert ("tie.order", "lan", DONG) in await audited(village)


async def test_at_the_deadline_the_machine_takes_the_default_once_and_says_so() -> None:
    async with a_village() as village:
        await programme(village, daily("17:00"))
        await two_sent(village)
        before = await heard(village)
        await village.clock.advance(7 * 3600 + 55 * 60)
        assert await ties.attend(village.desk) == "0 ties opened, 1 by default"
        assert await ties.attend(village.desk) == "0 ties opened, 0 by default"
        row = await the_tie(village)
        assert (row.state, row.decided_by) == (TieState.DEFAULTED, "server")
        assert await heard(village) == before
        assert [one for one in await audited(village) if one[0] == "tie.default"] == [("tie.default", "server", DONG)]
        with pytest.raises(Conflict, match="tie_over"):
            await ties.order_tie(village.desk, LAN, OrderTie(row.id, tuple(row.chosen)))


async def test_the_communes_own_priority_bulletin_may_go_before_the_provinces() -> None:
    async with a_village() as village:
        await programme(village, daily("17:00"))
        upper = await village.bulletin("Tỉnh", unit=PROVINCE, klass=BulletinClass.PRIORITY)
        own = await village.bulletin("Xã", unit=DONG, klass=BulletinClass.PRIORITY)
        await sending.send_bulletin(village.desk, HA, to(upper, DONG))
        await scheduling.create_schedule(
            village.desk,
            LAN,
            NewSchedule(DONG, ContentKind.BULLETIN, own, once(at(17)), max_wait=at(18) - at(17), accept_conflicts=True),
        )
        assert await ties.attend(village.desk) == "1 ties opened, 0 by default"
        row = await the_tie(village)
        assert (
            row.options[0]["before_next_by"] == "reason_ladder"
        )  # the declared default: what was sent down goes first
        await ties.order_tie(village.desk, LAN, OrderTie(row.id, tuple(reversed(row.chosen))))
        assert [title for title, _ in await heard(village)] == ["Xã", "Tỉnh", "Tin xã"]


async def test_who_may_not_order_and_what_is_no_order() -> None:
    async with a_village() as village:
        await programme(village, daily("17:00"))
        await two_sent(village)
        row = await the_tie(village)
        with pytest.raises(Refused, match="not_permitted"):
            await ties.order_tie(village.desk, NGOC, OrderTie(row.id, tuple(row.chosen)))
        for wrong in ((row.chosen[0],), (row.chosen[0], row.chosen[0]), (*row.chosen, "x@1")):
            with pytest.raises(Invalid, match="order_incomplete") as refused:
                await ties.order_tie(village.desk, LAN, OrderTie(row.id, wrong))
            assert (refused.value.facts["field"], refused.value.facts["fix"]) == ("entry_ids", "name_every_entry")


async def test_a_commune_cannot_reorder_what_sounds_in_its_neighbour_too() -> None:
    async with a_village() as village:
        both = (Target(TargetKind.UNIT, DONG), Target(TargetKind.UNIT, TAY))
        for title in ("Một", "Hai"):
            bulletin = await village.bulletin(title, unit=PROVINCE, klass=BulletinClass.PRIORITY)
            request = NewSchedule(
                PROVINCE, ContentKind.BULLETIN, bulletin, once(at(17)), targets=both, max_wait=at(18) - at(17),
                accept_conflicts=True,
            )  # fmt: skip
            await scheduling.create_schedule(village.desk, HA, request)
        assert await ties.attend(village.desk) == "2 ties opened, 0 by default"
        row = await the_tie(village)
        with pytest.raises(Invalid, match="order_fixed") as refused:
            await ties.order_tie(village.desk, LAN, OrderTie(row.id, tuple(reversed(row.chosen))))
        assert (refused.value.facts["field"], refused.value.facts["fix"]) == ("entry_ids", "keep_their_order")
        assert (await ties.get_tie(village.desk, LAN, row.id)).state is TieState.PENDING
        assert [title for title, _ in await heard(village)] == ["Một", "Hai"]


async def test_what_does_not_collide_any_more_asks_nobody() -> None:
    async with a_village() as village:
        await programme(village, daily("17:00"))
        await two_sent(village)
        sent = await sending.list_sendings(village.desk, HA)
        await sending.recall(village.desk, HA, sent[0].id, "gửi nhầm")
        await ties.attend(village.desk)
        assert (await the_tie(village)).state is TieState.GONE


async def test_each_commune_has_its_own_decision() -> None:
    async with a_village() as village:
        await programme(village, daily("17:00"))
        await programme(village, daily("17:00"), unit=TAY)
        await two_sent(village, DONG, TAY)
        row = await the_tie(village)
        await ties.order_tie(village.desk, LAN, OrderTie(row.id, tuple(reversed(row.chosen))))
        assert [title for title, _ in await heard(village, f"c1-{TAY}")] == ["Dịch tả lợn", "Cháy rừng", "Tin xã"]
        states = {one.unit_id: one.state for one in await ties.list_ties(village.desk, HA)}
        assert states == {DONG: TieState.DECIDED, TAY: TieState.PENDING}


async def test_the_alarm_clocks_watch_looks_only_when_something_changed_and_still_takes_defaults() -> None:
    async with a_village() as village:
        watch = ties.Watch(village.desk)
        assert await watch.attend() == "0 ties opened, 0 by default"
        for title in ("Một", "Hai"):
            bulletin = await village.bulletin(title, unit=PROVINCE, klass=BulletinClass.PRIORITY)
            request = NewSchedule(
                PROVINCE, ContentKind.BULLETIN, bulletin, once(at(9, 8)), targets=(Target(TargetKind.UNIT, DONG),),
                max_wait=at(10) - at(9), accept_conflicts=True,
            )  # fmt: skip
            await scheduling.create_schedule(village.desk, HA, request)
        assert await watch.attend() == "1 ties opened, 0 by default"
        assert await watch.attend() == "nothing changed, 0 by default"
        await village.clock.advance(3 * 60)
        assert await watch.attend() == "nothing changed, 1 by default"
        assert (await the_tie(village)).state is TieState.DEFAULTED
