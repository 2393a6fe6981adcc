"""Whether the broker still keeps nodes apart: asked at the start, and by the alarm clock every hour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import Refused, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.mqtt import canary
from broadcast_server.mqtt.canary import Ground
from broadcast_server.store import audit
from broadcast_server.store.session import Session, Store

log = get_logger()

MARK_BYTES: Final = 12


class Renewing(Protocol):
    """What is asked of an embedded broker."""

    async def refresh(self) -> None:
        """Renew what comes near its end."""
        ...


class BrokerWatch:
    """What the canaries found last. `ground` is asked before each look: canaries' credentials change."""

    def __init__(
        self,
        *,
        ground: Callable[[], Ground],
        broker: Renewing | None,
        store: Store,
        clock: Clock,
        chance: Chance,
    ) -> None:
        self._ground, self._broker, self._store = ground, broker, store
        self._clock, self._chance = clock, chance
        self._told: tuple[str, ...] = ()
        self.is_isolated = True
        """False once a look found a leak, or could not look; True again after one that found none."""

    async def check(self) -> None:
        """For the start. Raises `Refused("broker_leaks")` and `Unavailable("broker_canary_unheard")`."""
        ground = self._ground()
        if ground.canaries is None:
            log.warning("broker.isolation_unproven", fix="set LOA_BROKER__CANARIES")
        leaks = await canary.look(ground, self._mark())
        if leaks:
            raise Refused("broker_leaks", leaks=", ".join(sorted(leaks)), host=ground.host, port=ground.port)

    async def attend(self) -> str:
        """For the alarm clock: look; what came of it in a few words. A change is audited."""
        if self._broker is not None:
            await self._broker.refresh()
        try:
            found = tuple(sorted(leak.value for leak in await canary.look(self._ground(), self._mark())))
        except Unavailable as silence:
            found = (silence.code,)
        self.is_isolated = not found
        if found:
            log.error("broker.leaks", leaks=list(found))
        if found != self._told:
            await self._write(found)
            self._told = found
        return f"leaks: {', '.join(found)}" if found else "nodes are kept apart"

    def _mark(self) -> bytes:
        return self._chance.token_bytes(MARK_BYTES).hex().encode("ascii")

    async def _write(self, found: tuple[str, ...]) -> None:
        def write(session: Session) -> None:
            audit.append(
                session,
                now=self._clock.now(),
                actor="broker_watch",
                verb="broker.leak" if found else "broker.tight",
                unit_id=None,
                subject="broker/main",
                detail={"leaks": list(found)},
            )

        await self._store.begin(write, ring=False)
