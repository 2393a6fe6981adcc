"""What the alarm clock's jobs did."""

from datetime import timedelta

from broadcast_server.store import jobs
from broadcast_server.store.session import Session, Store
from tests.store.playout_rows import NOW


async def test_a_new_set_of_jobs_keeps_what_the_old_ones_did(store: Store):
    later = NOW + timedelta(hours=1)

    def first(session: Session) -> None:
        jobs.plan(session, {"backup": NOW, "old": NOW})
        jobs.note(session, "backup", NOW, "x" * 300, later)

    await store.begin(first)
    await store.begin(lambda session: jobs.plan(session, {"backup": later, "feed_probe": None}))
    rows = await store.read(jobs.listed)

    assert [(row.name, row.next_at, row.last_at, len(row.last_outcome or "")) for row in rows] == [
        ("backup", later, NOW, 200),
        ("feed_probe", None, None, 0),
    ]
    assert await store.read(jobs.last_runs) == {"backup": NOW}


async def test_a_job_that_was_never_planned_is_noted_all_the_same(store: Store):
    await store.begin(lambda session: jobs.note(session, "next_plan_edge", NOW, "rang", None))

    assert [row.name for row in await store.read(jobs.listed)] == ["next_plan_edge"]
