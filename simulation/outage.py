"""The demo's last act: server and broker are killed, the nodes go on, and an emergency cuts in after they are back.

Nothing is asked politely: SIGKILL takes the server and with it the broker it runs. What was planned sounds on the
nodes' own clocks; then the same program starts on the same disk, a relay begins, somebody launches *khẩn cấp* over it
and its round hands the air back to the relay.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from broadcast_server.supervise import SystemClock
from simulation.village import COMMUNE, PROVINCE, PULLED, Village, VillageError
from speaker_protocol.messages import AlertBody
from speaker_protocol.rounds import score
from speaker_protocol.rules import Level

KILLED: Final = timedelta(seconds=52)
"""From the day's beginning, like the next."""
STARTED_AGAIN: Final = timedelta(seconds=56)
RELAY_AFTER: Final = timedelta(seconds=7)
"""Once the server is back, however long that took."""
RELAY_LENGTH: Final = timedelta(seconds=18)
LAUNCHED: Final = timedelta(seconds=5)
"""From the relay's beginning."""
PROPOSED_BEFORE: Final = timedelta(seconds=3)
HAZARD: Final = "flood"
PHRASE: Final = "go_to_high_ground"
TONE_MS: Final = 4_000


@dataclass(frozen=True, slots=True)
class Outage:
    """When the server was dead, `[killed_at, back_at)`."""

    killed_at: datetime
    back_at: datetime

    def as_json(self) -> dict[str, str | float]:
        """As the demo reports it."""
        return {
            "killed_at": self.killed_at.isoformat(),
            "back_at": self.back_at.isoformat(),
            "dead_s": round((self.back_at - self.killed_at).total_seconds(), 2),
        }


async def play(village: Village, day: datetime, say: Callable[[str], None]) -> tuple[Outage, Emergency]:
    """The whole act: when the server was dead, and the emergency. Raises `VillageError`."""
    outage = await server_and_broker_die(village, day, say)
    relay = outage.back_at + RELAY_AFTER
    await village.schedule(
        feed_id=village.feeds[PULLED],
        name="Tiếp âm nguồn kéo, lần hai",
        starts_at=relay,
        length_s=RELAY_LENGTH.total_seconds(),
    )
    emergency = await an_emergency_cuts_in(village, relay + LAUNCHED, say)
    await _until(SystemClock(), relay + RELAY_LENGTH)
    return outage, emergency


async def server_and_broker_die(village: Village, day: datetime, say: Callable[[str], None]) -> Outage:
    """Kill both at their minute of the day and start the server again; when that was. Raises `VillageError`."""
    clock = SystemClock()
    await _until(clock, day + KILLED)
    server = village.server
    if server is None or server.returncode is not None:
        raise VillageError("the server died before its time: " + village.last_words())
    killed_at = clock.now()
    server.send_signal(signal.SIGKILL)
    await server.wait()
    say("máy chủ và máy chủ MQTT bị tắt ngang / server and broker killed (SIGKILL)")
    await _until(clock, day + STARTED_AGAIN)
    await village.start_server()
    say("máy chủ đã chạy lại / the server is back")
    return Outage(killed_at, clock.now())


@dataclass(frozen=True, slots=True)
class Emergency:
    """One round, agreed to by the second person at `asked_at` and launched by the server at `launched_at`."""

    asked_at: datetime
    launched_at: datetime
    round_ms: int


async def an_emergency_cuts_in(village: Village, at: datetime, say: Callable[[str], None]) -> Emergency:
    """The province's editor raises *khẩn cấp*, one short round, and a leader agrees. Raises `VillageError`."""
    clock = SystemClock()
    await _until(clock, at - PROPOSED_BEFORE)
    proposed = await village.propose_emergency(
        unit_id=PROVINCE,
        units=[COMMUNE],
        mode="real",
        confirm="KHẨN CẤP",
        message={"hazard": HAZARD, "phrases": [PHRASE]},
        rounds={"tone_ms": TONE_MS, "times": 1},
        expires_min=5,
        reason="Trình diễn, mô phỏng",
    )
    say("tin khẩn cấp (mô phỏng) chờ người thứ hai / emergency proposed, waiting for a second person")
    await _until(clock, at)
    asked_at = clock.now()
    made = await village.approve_emergency(proposed, confirm="KHẨN CẤP")
    say("tin khẩn cấp (mô phỏng) / emergency launched by two people")
    body = AlertBody(
        alert_id="round",
        level=Level.EMERGENCY_UPPER,
        issued_ms=0,
        expires_ms=1,
        hazard=HAZARD,
        phrases=(PHRASE,),
        tone_ms=TONE_MS,
        times=1,
    )
    return Emergency(asked_at, datetime.fromisoformat(made["launched_at"]), score(body).length_ms)


async def _until(clock: SystemClock, instant: datetime) -> None:
    await clock.sleep((instant - clock.now()).total_seconds())
