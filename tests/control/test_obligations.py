"""Stories of an obligation kept, half kept and only scheduled: what counts is what was heard of the right feed."""

from __future__ import annotations

from datetime import timedelta

import pytest

from broadcast_server.control import feeds, obligations
from broadcast_server.control.feeds import NewObligation
from broadcast_server.control.obligations import ClusterFulfilment, FulfilmentQuery
from broadcast_server.domain.clock import Window, to_ms
from broadcast_server.domain.errors import Invalid
from broadcast_server.domain.fulfilment import Period
from broadcast_server.domain.proof import Verdict
from broadcast_server.domain.recurrence import rule_to_dict
from broadcast_server.store import relays
from broadcast_server.store.relays import Relayed
from broadcast_server.store.words import ContentKind, RelayedKind
from tests.api.test_schedules_api import API, an_office, told
from tests.support.village import DONG, HA, LAN, PROVINCE, TAY, Village, a_village, at, daily

MIN = timedelta(minutes=1)
THREE_DAYS = Window(at(0), at(0, day=4))


async def an_obligation(village: Village) -> tuple[str, str]:
    """Half an hour of the province's feed at 17:00 every day: the obligation and its schedule."""
    feed = await village.feed()
    view = await feeds.oblige(
        village.desk,
        HA,
        NewObligation(
            PROVINCE, ContentKind.FEED, feed, rule_to_dict(daily("17:00")), "Quyết định mô phỏng", length=30 * MIN
        ),
    )
    return view.obligation.id, view.schedule.id


async def told_of(village: Village, obligation: str, actor=HA, **more) -> list[ClusterFulfilment]:
    window = more.pop("window", THREE_DAYS)
    return await obligations.fulfilment(village.desk, actor, FulfilmentQuery(obligation, window, **more))


def minutes(told: ClusterFulfilment) -> list[tuple[float, float]]:
    return [(share.required / MIN, share.heard / MIN) for share in told.shares]


async def test_only_what_was_heard_counts_day_by_day() -> None:
    async with a_village() as village:
        obligation, schedule = await an_obligation(village)
        for day, heard, verdict in ((1, 30, Verdict.PLAYED), (2, 12, Verdict.PARTIAL), (3, 0, Verdict.MISSED)):
            start = at(17, day=day)
            await village.heard(
                f"{schedule}@{to_ms(start)}", f"c1-{DONG}", start, planned=30 * MIN, heard=heard * MIN, verdict=verdict
            )
        by_cluster = {one.cluster_id: minutes(one) for one in await told_of(village, obligation)}
        assert by_cluster[f"c1-{DONG}"] == [(30, 30), (30, 12), (30, 0)]
        assert by_cluster[f"c2-{DONG}"] == [(30, 0)] * 3  # scheduled, and nobody heard it
        (month, *_) = await told_of(village, obligation, period=Period.MONTH)
        assert minutes(month) == [(90, 42)]


async def test_another_feed_at_that_hour_keeps_nothing() -> None:
    async with a_village() as village:
        obligation, _ = await an_obligation(village)
        other = await village.feed("Đài mô phỏng Hai")
        rule = rule_to_dict(daily("17:00"))
        view = await feeds.oblige(
            village.desk, HA, NewObligation(PROVINCE, ContentKind.FEED, other, rule, "khác", length=30 * MIN)
        )
        entry = f"{view.schedule.id}@{to_ms(at(17))}"
        await village.heard(entry, f"c1-{DONG}", at(17), planned=30 * MIN, heard=30 * MIN)
        assert minutes((await told_of(village, obligation))[0])[0] == (30, 0)


async def test_what_sounded_in_the_feeds_stead_does_not_count() -> None:
    async with a_village() as village:
        obligation, schedule = await an_obligation(village)
        feed = (await feeds.get_obligation(village.desk, HA, obligation)).obligation.content_id
        changes = [
            Relayed(feed, RelayedKind.FEED, None, "began", at(16, 59)),
            Relayed(feed, RelayedKind.SUBSTITUTE, "other", "stalled", at(17, 10)),
            Relayed(feed, RelayedKind.FEED, None, "healthy", at(17, 22)),
            Relayed(feed, None, None, "over", at(17, 30)),
        ]
        named = [(f"span-{number}", change) for number, change in enumerate(changes)]
        await village.desk.store.begin(lambda session: relays.note_relayed(session, named, at(17, 31)))
        entry = f"{schedule}@{to_ms(at(17))}"
        await village.heard(entry, f"c1-{DONG}", at(17), planned=30 * MIN, heard=30 * MIN)
        (share, *_) = (await told_of(village, obligation))[0].shares
        assert (share.heard, share.substituted, share.short) == (18 * MIN, 12 * MIN, 12 * MIN)


async def test_a_commune_sees_its_own_clusters_and_what_was_lifted_asks_no_more() -> None:
    async with a_village() as village:
        obligation, _ = await an_obligation(village)
        assert {one.unit_id for one in await told_of(village, obligation)} == {DONG, TAY}
        assert {one.unit_id for one in await told_of(village, obligation, LAN)} == {DONG}
        await village.clock.advance(24 * 3600)
        await feeds.lift_obligation(village.desk, HA, obligation)
        assert [required for required, _ in minutes((await told_of(village, obligation))[0])] == [30, 0, 0]
        with pytest.raises(Invalid, match="window_too_long"):
            await told_of(village, obligation, window=Window(at(0), at(0) + timedelta(days=400)))


async def test_over_http_cluster_by_cluster_in_pages() -> None:
    async with an_office(HA.user_id) as (village, client):
        obligation, schedule = await an_obligation(village)
        entry = f"{schedule}@{to_ms(at(17))}"
        await village.heard(entry, f"c1-{DONG}", at(17), planned=30 * MIN, heard=29 * MIN)
        here = f"{API}/obligations/{obligation}/fulfilment"
        asked = {"from": at(0).isoformat(), "to": at(0, day=2).isoformat(), "period": "day", "limit": 3}
        page = (await client.get(here, params=asked)).json()
        first = page["items"][0]
        assert (first["cluster_id"], first["required_ms"], first["heard_ms"]) == (f"c1-{DONG}", 1_800_000, 1_740_000)
        assert first["periods"][0]["short_ms"] == 60_000
        rest = (await client.get(here, params={**asked, "cursor": page["next"]})).json()
        assert (len(page["items"]), len(rest["items"]), rest["next"]) == (3, 1, None)
        problem = told(await client.get(here, params={**asked, "to": asked["from"]}), 422, "empty_validity")
        assert problem["field"] == "to"
