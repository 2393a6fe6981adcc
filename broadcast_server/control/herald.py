"""The herald: gives emergencies their voice. Their text leaves at once; its speech follows for the rounds to come.

One per process with the `api` role. A maintainer must not break: nothing waits for it; what it cannot speak is noted
on the emergency, once; after a restart it speaks what is still in force.
"""

from __future__ import annotations

from typing import Final

from broadcast_server.control import emergency, library
from broadcast_server.control.desk import Desk
from broadcast_server.domain.errors import BroadcastError, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.store import audit, emergencies
from broadcast_server.store.session import Session
from broadcast_server.store.tables import EmergencyRow

log = get_logger()

LOOK_S: Final = 5.0
AUTHOR: Final = "herald"


class Herald:
    """Speaks what was launched or proposed with a text."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._ear = desk.store.doorbell.ear()

    async def run(self) -> None:
        """At every ring, for ever."""
        while True:
            await self._ear.wait(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Speak what has no sound yet, what is in force first."""
        try:
            now = self._desk.clock.now()
            for row in await self._desk.store.read(lambda session: emergencies.to_be_spoken(session, now=now)):
                await self._speak(row)
        except Unavailable as away:
            log.warning("herald.waits", code=away.code)

    async def _speak(self, row: EmergencyRow) -> None:
        desk, emergency_id = self._desk, row.id
        try:
            audio = await library.spoken(desk, row.text or "", row.voice or "")
        except BroadcastError as error:
            failed = error
            log.error("herald.cannot_speak", emergency=emergency_id, code=error.code)  # noqa: TRY400
            await desk.store.begin(
                lambda session: emergency.note_unspoken(emergencies.emergency(session, emergency_id), failed)
            )
            return
        now = desk.clock.now()

        def write(session: Session) -> None:
            found = emergencies.emergency(session, emergency_id)
            library.enter_audio(session, audio, unit_id=found.unit_id, label=found.text or "", now=now)
            session.flush()
            emergency.enter_speech(session, found, audio.sha256, now)
            audit.append(
                session,
                now=now,
                actor=AUTHOR,
                verb="emergency.speak",
                unit_id=found.unit_id,
                subject=f"emergency/{emergency_id}",
                detail={"asset": audio.sha256},
            )

        await desk.store.begin(write)
