"""The queries of places, fleet, feeds and people give the same answers on both databases."""

from datetime import timedelta

from broadcast_server.control import enrolment, feeds, fleet, people
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.enrolment import Enrol, NewEnrolmentToken
from broadcast_server.control.feeds import FeedQuery, NewFeed, NewObligation, NewOffer
from broadcast_server.control.fleet import ClusterQuery, NodeQuery, Order, OrderVerb
from broadcast_server.store import audit, conflicts, places
from broadcast_server.store import feeds as feed_rows
from broadcast_server.store import fleet as fleet_rows
from broadcast_server.store.words import ConflictKind, ContentKind, FeedKind, FeedState, Role, Tier
from tests.support.desk import a_desk_of
from tests.support.places import COUNTRY, HAMLET, PROVINCE, QUYNH_LUU, YEN_THANH, a_country, somebody

RULE = {"kind": "weekly", "weekdays": ["mo", "tu", "we", "th", "fr", "sa", "su"], "times": ["06:00"]}


async def test_the_tree(store):
    desk = a_desk_of(store)
    await a_country(desk)
    today = places.local_date(desk.clock.now())
    assert await store.read(lambda session: places.subtree_of(session, {YEN_THANH}, today)) == {YEN_THANH, HAMLET}
    assert await store.read(lambda session: places.subtree_of(session, {COUNTRY}, today - timedelta(days=1))) == {
        COUNTRY
    }
    paths = await store.read(lambda session: places.paths_of(session, [HAMLET, PROVINCE], today))
    assert paths == {HAMLET: (HAMLET, YEN_THANH, PROVINCE, COUNTRY), PROVINCE: (PROVINCE, COUNTRY)}
    found = await store.read(
        lambda session: places.list_units(session, roots=frozenset({PROVINCE}), on=today, folded="xa", limit=9)
    )
    assert [row.id for row in found] == [QUYNH_LUU, YEN_THANH]


async def test_the_fleet(store):
    desk = a_desk_of(store)
    await a_country(desk)
    trial = NewEnrolmentToken(HAMLET, 3, activates=True)
    token = (await enrolment.create_enrolment_token(desk, OPERATOR, trial)).secret
    told = [await enrolment.enrol(desk, Enrol(token, f"{number:064x}", "sim", "1")) for number in (1, 2)]
    again = await enrolment.enrol(desk, Enrol(token, f"{3:064x}", "sim", "1", "C01"))
    assert (await store.read(fleet_rows.password_lines)).keys() == {told[1].node_id, again.node_id}
    tech = await somebody(desk, Role.TECHNICIAN, PROVINCE)
    seen = await fleet.list_nodes(desk, tech, NodeQuery(within=YEN_THANH, retired=True))
    assert {view.node.id for view in seen} == {told[0].node_id, told[1].node_id, again.node_id}
    assert len(await fleet.list_clusters(desk, tech, ClusterQuery(name="cum 0"))) == 2
    assert [view.cluster.code for view in await fleet.list_clusters(desk, tech, ClusterQuery(name="c02"))] == ["C02"]
    await fleet.order_node(desk, tech, Order(again.node_id, OrderVerb.IDENTIFY))
    assert len(await fleet.list_orders(desk, tech, again.node_id)) == 1


async def test_feeds_offers_and_conflicts(store):
    desk = a_desk_of(store)
    await a_country(desk)
    now = desk.clock.now()
    lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
    new = NewFeed(COUNTRY, "VOV (mô phỏng)", Tier.NATIONAL, FeedKind.PUSH)
    made = await feeds.add_feed(desk, OPERATOR, new)
    assert await feeds.list_feeds(desk, lan, FeedQuery()) == []
    await feeds.offer_feed(desk, OPERATOR, NewOffer(made.feed.id, PROVINCE, "HĐ 1", valid_to=now + timedelta(days=9)))
    assert [view.feed.id for view in await feeds.list_feeds(desk, lan, FeedQuery(YEN_THANH, name="vov"))] == [
        made.feed.id
    ]
    laid = await feeds.oblige(
        desk,
        OPERATOR,
        NewObligation(PROVINCE, ContentKind.FEED, made.feed.id, RULE, "QĐ 1", length=timedelta(minutes=30)),
    )
    (conflict,) = await feeds.list_conflicts(desk, lan, feed_id=made.feed.id) or [None]
    assert conflict is None  # it is the province's schedule
    (conflict,) = await feeds.list_conflicts(desk, OPERATOR, feed_id=made.feed.id)
    assert (conflict.kind, conflict.schedule_id) == (ConflictKind.OFFER_EXPIRES, laid.schedule.id)
    assert [view.obligation.id for view in await feeds.list_obligations(desk, lan)] == [laid.obligation.id]
    for state in (FeedState.DEAD, FeedState.DEAD, FeedState.HEALTHY):
        await store.begin(
            lambda session, state=state: feed_rows.put_status(
                session, made.feed.id, state=state, reason=None, now=now, body={}
            )
        )
    (view,) = await feeds.list_feeds(desk, OPERATOR, FeedQuery())
    assert view.status is not None
    assert view.status.state is FeedState.HEALTHY
    await store.begin(lambda session: conflicts.open_offer_conflicts(session, now=now, new_id=desk.chance.new_id))
    assert await store.read(lambda session: feed_rows.credential_versions(session, now)) == {made.feed.id: 1}
    assert await store.read(audit.verify) is None


async def test_people(store):
    desk = a_desk_of(store)
    await a_country(desk)
    head = await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH, "ha")
    await somebody(desk, Role.BROADCASTER, HAMLET, "lan")
    await somebody(desk, Role.BROADCASTER, QUYNH_LUU, "minh")
    assert [view.user.login for view in await people.list_users(desk, head)] == ["ha", "lan"]
    assert [view.user.login for view in await people.list_users(desk, OPERATOR, after="ha")] == ["lan", "minh"]
