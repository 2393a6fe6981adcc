"""The audit log on both dialects: nobody changes it, refusals are in it, and what it cannot take goes elsewhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, text, update

from broadcast_server.cli.audit_verifier import verify
from broadcast_server.control import access, auditing
from broadcast_server.control.access import OPERATOR, Action, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.domain.errors import Conflict, Corrupt, NotFound, Refused, Unavailable
from broadcast_server.store import audit, facts
from broadcast_server.store.journal import Journal
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import AuditRow, UnitKindRow, UnitRow
from tests.support.audit import open_again, shut, take_the_guards_away
from tests.support.clock import FakeClock
from tests.support.desk import a_desk_of

NOON = datetime(2026, 6, 1, 5, 0, tzinfo=UTC)
STRANGER = Actor("u9", "nguoi-la")


def tell(session: Session, number: int = 1, verb: str = "schedule.add") -> int:
    return audit.append(session, now=NOON, actor="lan", verb=verb, unit_id=None, subject=f"schedule/{number}")


async def verbs(store: Store) -> list[tuple[str, str, str]]:
    def read(session: Session) -> list[tuple[str, str, str]]:
        return [(row.actor, row.verb, row.subject) for row in audit.listed(session, None, limit=50)][::-1]

    return await store.read(read)


async def a_commune(store: Store) -> None:
    def write(session: Session) -> None:
        session.add(UnitKindRow(code="commune", name_vi="Xã", name_en="Commune"))
        session.flush()
        session.add(UnitRow(id="xa", kind="commune", name="Xã mô phỏng", name_folded="xa mo phong", created_at=NOON))

    await store.begin(write)


def desk_with_journal(store: Store, folder: Path) -> Desk:
    desk = a_desk_of(store)
    return Desk(
        desk.store, desk.clock, desk.chance, desk.executor, desk.audio, journal=Journal(folder / "second.jsonl")
    )


@pytest.mark.parametrize(
    "meddle",
    [
        update(AuditRow).values(actor="x"),
        update(AuditRow).where(AuditRow.sequence == 2).values(detail={}),
        delete(AuditRow).where(AuditRow.sequence == 3),
        delete(AuditRow),
    ],
    ids=["all_changed", "one_changed", "one_deleted", "all_deleted"],
)
async def test_the_database_itself_refuses_to_change_the_log(store: Store, meddle):
    await store.begin(lambda session: [tell(session, number) for number in range(4)])

    with pytest.raises(Exception, match="append-only"):
        await store.begin(lambda session: session.execute(meddle))

    assert await store.read(audit.verify) is None
    assert len(await verbs(store)) == 4


async def test_postgresql_refuses_to_empty_it_too(store: Store):
    if store.dialect != "postgresql":
        pytest.skip("SQLite has no TRUNCATE")
    await store.begin(tell)

    with pytest.raises(Exception, match="append-only"):
        await store.begin(lambda session: session.execute(text("TRUNCATE audit")))

    assert len(await verbs(store)) == 1


async def test_who_was_refused_is_in_the_log_though_nothing_else_of_the_attempt_is(store: Store):
    await a_commune(store)

    def attempt(session: Session) -> None:
        tell(session, 7, "schedule.add")
        access.authorize(session, STRANGER, Action.SCHEDULE, "xa", at=NOON)

    for _ in range(3):
        with pytest.raises(NotFound, match="unknown_unit"):
            await store.begin(attempt)
    with pytest.raises(NotFound):
        await store.read(lambda session: access.authorize(session, STRANGER, Action.LOG_READ, "xa", at=NOON))

    assert await verbs(store) == [
        ("nguoi-la", "access.denied", "action/schedule"),
        ("nguoi-la", "access.denied", "action/log_read"),
    ]
    later = NOON + timedelta(minutes=11)
    with pytest.raises(NotFound):
        await store.read(lambda session: access.authorize(session, STRANGER, Action.LOG_READ, "xa", at=later))
    assert len(await verbs(store)) == 3
    assert await store.read(audit.verify) is None


async def test_what_is_only_asked_after_is_no_attempt(store: Store):
    await a_commune(store)

    def look(session: Session) -> None:
        assert not access.may(session, STRANGER, Action.SCHEDULE, "xa", at=NOON)
        raise Conflict("something_else")

    with pytest.raises(Conflict):
        await store.begin(look)

    assert await verbs(store) == []


async def test_without_a_log_nothing_ordinary_is_done(store: Store):
    await a_commune(store)
    shut(store)

    def rename(session: Session) -> None:
        session.get_one(UnitRow, "xa").name = "Xã khác"
        tell(session)

    with pytest.raises(Unavailable, match="audit_unwritable"):
        await store.begin(rename)

    assert (await store.read(lambda session: session.get_one(UnitRow, "xa"))).name == "Xã mô phỏng"


async def test_a_warning_goes_out_all_the_same_and_is_in_the_log_as_soon_as_it_can_be(store: Store, tmp_path: Path):
    await a_commune(store)
    desk = desk_with_journal(store, tmp_path)
    await store.begin(lambda session: tell(session, 1, "schedule.add"))
    shut(store)

    def warn(session: Session) -> str:
        session.get_one(UnitRow, "xa").name = "Xã đang báo động"
        audit.append(
            session,
            now=NOON,
            actor="chutich",
            verb="emergency.launch",
            unit_id="xa",
            subject="emergency/e1",
            detail={"hash": "ab"},
        )
        return "launched"

    assert await desk.urgent(warn) == "launched"
    assert (await store.read(lambda session: session.get_one(UnitRow, "xa"))).name == "Xã đang báo động"
    assert await verbs(store) == [("lan", "schedule.add", "schedule/1")]
    with pytest.raises(Unavailable, match="audit_unwritable"):
        await auditing.take_over(desk)

    open_again(store)
    assert [await auditing.take_over(desk) for _ in range(2)] == ["1 rows", "0 rows"]
    row = (await store.read(lambda session: audit.listed(session, None, limit=1)))[0]
    assert (row.actor, row.verb, row.unit_id, row.detail["hash"]) == ("chutich", "emergency.launch", "xa", "ab")
    assert row.detail["journal"] == {"line": 1, "at": desk.clock.now().isoformat()}
    assert await store.read(audit.verify) is None


async def test_where_not_even_the_journal_can_be_written_nothing_is_done(store: Store, tmp_path: Path):
    await a_commune(store)
    desk = desk_with_journal(store, tmp_path / "missing")
    shut(store)

    def warn(session: Session) -> None:
        session.get_one(UnitRow, "xa").name = "Xã đang báo động"
        tell(session, 1, "emergency.launch")

    with pytest.raises(Unavailable, match="journal_unwritable"):
        await desk.urgent(warn)

    assert (await store.read(lambda session: session.get_one(UnitRow, "xa"))).name == "Xã mô phỏng"


def test_a_journal_that_was_torn_goes_on_and_one_that_was_changed_says_so(tmp_path: Path):
    file = tmp_path / "second.jsonl"
    journal = Journal(file)
    rows = [{"actor": "a", "verb": "emergency.launch", "unit_id": None, "subject": "emergency/1", "detail": {}}]
    journal.write(rows, now=NOON)
    with file.open("ab") as torn:
        torn.write(b"0123 {half")
    journal.write(rows, now=NOON)

    assert [row["verb"] for row in journal.read()] == ["emergency.launch"] * 2
    file.write_text(file.read_text(encoding="utf-8").replace("emergency/1", "emergency/2", 1), encoding="utf-8")
    with pytest.raises(Corrupt, match="journal_broken"):
        journal.read()


async def test_the_program_without_the_server_reads_the_same_log(store: Store):
    await store.begin(lambda session: [tell(session, number) for number in range(4)])
    stands = await store.read(audit.head)
    assert stands is not None
    from broadcast_server.cli.audit_verifier import read_rows

    address = store.url.render_as_string(hide_password=False)
    told = verify(read_rows(address.replace("+psycopg", "").replace("+pysqlite", "")), [])
    assert (told["ok"], told["rows"], told["head"]) == (True, 4, stands.hash)

    take_the_guards_away(store)
    await store.begin(lambda session: session.execute(delete(AuditRow).where(AuditRow.sequence == 4)))
    anchor = {"sequence": stands.sequence, "hash": stands.hash, "at_us": 0}
    rows = list(read_rows(address.replace("+psycopg", "").replace("+pysqlite", "")))
    assert verify(rows, [])["ok"]
    assert verify(rows, [anchor])["contradicted"] == [{"sequence": 4, "told": stands.hash, "stands": None}]


async def test_only_who_stands_at_the_machine_answers_a_contradiction(store: Store):
    desk = a_desk_of(store)
    assert isinstance(desk.clock, FakeClock)
    with pytest.raises(Conflict, match="audit_not_contradicted"):
        await auditing.answer_contradiction(desk, OPERATOR, "Không có gì")
    wrong = {"open": [[4, "ab"]], "answered": []}
    await store.begin(lambda session: facts.put(session, facts.AUDIT_CONTRADICTED, wrong, now=NOON))
    with pytest.raises(Refused):
        await auditing.answer_contradiction(desk, STRANGER, "Tôi xem rồi")

    assert await auditing.answer_contradiction(desk, OPERATOR, "Khôi phục bản sao lưu ngày 1/6") == 1
    told = await store.read(lambda session: facts.find(session, facts.AUDIT_CONTRADICTED))
    assert told == {"open": [], "answered": [[4, "ab"]]}
    assert (await verbs(store))[-1][1] == "audit.answer"
