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
from simulation.village import Village, VillageError

KILLED: Final = timedelta(seconds=52)
"""All from the day's beginning."""
STARTED_AGAIN: Final = timedelta(seconds=57)


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


async def _until(clock: SystemClock, instant: datetime) -> None:
    await clock.sleep((instant - clock.now()).total_seconds())
