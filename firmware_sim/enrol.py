"""Enrolment: a new box makes its device key and asks the server, once, who it is.

`POST /api/v1/nodes/enrol` with a token. A server that is not there yet, or busy, is asked again; a refusal is final.
"""

from __future__ import annotations

import random
from typing import Final

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from firmware_sim.clock import TrueTime
from firmware_sim.store import Identity

ENROL_PATH: Final = "/api/v1/nodes/enrol"
HARDWARE: Final = "simulated"
PATIENCE_S: Final = 60.0


class EnrolmentRefused(RuntimeError):  # noqa: N818 - reads as what happened
    """The server does not want this node; the text says why."""


async def enrol(
    server: str,
    token: str,
    *,
    client: httpx.AsyncClient,
    true: TrueTime,
    chance: random.Random,
    firmware: str,
    cluster_code: str | None = None,
) -> Identity:
    """The identity the server gave. Raises `EnrolmentRefused`."""
    key = Ed25519PrivateKey.from_private_bytes(chance.randbytes(32))
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    secret = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    question = {
        "token": token,
        "public_key": public.hex(),
        "hardware": HARDWARE,
        "firmware": firmware,
        "cluster_code": cluster_code,
    }
    started_ns = true.now_ns()
    wait_s = 0.5
    while True:
        try:
            answer = await client.post(server.rstrip("/") + ENROL_PATH, json=question)
        except httpx.TransportError as error:
            trouble = str(error) or type(error).__name__
        else:
            if answer.status_code == httpx.codes.CREATED:
                return Identity.model_validate({**answer.json(), "private_key": secret.hex()})
            trouble = f"{answer.status_code} {answer.text[:300]}"
            if answer.status_code not in {429, 502, 503, 504}:
                raise EnrolmentRefused(trouble)
        if true.now_ns() - started_ns > PATIENCE_S * 1e9:
            raise EnrolmentRefused(trouble)
        await true.sleep(chance.uniform(wait_s / 2, wait_s))
        wait_s = min(8.0, 2 * wait_s)
