"""What a station and a commune read while a feed fails, over REST and in their language."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from broadcast_server.store import feeds as rows
from broadcast_server.store import relays
from broadcast_server.store.session import Session
from broadcast_server.store.words import FeedState, RelayedKind
from tests.api.test_feeds import V1, YEN_THANH, Station, pull, station

__all__ = ["station"]
LOST = datetime(2026, 6, 1, 10, 12, 3, tzinfo=UTC)


async def a_feed(station: Station, name: str) -> str:
    made = (await station.editor.post(f"{V1}/feeds", json=pull(name))).json()
    offer = {"unit_id": YEN_THANH, "basis": "CV 120"}
    assert (await station.editor.post(f"{V1}/feeds/{made['id']}/offers", json=offer)).status_code == 201
    return str(made["id"])


async def seen(station: Station, feed: str, state: FeedState, reason: str | None, body: dict[str, Any]) -> None:
    def write(session: Session) -> None:
        rows.put_status(session, feed, state=state, reason=reason, now=station.desk.clock.now(), body=body)

    await station.desk.store.begin(write)


async def test_the_station_reads_since_when_and_the_commune_what_sounds_instead(station: Station):
    main, spare = await a_feed(station, "Đài tỉnh"), await a_feed(station, "Dự phòng (mô phỏng)")
    put = await station.editor.put(f"{V1}/feeds/{main}/relay", json={"substitutes": [spare], "delay_ms": 3000})
    assert put.status_code == 200
    assert put.json()["substitutes"] == [{"feed_id": spare, "name": "Dự phòng (mô phỏng)"}]
    instead = {"kind": "substitute", "id": spare, "reason": "stalled", "since": LOST.isoformat()}
    body = {"lost_since": LOST.isoformat(), "sounding": {**instead, "name": "Dự phòng (mô phỏng)"}}
    await seen(station, main, FeedState.STALLED, "stalled", body)
    read = (await station.lan.get(f"{V1}/feeds/{main}/relay")).json()
    assert read["signal"] == "mất tín hiệu từ 17:12:03"
    assert read["instead"] == "đang phát thay: Dự phòng (mô phỏng)"
    assert read["why"] == "Nguồn ngừng gửi âm thanh."
    english = await station.lan.get(f"{V1}/feeds/{main}/relay", headers={"Accept-Language": "en"})
    assert english.json()["signal"] == "no signal since 17:12:03"


async def test_stopped_everywhere_is_what_everybody_reads_until_it_is_released(station: Station):
    main = await a_feed(station, "Đài tỉnh")
    assert (await station.lan.post(f"{V1}/feeds/{main}/stop", json={"reason": "sai"})).status_code == 403
    stopped = await station.editor.post(f"{V1}/feeds/{main}/stop", json={"reason": "phát nhầm"})
    assert stopped.status_code == 200
    read = (await station.lan.get(f"{V1}/feeds/{main}/relay")).json()
    assert read["instead"].startswith("đã dừng tiếp âm nguồn này ở mọi nơi từ ")
    assert read["stop_reason"] == "phát nhầm"
    released = await station.editor.delete(f"{V1}/feeds/{main}/stop")
    assert (released.json()["stopped_at"], released.json()["instead"]) == (None, None)


async def test_spans_pushes_and_a_monitor_that_is_elsewhere(station: Station):
    main = await a_feed(station, "Đài tỉnh")
    now = station.desk.clock.now()

    def write(session: Session) -> None:
        relays.note_relayed(session, [("s1", relays.Relayed(main, RelayedKind.FEED, None, "started", now))], now)
        refused = relays.Pushed(main, now, "mount_busy", 0, "ffmpeg", "10.0.0.9", is_refused=True)
        relays.note_pushed(session, [("p1", refused)])

    await station.desk.store.begin(write)
    (span,) = (await station.lan.get(f"{V1}/feeds/{main}/spans")).json()
    assert (span["kind"], span["why"], span["until"]) == ("feed", "Bắt đầu.", None)
    (push,) = (await station.editor.get(f"{V1}/feeds/{main}/pushes")).json()["items"]
    assert (push["is_alarm"], push["why"]) == (True, "Điểm đẩy này đang có người phát.")
    assert (await station.lan.get(f"{V1}/feeds/{main}/pushes")).status_code == 403
    elsewhere = await station.editor.get(f"{V1}/feeds/{main}/monitor")
    assert (elsewhere.status_code, elsewhere.json()["code"]) == (503, "monitor_not_here")
