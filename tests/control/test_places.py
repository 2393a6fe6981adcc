"""The dated tree as people change it: new places, moves, a law that closes a kind, the import of Vietnam."""

import time
from collections.abc import AsyncIterator
from datetime import date, timedelta

import pytest
import pytest_asyncio

from broadcast_server.control import feeds, places
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.desk import Desk
from broadcast_server.control.feeds import NewFeed
from broadcast_server.control.places import MoveUnit, NewUnit, UnitQuery
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused
from broadcast_server.store import audit
from broadcast_server.store import places as rows
from broadcast_server.store.words import FeedKind, Role, Tier
from tests.support.desk import a_bare_desk, a_desk_of
from tests.support.places import COUNTRY, HAMLET, PROVINCE, QUYNH_LUU, YEN_THANH, a_country, somebody

TODAY = date(2026, 6, 1)


@pytest_asyncio.fixture
async def desk() -> AsyncIterator[Desk]:
    async with a_bare_desk() as opened:
        await a_country(opened)
        yield opened


async def test_a_place_knows_its_path_to_the_root(desk: Desk):
    view = await places.get_unit(desk, HAMLET)
    assert view.path == (HAMLET, YEN_THANH, PROVINCE, COUNTRY)
    assert view.parent_id == YEN_THANH


async def test_names_are_found_without_accents_and_d_with_a_bar(desk: Desk):
    found = await places.list_units(desk, UnitQuery(name="dong duc"))
    assert [view.id for view in found] == [HAMLET]
    assert [view.id for view in await places.list_units(desk, UnitQuery(parent_id=PROVINCE))] == [QUYNH_LUU, YEN_THANH]
    within = await places.list_units(desk, UnitQuery(within=YEN_THANH))
    assert [view.id for view in within] == [YEN_THANH, HAMLET]


async def test_a_move_is_a_new_link_and_the_past_stays(desk: Desk):
    await places.create_unit(desk, OPERATOR, NewUnit("province", "Tỉnh Hà Tĩnh", COUNTRY, "42"))
    await places.move_unit(desk, OPERATOR, MoveUnit(YEN_THANH, "42", date(2026, 9, 1)))
    assert (await places.get_unit(desk, HAMLET, on=date(2026, 8, 31))).path == (HAMLET, YEN_THANH, PROVINCE, COUNTRY)
    assert (await places.get_unit(desk, HAMLET, on=date(2026, 9, 1))).path == (HAMLET, YEN_THANH, "42", COUNTRY)
    with pytest.raises(Conflict, match="unit_moves_later"):
        await places.move_unit(desk, OPERATOR, MoveUnit(YEN_THANH, QUYNH_LUU, date(2026, 8, 1)))
    assert await desk.store.read(audit.verify) is None


async def test_a_place_cannot_come_to_lie_in_itself(desk: Desk):
    with pytest.raises(Invalid, match="circular_places") as refused:
        await places.move_unit(desk, OPERATOR, MoveUnit(YEN_THANH, HAMLET, date(2026, 7, 1)))
    assert refused.value.facts["field"] == "parent_id"
    assert (await places.get_unit(desk, YEN_THANH, on=date(2026, 7, 2))).parent_id == PROVINCE


async def test_a_circle_that_would_close_only_later_is_refused_too(desk: Desk):
    await places.move_unit(desk, OPERATOR, MoveUnit(YEN_THANH, QUYNH_LUU, date(2026, 12, 1)))
    with pytest.raises(Invalid, match="circular_places"):
        await places.move_unit(desk, OPERATOR, MoveUnit(QUYNH_LUU, HAMLET, date(2026, 8, 1)))


async def test_moving_takes_a_right_at_both_ends(desk: Desk):
    head = await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH)
    made = await places.create_unit(desk, head, NewUnit("hamlet", "Xóm 2", YEN_THANH, "17506-02"))
    await places.move_unit(desk, head, MoveUnit(made.id, HAMLET, date(2026, 7, 1)))
    with pytest.raises(NotFound, match="unknown_unit"):
        await places.move_unit(desk, head, MoveUnit(HAMLET, QUYNH_LUU, date(2026, 7, 1)))
    with pytest.raises(Refused, match="not_permitted"):
        await places.move_unit(desk, head, MoveUnit(YEN_THANH, None, date(2026, 7, 1)))
    with pytest.raises(NotFound, match="unknown_unit"):
        await places.create_unit(desk, head, NewUnit("commune", "Xã Khác", PROVINCE))


@pytest.mark.parametrize(
    ("unit", "code", "field"),
    [
        (NewUnit("district", "Huyện Yên Thành", PROVINCE), "unit_kind_closed", "kind"),
        (NewUnit("planet", "Sao Hỏa", PROVINCE), "unknown_unit_kind", "kind"),
        (NewUnit("commune", "  ", PROVINCE), "name_invalid", "name"),
        (NewUnit("commune", "Xã\x00", PROVINCE), "name_invalid", "name"),
        (NewUnit("commune", "Xã Lạ", PROVINCE, "a/b+#"), "unit_id_invalid", "id"),
    ],
)
async def test_a_wrong_place_is_refused_with_its_field(desk: Desk, unit: NewUnit, code: str, field: str):
    with pytest.raises(Invalid) as refused:
        await places.create_unit(desk, OPERATOR, unit)
    assert (refused.value.code, refused.value.facts["field"]) == (code, field)


async def test_a_code_is_given_once(desk: Desk):
    with pytest.raises(Conflict, match="unit_exists"):
        await places.create_unit(desk, OPERATOR, NewUnit("commune", "Xã Hai", PROVINCE, YEN_THANH))


async def test_two_people_rename_and_the_slower_one_is_told(desk: Desk):
    seen = (await places.get_unit(desk, YEN_THANH)).version
    await places.rename_unit(desk, OPERATOR, YEN_THANH, "Xã Yên Thành mới", version=seen)
    with pytest.raises(Conflict, match="version_changed"):
        await places.rename_unit(desk, OPERATOR, YEN_THANH, "Xã khác", version=seen)
    assert (await places.get_unit(desk, YEN_THANH)).name == "Xã Yên Thành mới"


# -- a kind is closed -------------------------------------------------------------------------------------------------


async def test_the_district_of_the_past_may_be_written_as_history(desk: Desk):
    made = await places.create_unit(
        desk, OPERATOR, NewUnit("district", "Huyện Yên Thành", PROVINCE, "427", date(2020, 1, 1))
    )
    assert made.kind == "district"
    new = NewFeed("427", "Đài huyện", Tier.DISTRICT, FeedKind.PULL, "http://example.vn/a.mp3")
    with pytest.raises(Conflict, match="unit_closed"):
        await feeds.add_feed(desk, OPERATOR, new)


async def test_closing_a_kind_lifts_what_lay_in_it_and_ends_its_feeds(desk: Desk):
    """As on 1 July 2025 for the district; here the law does it to zones."""
    await places.create_unit(desk, OPERATOR, NewUnit("zone", "Khu vực xã cũ Hoa Thành", YEN_THANH, "z1"))
    await places.move_unit(desk, OPERATOR, MoveUnit(HAMLET, "z1", TODAY))
    new = NewFeed("z1", "Đài khu vực", Tier.OTHER, FeedKind.PULL, "http://example.vn/a.mp3")
    feed = (await feeds.add_feed(desk, OPERATOR, new)).feed
    with pytest.raises(Refused, match="not_permitted"):
        await places.close_kind(desk, await somebody(desk, Role.ADMIN, COUNTRY), "zone", date(2026, 7, 1))
    assert await places.close_kind(desk, OPERATOR, "zone", date(2026, 7, 1)) == [feed.id]
    assert (await places.get_unit(desk, HAMLET, on=date(2026, 6, 30))).parent_id == "z1"
    assert (await places.get_unit(desk, HAMLET, on=date(2026, 7, 1))).parent_id == YEN_THANH
    assert (await places.get_unit(desk, "z1", on=date(2026, 7, 1))).path == ("z1",)
    ended = (await feeds.get_feed(desk, OPERATOR, feed.id)).feed.valid_to
    assert ended is not None
    assert ended.isoformat() == "2026-06-30T17:00:00+00:00"  # midnight in Vietnam
    with pytest.raises(Invalid, match="unit_kind_closed"):
        await places.create_unit(desk, OPERATOR, NewUnit("zone", "Khu mới", YEN_THANH, valid_from=date(2026, 7, 1)))


# -- policy -----------------------------------------------------------------------------------------------------------


async def test_a_policy_is_inherited_until_somebody_below_writes_one(desk: Desk):
    assert (await places.get_policy(desk, OPERATOR, HAMLET)).from_unit_id is None
    await places.put_policy(desk, OPERATOR, PROVINCE, {"quiet": {"from": "21:00", "to": "05:30"}})
    inherited = await places.get_policy(desk, OPERATOR, HAMLET)
    assert (inherited.from_unit_id, inherited.body["quiet"]) == (PROVINCE, {"from": "21:00", "to": "05:30"})
    head = await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH)
    own = await places.put_policy(desk, head, YEN_THANH, {"max_minutes_per_day": 90})
    assert (await places.get_policy(desk, head, HAMLET)).from_unit_id == YEN_THANH
    with pytest.raises(Conflict, match="version_changed"):
        await places.put_policy(desk, head, YEN_THANH, {}, version=own.version + 1)
    assert (await places.drop_policy(desk, head, YEN_THANH)).from_unit_id == PROVINCE
    with pytest.raises(NotFound, match="policy_not_own"):
        await places.drop_policy(desk, head, YEN_THANH)


async def test_a_wrong_policy_names_the_field(desk: Desk):
    with pytest.raises(Invalid) as refused:
        await places.put_policy(desk, OPERATOR, PROVINCE, {"quiet": {"from": "25:00", "to": "05:00"}})
    assert refused.value.facts["field"] == "quiet.from"


# -- import -----------------------------------------------------------------------------------------------------------


async def test_vietnam_is_imported_once_quickly_and_leaves_alone_what_people_wrote(store):
    desk = a_desk_of(store)
    began = time.perf_counter()
    told = await places.import_vietnam(desk, OPERATOR)
    took_s = time.perf_counter() - began
    assert (told.provinces, told.communes, told.new_units, told.new_links) == (34, 3_321, 3_356, 3_355)
    assert took_s < 5
    view = await places.get_unit(desk, "00070")
    assert (view.name, view.kind, view.path) == ("Phường Hoàn Kiếm", "ward", ("00070", "01", COUNTRY))
    await places.rename_unit(desk, OPERATOR, "00070", "Phường Hoàn Kiếm (mới)")
    await places.move_unit(desk, OPERATOR, MoveUnit("00004", "40", date(2026, 7, 1)))
    again = await places.import_vietnam(desk, OPERATOR)
    assert (again.new_units, again.new_links) == (0, 0)
    assert (await places.get_unit(desk, "00070")).name == "Phường Hoàn Kiếm (mới)"
    assert (await places.get_unit(desk, "00004", on=date(2026, 7, 2))).parent_id == "40"
    assert len(await desk.store.read(rows.load_tree)) == 3_356
    inside = await desk.store.read(lambda session: rows.subtree_of(session, {"40"}, TODAY + timedelta(days=60)))
    assert "00004" in inside


async def test_only_who_keeps_the_country_may_import():
    async with a_bare_desk() as desk:
        await a_country(desk)
        admin = await somebody(desk, Role.ADMIN, PROVINCE)
        with pytest.raises(NotFound, match="unknown_unit"):
            await places.import_vietnam(desk, admin)
        keeper = await somebody(desk, Role.ADMIN, COUNTRY)
        assert (await places.import_vietnam(desk, keeper)).new_units == 3_356 - 4  # what a_country made is there
