"""Enrolment: a new box makes its device key and asks the server, once, who it is.

`POST /api/v1/nodes/enrol` with the claim code printed on the box, or with a token; later `POST /nodes/me/certificate`
on the word of the device key. A server that is not there yet, or busy, is asked again; a refusal is final.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from firmware_sim.clock import TrueTime
from firmware_sim.store import Identity
from speaker_protocol import claims

ENROL_PATH: Final = "/api/v1/nodes/enrol"
CERTIFICATE_PATH: Final = "/api/v1/nodes/me/certificate"
HARDWARE: Final = "simulated"
PATIENCE_S: Final = 60.0


class EnrolmentRefused(RuntimeError):  # noqa: N818 - reads as what happened
    """The server does not want this node; the text says why."""


@dataclass(frozen=True, slots=True)
class BoxLabel:
    """What is printed on a box: its serial and its claim code, both in their normal form."""

    serial: str
    code: str

    @classmethod
    def parse(cls, text: str) -> BoxLabel:
        """`SERIAL:CODE`. Raises `ValueError`."""
        told_serial, _, told_code = text.partition(":")
        serial, code = claims.normal_serial(told_serial), claims.normal_code(told_code)
        if serial is None or code is None:
            raise ValueError(f"{told_serial!r}: a label is SERIAL:CODE, the code of {claims.CODE_SIGNS} signs")
        return cls(serial, code)


async def enrol(
    server: str,
    authority: str | BoxLabel,
    *,
    client: httpx.AsyncClient,
    true: TrueTime,
    chance: random.Random,
    firmware: str,
    cluster_code: str | None = None,
) -> Identity:
    """The identity the server gave for a token or a box's label. Raises `EnrolmentRefused`."""
    key = Ed25519PrivateKey.from_private_bytes(chance.randbytes(32))
    csr = request_of(key)
    question: dict[str, Any] = {"csr": csr, "hardware": HARDWARE, "firmware": firmware}
    if isinstance(authority, BoxLabel):
        nonce = chance.randbytes(16).hex()
        secret = claims.claim_key(authority.serial, authority.code)
        question |= {
            "serial": authority.serial,
            "nonce": nonce,
            "proof": claims.proof(secret, csr, authority.serial, nonce),
        }
    else:
        public = key.public_key().public_bytes_raw().hex()
        question |= {"token": authority, "public_key": public, "cluster_code": cluster_code}
    answer = await _ask(server.rstrip("/") + ENROL_PATH, question, client=client, true=true, chance=chance)
    return Identity.model_validate({**answer, "private_key": key.private_bytes_raw().hex()})


async def renewed(identity: Identity, *, client: httpx.AsyncClient, true: TrueTime, chance: random.Random) -> Identity:
    """The identity with another certificate of its key. Raises `EnrolmentRefused`."""
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(identity.private_key))
    csr, nonce = request_of(key), chance.randbytes(16).hex()
    question = {
        "node_id": identity.node_id,
        "csr": csr,
        "nonce": nonce,
        "signature": key.sign(claims.renewal(identity.node_id, csr, nonce)).hex(),
    }
    server = identity.assets_url.partition("/api/v1/")[0]
    answer = await _ask(server + CERTIFICATE_PATH, question, client=client, true=true, chance=chance)
    broker = identity.broker.model_copy(update={"ca_pem": answer["ca_pem"]})
    return identity.model_copy(update={"certificate": answer["certificate"], "broker": broker})


def is_renewal_due(identity: Identity, now_ns: int) -> bool:
    """Whether two thirds of the certificate's life are over, or there is none although the broker speaks TLS."""
    if identity.certificate is None:
        return identity.broker.tls
    try:
        leaf = x509.load_pem_x509_certificate(identity.certificate.encode())
    except ValueError:
        return True
    begins_s, ends_s = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    return now_ns / 1e9 >= begins_s + (ends_s - begins_s) * 2 / 3


def request_of(key: Ed25519PrivateKey) -> str:
    """A request for a certificate, PEM; the server gives the name."""
    return x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, None).public_bytes(Encoding.PEM).decode()


async def _ask(
    url: str, question: dict[str, Any], *, client: httpx.AsyncClient, true: TrueTime, chance: random.Random
) -> dict[str, Any]:
    started_ns = true.now_ns()
    wait_s = 0.5
    while True:
        try:
            answer = await client.post(url, json=question)
        except httpx.TransportError as error:
            trouble = str(error) or type(error).__name__
        else:
            if answer.status_code == httpx.codes.CREATED:
                told: dict[str, Any] = answer.json()
                return told
            trouble = f"{answer.status_code} {answer.text[:300]}"
            if answer.status_code not in {429, 502, 503, 504}:
                raise EnrolmentRefused(trouble)
        if true.now_ns() - started_ns > PATIENCE_S * 1e9:
            raise EnrolmentRefused(trouble)
        await true.sleep(chance.uniform(wait_s / 2, wait_s))
        wait_s = min(8.0, 2 * wait_s)
