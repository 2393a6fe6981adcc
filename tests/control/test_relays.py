"""A feed that fails: who stands in is declared, a wrong sound is cut and stopped by a person, and it latches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime, timedelta

import pytest
import pytest_asyncio
from sqlalchemy import select

from broadcast_server.control import feeds, relays
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.desk import Desk
from broadcast_server.control.feeds import NewFeed, NewOffer
from broadcast_server.control.relays import RelaySetting
from broadcast_server.domain.errors import BroadcastError, Conflict, Invalid, NotFound, Refused, Unavailable
from broadcast_server.store import relays as rows
from broadcast_server.store.tables import AuditRow, FeedRow
from broadcast_server.store.words import FeedKind, ListenAt, RelayedKind, Role, Tier
from tests.support.desk import a_bare_desk
from tests.support.places import PROVINCE, QUYNH_LUU, YEN_THANH, a_country, somebody


@pytest_asyncio.fixture
async def desk() -> AsyncIterator[Desk]:
    async with a_bare_desk() as opened:
        await a_country(opened)
        yield opened


async def a_feed(desk: Desk, name: str, unit_id: str = PROVINCE) -> FeedRow:
    new = NewFeed(unit_id, name, Tier.PROVINCE, FeedKind.PULL, f"http://127.0.0.1:9000/{len(name)}.mp3")
    return (await feeds.add_feed(desk, OPERATOR, new)).feed


async def arranged(desk: Desk, feed: FeedRow) -> rows.Arrangement:
    now = desk.clock.now()
    return (await desk.store.read(lambda session: rows.arrangements(session, {feed.id: None}, now)))[feed.id]


async def test_who_stands_in_is_in_order_and_only_while_the_owner_may_relay_it(desk: Desk):
    main, spare, vov = await a_feed(desk, "Đài tỉnh"), await a_feed(desk, "Dự phòng"), await a_feed(desk, "VOV1")
    await relays.set_relay(desk, OPERATOR, main.id, RelaySetting((vov.id, spare.id), delay_ms=4_000))
    found = await arranged(desk, main)
    assert [each.feed_id for each in found.substitutes] == [vov.id, spare.id]
    assert found.delay_s == 4.0
    await relays.stop_feed(desk, OPERATOR, vov.id, "phát nhầm chương trình")
    assert [each.feed_id for each in (await arranged(desk, main)).substitutes] == [spare.id]
    await feeds.revoke_feed(desk, OPERATOR, main.id)
    assert (await arranged(desk, main)).is_revoked
    await feeds.revoke_feed(desk, OPERATOR, spare.id)
    now = desk.clock.now()
    assert await desk.store.read(lambda session: rows.arrangements(session, {main.id: None}, now)) == {}


@pytest.mark.parametrize(
    ("case", "code", "kind"),
    [
        ("itself", "substitute_circle", Invalid),
        ("twice", "substitute_twice", Invalid),
        ("nobody", "unknown_feed", Invalid),
        ("foreign", "unknown_feed", Invalid),
        ("not_offered", "substitute_not_offered", Refused),
        ("six", "too_many_substitutes", Invalid),
        ("late", "delay_out_of_range", Invalid),
    ],
)
async def test_a_bad_arrangement_is_refused_by_its_field(desk: Desk, case: str, code: str, kind: type[BroadcastError]):
    main, spare = await a_feed(desk, "Đài xã", YEN_THANH), await a_feed(desk, "Dự phòng", YEN_THANH)
    foreign = await a_feed(desk, "Đài bạn", QUYNH_LUU)
    setting = {
        "itself": RelaySetting((main.id,)),
        "twice": RelaySetting((spare.id, spare.id)),
        "nobody": RelaySetting(("f-none",)),
        "foreign": RelaySetting((foreign.id,)),
        "not_offered": RelaySetting(((await a_feed(desk, "Đài tỉnh")).id,)),
        "six": RelaySetting(tuple(f"f{number}" for number in range(6))),
        "late": RelaySetting(delay_ms=30_001),
    }[case]
    with pytest.raises(kind) as refused:
        await relays.set_relay(desk, OPERATOR, main.id, setting)
    assert refused.value.code == code
    assert "field" in refused.value.facts


async def test_an_offered_feed_may_stand_in(desk: Desk):
    main, vov = await a_feed(desk, "Đài xã", YEN_THANH), await a_feed(desk, "VOV1")
    await feeds.offer_feed(desk, OPERATOR, NewOffer(vov.id, YEN_THANH, "CV 9"))
    await relays.set_relay(desk, OPERATOR, main.id, RelaySetting((vov.id,)))
    assert [each.feed_id for each in (await arranged(desk, main)).substitutes] == [vov.id]


async def test_cut_and_stop_latch_until_they_are_released_and_are_in_the_audit(desk: Desk):
    main = await a_feed(desk, "Đài tỉnh")
    await relays.cut_feed(desk, OPERATOR, main.id)
    await relays.cut_feed(desk, OPERATOR, main.id)
    assert (await arranged(desk, main)).barred == "cut"
    await relays.stop_feed(desk, OPERATOR, main.id, "nội dung sai")
    with pytest.raises(Conflict):
        await relays.stop_feed(desk, OPERATOR, main.id, "lý do khác")
    assert (await arranged(desk, main)).barred == "stopped"
    await relays.release_feed(desk, OPERATOR, main.id)
    assert (await arranged(desk, main)).barred == "cut"
    await relays.release_cut(desk, OPERATOR, main.id)
    assert (await arranged(desk, main)).barred is None
    verbs = await desk.store.read(lambda session: list(session.scalars(select(AuditRow.verb))))
    assert sorted(verb for verb in verbs if verb.startswith("feed.") and verb != "feed.add") == [
        "feed.cut",
        "feed.cut_release",
        "feed.release",
        "feed.stop",
    ]


@pytest.mark.parametrize(
    ("role", "place", "may"),
    [
        (Role.PROVINCE_EDITOR, PROVINCE, True),
        (Role.LEADER, PROVINCE, True),
        (Role.ADMIN, PROVINCE, True),
        (Role.BROADCASTER, YEN_THANH, False),
        (Role.INSPECTOR, PROVINCE, False),
    ],
)
async def test_whoever_may_stop_at_the_owners_place_may_stop_the_feed(desk: Desk, role: Role, place: str, *, may: bool):
    main, actor = await a_feed(desk, "Đài tỉnh"), await somebody(desk, role, place)
    if may:
        assert (await relays.stop_feed(desk, actor, main.id, "sai")).feed.stopped_by == actor.login
    else:
        with pytest.raises(Refused if place == PROVINCE else NotFound):
            await relays.stop_feed(desk, actor, main.id, "sai")


class Studio:
    """The relay's monitor, as control sees it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ListenAt]] = []

    async def listen(self, feed_id: str, at: ListenAt) -> AsyncGenerator[bytes, None]:
        self.asked.append((feed_id, at))
        yield b"OggS"


async def test_listening_in_is_for_those_who_may_stop_something_and_is_audited(desk: Desk):
    main, studio = await a_feed(desk, "Đài tỉnh"), Studio()
    await feeds.offer_feed(desk, OPERATOR, NewOffer(main.id, YEN_THANH, "CV 9"))
    lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
    sound = await relays.listen_in(desk, studio, lan, main.id, ListenAt.SOURCE)
    assert [page async for page in sound] == [b"OggS"]
    assert studio.asked == [(main.id, ListenAt.SOURCE)]
    newest = await desk.store.read(
        lambda session: session.scalars(select(AuditRow).order_by(AuditRow.sequence.desc())).first()
    )
    assert newest is not None
    assert (newest.verb, newest.actor) == ("feed.listen", lan.login)
    with pytest.raises(Refused):
        await relays.listen_in(desk, studio, await somebody(desk, Role.TECHNICIAN, YEN_THANH), main.id)
    with pytest.raises(Unavailable):
        await relays.listen_in(desk, None, lan, main.id)


async def test_the_play_log_tells_what_sounded_instead_and_when(desk: Desk):
    main, spare = await a_feed(desk, "Đài tỉnh"), await a_feed(desk, "Dự phòng")
    began = desk.clock.now()

    def at(minute: int) -> datetime:
        return began + timedelta(minutes=minute)

    changes = [
        rows.Relayed(main.id, RelayedKind.FEED, None, "started", at(0)),
        rows.Relayed(main.id, RelayedKind.SUBSTITUTE, spare.id, "stalled", at(10)),
        rows.Relayed(main.id, RelayedKind.FEED, None, "returned", at(12)),
        rows.Relayed(main.id, RelayedKind.SILENCE, None, "source_cut", at(28)),
        rows.Relayed(main.id, None, None, "window_over", at(31)),
    ]
    numbered = [(f"s{number}", change) for number, change in enumerate(changes)]
    await desk.store.begin(lambda session: rows.note_relayed(session, numbered, at(31)))
    wanted = [(main.id, at(0), at(30)), (main.id, at(11), at(13)), (main.id, at(13), at(20))]
    found = await desk.store.read(lambda session: rows.sounded_instead(session, wanted))
    told = [[(each.kind, each.name, each.reason, each.since, each.until) for each in one] for one in found]
    assert told == [
        [
            (RelayedKind.SUBSTITUTE, "Dự phòng", "stalled", at(10), at(12)),
            (RelayedKind.SILENCE, None, "source_cut", at(28), at(30)),
        ],
        [(RelayedKind.SUBSTITUTE, "Dự phòng", "stalled", at(11), at(12))],
        [],
    ]
