"""A simulated leader's password and telephone: what is typed where something weighs much."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import pyotp

from broadcast_server.domain.clock import Clock

STEP_S: Final = 30


@dataclass(slots=True)
class Leader:
    """Somebody who may raise an alarm, or be the second to agree."""

    token: str
    password: str
    seed: str
    clock: Clock
    last_step: int = field(default=0)

    async def proof(self) -> dict[str, str]:
        """What the person types now; a code serves once, so the fourth within half a minute waits for the next."""
        while True:
            running = int(self.clock.now().timestamp()) // STEP_S
            for step in (running - 1, running, running + 1):
                if step > self.last_step:
                    self.last_step = step
                    return {"password": self.password, "code": pyotp.TOTP(self.seed).generate_otp(step)}
            await self.clock.sleep(1.0)
