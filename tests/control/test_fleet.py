"""A box is screwed to a pole: tokens, enrolment, replacement, retirement, orders; clusters and groups around it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta

import pytest
import pytest_asyncio
from sqlalchemy import select

from broadcast_server.control import enrolment, fleet, people, places
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.desk import Desk
from broadcast_server.control.enrolment import Enrol, Enrolled, NewEnrolmentToken
from broadcast_server.control.fleet import (
    ClusterChange,
    ClusterConfig,
    ClusterQuery,
    NewCluster,
    NodeQuery,
    Order,
    OrderVerb,
    VolumeStep,
)
from broadcast_server.control.people import NewGrant
from broadcast_server.control.places import NewUnit
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused, Unavailable
from broadcast_server.domain.policy import QuietHours
from broadcast_server.mqtt.broker import password_is_right, password_line
from broadcast_server.store import audit
from broadcast_server.store import fleet as rows
from broadcast_server.store.tables import AuditRow, NodeRow, NodeStatusRow
from broadcast_server.store.words import OutboxState, Role
from tests.support.clock import FakeClock
from tests.support.desk import a_bare_desk
from tests.support.places import COUNTRY, HAMLET, PROVINCE, QUYNH_LUU, YEN_THANH, a_country, somebody


@pytest_asyncio.fixture
async def desk() -> AsyncIterator[Desk]:
    async with a_bare_desk() as opened:
        await a_country(opened)
        yield opened


def clock_of(desk: Desk) -> FakeClock:
    assert isinstance(desk.clock, FakeClock)
    return desk.clock


async def a_token(desk: Desk, uses: int = 1, unit_id: str = YEN_THANH) -> str:
    request = NewEnrolmentToken(unit_id, uses, activates=True)
    return (await enrolment.create_enrolment_token(desk, OPERATOR, request)).secret


def a_box(token: str, number: int = 1, cluster_code: str | None = None) -> Enrol:
    return Enrol(token, f"{number:064x}", "sim-1", "0.1.0", cluster_code)


# -- enrolment --------------------------------------------------------------------------------------------------------


async def test_a_box_enrols_and_is_told_all_it_needs_once(desk: Desk):
    told = await enrolment.enrol(desk, a_box(await a_token(desk)))
    assert told.path == (YEN_THANH, PROVINCE, COUNTRY)
    assert told.broker == {"host": "127.0.0.1", "port": 1883, "tls": False, "ca_pem": None}
    assert told.root_public_key == "ab" * 32
    assert told.assets_url == "http://127.0.0.1:8080/api/v1/assets"
    (cluster,) = await fleet.list_clusters(desk, OPERATOR, ClusterQuery())
    assert (cluster.cluster.id, cluster.cluster.code, cluster.cluster.name) == (told.cluster_id, "C01", "Cụm 01")
    assert cluster.node_id == told.node_id
    found = await desk.store.read(lambda session: rows.node_of_asset_token(session, told.asset_token))
    assert found is not None
    assert found.id == told.node_id


async def test_the_password_is_one_that_mosquitto_checks(desk: Desk):
    told = await enrolment.enrol(desk, a_box(await a_token(desk)))
    lines = await desk.store.read(rows.password_lines)
    assert lines.keys() == {told.node_id}
    assert lines[told.node_id].startswith(f"{told.node_id}:$7$101$")
    assert password_is_right(lines[told.node_id], told.password)
    salt = b"twelve bytes"
    assert rows.mosquitto_password_line("n", "p", salt) == password_line("n", "p", salt)


async def test_no_secret_is_written_anywhere(desk: Desk):
    token = await a_token(desk)
    told = await enrolment.enrol(desk, a_box(token))

    def everything(session) -> str:
        return repr([row.detail for row in session.scalars(select(AuditRow))]) + repr(
            [(row.broker_password_line, row.asset_token_hash) for row in session.scalars(select(NodeRow))]
        )

    written = await desk.store.read(everything)
    for secret in (token, told.password, told.asset_token):
        assert secret not in written
    assert await desk.store.read(audit.verify) is None


async def test_a_token_is_good_for_its_uses(desk: Desk):
    token = await a_token(desk, uses=2)
    await enrolment.enrol(desk, a_box(token, 1))
    await enrolment.enrol(desk, a_box(token, 2))
    with pytest.raises(Refused, match="enrolment_token_spent"):
        await enrolment.enrol(desk, a_box(token, 3))
    codes = [view.cluster.code for view in await fleet.list_clusters(desk, OPERATOR, ClusterQuery())]
    assert sorted(codes) == ["C01", "C02"]


async def test_a_replayed_enrolment_is_a_conflict_and_costs_no_use(desk: Desk):
    token = await a_token(desk, uses=2)
    first = await enrolment.enrol(desk, a_box(token, 1))
    with pytest.raises(Conflict, match="node_already_enrolled") as refused:
        await enrolment.enrol(desk, a_box(token, 1))
    assert refused.value.facts["node_id"] == first.node_id
    await enrolment.enrol(desk, a_box(token, 2))


async def test_a_wrong_or_expired_or_voided_token_enrols_nobody(desk: Desk):
    with pytest.raises(Refused, match="enrolment_token_unknown"):
        await enrolment.enrol(desk, a_box("enr_guessed"))
    token = await a_token(desk)
    await clock_of(desk).advance(24 * 3_600)
    with pytest.raises(Refused, match="enrolment_token_expired"):
        await enrolment.enrol(desk, a_box(token))
    voided = await enrolment.create_enrolment_token(desk, OPERATOR, NewEnrolmentToken(YEN_THANH))
    await enrolment.void_enrolment_token(desk, OPERATOR, voided.token.id)
    with pytest.raises(Refused, match="enrolment_token_spent"):
        await enrolment.enrol(desk, a_box(voided.secret))
    assert await fleet.list_nodes(desk, OPERATOR, NodeQuery()) == []


async def test_a_key_that_is_no_key_is_refused_before_anything(desk: Desk):
    token = await a_token(desk)
    for key in ("", "AB" * 32, "0" * 63):
        with pytest.raises(Invalid, match="public_key_invalid"):
            await enrolment.enrol(desk, replace(a_box(token), public_key=key))
    assert (await enrolment.enrol(desk, a_box(token))).node_id


async def test_before_the_server_first_ran_a_box_is_told_to_try_later_and_nothing_is_spent():
    async with a_bare_desk() as desk:
        await places.create_unit(desk, OPERATOR, NewUnit("commune", "Xã Mới", None, "x"))
        token = await a_token(desk, unit_id="x")
        with pytest.raises(Unavailable, match="fact_unknown"):
            await enrolment.enrol(desk, a_box(token))
        (left,) = await enrolment.list_enrolment_tokens(desk, OPERATOR, "x")
        assert left.uses_left == 1


# -- repair -----------------------------------------------------------------------------------------------------------


async def replaced(desk: Desk) -> tuple[Enrolled, Enrolled]:
    old = await enrolment.enrol(desk, a_box(await a_token(desk), 1))
    new = await enrolment.enrol(desk, a_box(await a_token(desk), 2, cluster_code="C01"))
    return old, new


async def test_a_repair_swaps_the_node_and_the_cluster_stays(desk: Desk):
    old, new = await replaced(desk)
    assert (new.cluster_id, new.replaced_node_id) == (old.cluster_id, old.node_id)
    assert (await desk.store.read(rows.password_lines)).keys() == {new.node_id}
    assert await desk.store.read(lambda session: rows.node_of_asset_token(session, old.asset_token)) is None
    assert (await fleet.get_node(desk, OPERATOR, old.node_id)).node.retired_at is not None


async def test_a_repaired_box_may_be_enrolled_again_elsewhere(desk: Desk):
    old, _ = await replaced(desk)
    again = await enrolment.enrol(desk, a_box(await a_token(desk), 1, cluster_code="C07"))
    assert again.node_id != old.node_id
    codes = {view.cluster.code for view in await fleet.list_clusters(desk, OPERATOR, ClusterQuery())}
    assert codes == {"C01", "C07"}


async def test_a_retired_cluster_takes_its_node_along_and_takes_no_new_one(desk: Desk):
    told = await enrolment.enrol(desk, a_box(await a_token(desk)))
    await fleet.retire_cluster(desk, OPERATOR, told.cluster_id)
    assert await desk.store.read(rows.password_lines) == {}
    with pytest.raises(Conflict, match="cluster_retired"):
        await enrolment.enrol(desk, a_box(await a_token(desk), 2, cluster_code="C01"))
    with pytest.raises(Conflict, match="cluster_retired"):
        await fleet.retire_cluster(desk, OPERATOR, told.cluster_id)


# -- who may ----------------------------------------------------------------------------------------------------------


async def test_the_technician_of_one_commune_sees_and_touches_no_other(desk: Desk):
    told = await enrolment.enrol(desk, a_box(await a_token(desk)))
    tech = await somebody(desk, Role.TECHNICIAN, QUYNH_LUU)
    assert await fleet.list_nodes(desk, tech, NodeQuery()) == []
    for forbidden, code in (
        (fleet.get_node(desk, tech, told.node_id), "unknown_node"),
        (fleet.retire_node(desk, tech, told.node_id), "unknown_node"),
        (fleet.order_node(desk, tech, Order(told.node_id, OrderVerb.IDENTIFY)), "unknown_node"),
        (enrolment.create_enrolment_token(desk, tech, NewEnrolmentToken(YEN_THANH)), "unknown_unit"),
        (fleet.list_nodes(desk, tech, NodeQuery(within=PROVINCE)), "unknown_unit"),
        (fleet.create_cluster(desk, tech, NewCluster(YEN_THANH)), "unknown_unit"),
    ):
        with pytest.raises(NotFound, match=code):
            await forbidden


async def test_a_broadcaster_sets_the_volume_and_nothing_else(desk: Desk):
    made = await fleet.create_cluster(desk, OPERATOR, NewCluster(HAMLET, "Loa nhà văn hóa"))
    lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
    quieter = ClusterConfig((VolumeStep(0, -12.0), VolumeStep(7 * 60, 0.0)))
    view = await fleet.update_cluster(desk, lan, made.cluster.id, ClusterChange(config=quieter))
    assert view.cluster.config["volume"][0] == {"from_minute": 0, "gain_db": -12.0}
    with pytest.raises(Refused, match="not_permitted"):
        await fleet.update_cluster(desk, lan, made.cluster.id, ClusterChange(name="Loa của Lan"))


# -- the register -----------------------------------------------------------------------------------------------------


async def test_nodes_are_listed_with_their_last_word(desk: Desk):
    told = await enrolment.enrol(desk, a_box(await a_token(desk, uses=3), 1))
    silent = await enrolment.enrol(desk, a_box(await a_token(desk), 2))
    now = desk.clock.now()
    await desk.store.begin(
        lambda session: session.add(
            NodeStatusRow(
                node_id=told.node_id,
                link="online",
                since=now,
                seen_at=now,
                boot_id="b",
                plan_sha256=None,
                sounding=None,
                body={},
            )
        )
    )
    seen = {view.node.id: view.status for view in await fleet.list_nodes(desk, OPERATOR, NodeQuery())}
    assert seen[silent.node_id] is None
    status = seen[told.node_id]
    assert status is not None
    assert status.link == "online"
    online = await fleet.list_nodes(desk, OPERATOR, NodeQuery(link="online"))
    assert [view.node.id for view in online] == [told.node_id]


async def test_a_cluster_code_is_given_once_in_its_unit(desk: Desk):
    await fleet.create_cluster(desk, OPERATOR, NewCluster(YEN_THANH, code="UB"))
    await fleet.create_cluster(desk, OPERATOR, NewCluster(QUYNH_LUU, code="UB"))
    with pytest.raises(Conflict, match="cluster_code_taken"):
        await fleet.create_cluster(desk, OPERATOR, NewCluster(YEN_THANH, code="UB"))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ClusterConfig((VolumeStep(600, 0.0), VolumeStep(60, 0.0))),
        lambda: ClusterConfig((VolumeStep(1_440, 0.0),)),
        lambda: ClusterConfig((VolumeStep(0, 40.0),)),
        lambda: ClusterConfig(delay_trim_ms=9_000),
        lambda: ClusterConfig(stagger_slot=8),
        lambda: ClusterConfig(quiet=(QuietHours(time(9), time(9)),)),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(Invalid) as refused:
        wrong()
    assert refused.value.facts["field"].startswith("config.")


def test_a_config_is_stored_as_the_wire_and_the_policy_read_it():
    config = ClusterConfig((VolumeStep(0, -3.0),), 120, (QuietHours(time(11, 30), time(13)),), stagger_slot=2)
    assert config.to_dict()["quiet"] == [{"from": "11:30", "to": "13:00"}]
    assert ClusterConfig.from_dict(config.to_dict()) == config


async def test_a_group_holds_clusters_of_its_unit_only(desk: Desk):
    inside = (await fleet.create_cluster(desk, OPERATOR, NewCluster(HAMLET))).cluster.id
    outside = (await fleet.create_cluster(desk, OPERATOR, NewCluster(QUYNH_LUU))).cluster.id
    made = await fleet.create_group(desk, OPERATOR, YEN_THANH, "Cụm gần trường học", (inside,))
    assert made.cluster_ids == (inside,)
    with pytest.raises(Invalid, match="unknown_cluster") as refused:
        await fleet.update_group(desk, OPERATOR, made.group.id, cluster_ids=(inside, outside))
    assert refused.value.facts["field"] == "cluster_ids[1]"
    assert (await fleet.get_group(desk, OPERATOR, made.group.id)).cluster_ids == (inside,)
    assert (await fleet.update_group(desk, OPERATOR, made.group.id, cluster_ids=())).cluster_ids == ()


# -- orders -----------------------------------------------------------------------------------------------------------


async def test_an_order_waits_in_the_outbox_until_it_expires(desk: Desk):
    told = await enrolment.enrol(desk, a_box(await a_token(desk)))
    tech = await somebody(desk, Role.TECHNICIAN, YEN_THANH)
    row = await fleet.order_node(desk, tech, Order(told.node_id, OrderVerb.IDENTIFY, 5))
    assert row.body == {"order_id": row.id, "verb": "identify", "seconds": 5}
    assert (row.subject, row.state) == (f"order/{row.id}", OutboxState.PENDING)
    assert row.expires_at == desk.clock.now() + timedelta(seconds=60)
    await fleet.retire_node(desk, tech, told.node_id)
    (order,) = await fleet.list_orders(desk, tech, told.node_id)
    assert order.state is OutboxState.EXPIRED
    with pytest.raises(Conflict, match="node_retired"):
        await fleet.order_node(desk, tech, Order(told.node_id, OrderVerb.IDENTIFY))


@pytest.mark.parametrize(
    ("local", "may"),
    [("2026-06-01T16:00", True), ("2026-06-01T21:58", True), ("2026-06-01T21:59", False), ("2026-06-02T03:15", False)],
)
async def test_a_test_tone_never_sounds_at_night(desk: Desk, local: str, may: bool):
    told = await enrolment.enrol(desk, a_box(await a_token(desk)))
    wanted = datetime.fromisoformat(f"{local}:00+07:00").astimezone(UTC)
    await clock_of(desk).advance((wanted - desk.clock.now()).total_seconds() or 0.001)
    tone = Order(told.node_id, OrderVerb.TEST_TONE, 3, timedelta(seconds=60))
    if may:
        assert (await fleet.order_node(desk, OPERATOR, tone)).state is OutboxState.PENDING
    else:
        with pytest.raises(Refused, match="quiet_hours"):
            await fleet.order_node(desk, OPERATOR, tone)
        assert await fleet.order_node(desk, OPERATOR, Order(told.node_id, OrderVerb.IDENTIFY, 0))


async def test_a_cluster_at_the_school_has_quiet_hours_of_its_own(desk: Desk):
    told = await enrolment.enrol(desk, a_box(await a_token(desk)))
    school = ClusterConfig(quiet=(QuietHours(time(15, 30), time(17)),))
    await fleet.update_cluster(desk, OPERATOR, told.cluster_id, ClusterChange(config=school))
    with pytest.raises(Refused, match="quiet_hours"):  # it is 16:00 in Vietnam
        await fleet.order_node(desk, OPERATOR, Order(told.node_id, OrderVerb.TEST_TONE))


async def test_a_reboot_is_for_who_may_take_the_node_away(desk: Desk):
    told = await enrolment.enrol(desk, a_box(await a_token(desk)))
    lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
    with pytest.raises(Refused, match="not_permitted"):
        await fleet.order_node(desk, lan, Order(told.node_id, OrderVerb.REBOOT))
    await people.grant_role(desk, OPERATOR, lan.user_id, NewGrant(Role.TECHNICIAN, YEN_THANH))
    assert await fleet.order_node(desk, lan, Order(told.node_id, OrderVerb.REBOOT))
