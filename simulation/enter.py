"""`python -m simulation.enter LOGIN`: a simulated leader enters the office once, with a password and a telephone.

The operator makes a first password, the person changes it and sets up one-time codes, as in the field. Printed: the
password and the seed of the codes, for the simulation alone; it computes the codes itself, as the telephone would.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pyotp

from broadcast_server.cli.office import run
from broadcast_server.control import accounts, people
from broadcast_server.control.access import OPERATOR, Actor
from broadcast_server.control.accounts import STEP_S, Proof
from broadcast_server.control.desk import Desk


async def enter(desk: Desk, login: str) -> dict[str, Any]:
    """Change the first password, set up the codes."""
    user = (await people.user_of_login(desk, OPERATOR, login)).user
    actor = Actor(user.id, user.login)
    first = await people.reset_password(desk, OPERATOR, user.id)
    password = f"trống đồng {desk.chance.new_id()[:12]}"
    await accounts.change_password(desk, actor, Proof(first, ""), password)
    offer = await accounts.begin_totp(desk, actor, Proof(password, ""))
    step = int(desk.clock.now().timestamp()) // STEP_S
    kept = await accounts.confirm_totp(desk, actor, pyotp.TOTP(offer.secret).generate_otp(step))
    return {"password": password, "seed": offer.secret, "drawer": list(kept.recovery_codes)}


if __name__ == "__main__":
    _, who = sys.argv
    sys.stdout.write(json.dumps(run(lambda desk: enter(desk, who))) + "\n")
