"""A box enrols over HTTP with the firmware's own words; whoever guesses learns nothing from the answers."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from cryptography import x509

from broadcast_server.api.router import create_api
from broadcast_server.control.desk import Desk
from broadcast_server.signer.certificates import DeviceCertifier, LocalAuthority
from broadcast_server.store.words import Role
from broadcast_server.supervise import InlineExecutor
from firmware_sim.enrol import BoxLabel, EnrolmentRefused, enrol, is_renewal_due, renewed
from firmware_sim.store import Identity
from tests.firmware_sim.world import HandTime
from tests.support.api import a_client
from tests.support.boxes import Box, a_box
from tests.support.clock import FakeClock
from tests.support.desk import a_bare_desk
from tests.support.places import YEN_THANH, a_country, a_token_of, somebody

V1 = "/api/v1"
DAY_NS = 24 * 3_600 * 10**9


@dataclass
class Office:
    desk: Desk
    tech: httpx.AsyncClient
    head: httpx.AsyncClient
    stranger: httpx.AsyncClient

    async def expect(self, box: Box) -> str:
        form = {"serial": box.serial, "unit_id": YEN_THANH, "claim_code": box.code}
        made = await self.tech.post(f"{V1}/devices", json=form)
        assert (made.status_code, made.headers["cache-control"], made.json()["claim_code"]) == (201, "no-store", None)
        told: str = made.json()["id"]
        return told

    async def enrol(self, box: Box, code: str | None = None) -> Identity:
        label = BoxLabel(box.serial, code or box.code)
        return await enrol(
            "http://127.0.0.1:8080",
            label,
            client=self.stranger,
            true=HandTime(),
            chance=random.Random(box.number),
            firmware="sim",
        )


@pytest_asyncio.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with a_bare_desk() as bare:
        authority = LocalAuthority(tmp_path / "authority", clock=bare.clock, chance=bare.chance)
        desk = replace(bare, certifier=DeviceCertifier(authority, InlineExecutor()))
        await a_country(desk)
        tech = await a_token_of(desk, await somebody(desk, Role.TECHNICIAN, YEN_THANH))
        head = await a_token_of(desk, await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH))
        app = create_api(desk)
        async with (
            a_client(desk, app=app, token=tech) as one,
            a_client(desk, app=app, token=head) as two,
            a_client(desk, app=app) as three,
        ):
            yield Office(desk, one, two, three)


async def test_a_box_enrols_by_its_label_keeps_its_key_and_renews_its_certificate(office: Office, tmp_path: Path):
    box = a_box()
    await office.expect(box)
    identity = await office.enrol(box)

    assert identity.state == "probation"
    assert identity.certificate is not None
    leaf = x509.load_pem_x509_certificate(identity.certificate.encode())
    assert leaf.subject.rfc4514_string() == f"CN={identity.node_id}"
    identity.save(tmp_path / "node")
    file = tmp_path / "node" / "identity.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert Identity.load(tmp_path / "node") == identity
    begins_ns = round(leaf.not_valid_before_utc.timestamp()) * 10**9
    assert [is_renewal_due(identity, begins_ns + days * DAY_NS) for days in (1, 243, 245)] == [False, False, True]
    with pytest.raises(EnrolmentRefused, match="device_refused"):  # it has a fresh one
        await renewed(identity, client=office.stranger, true=HandTime(), chance=random.Random(1))
    assert isinstance(office.desk.clock, FakeClock)
    await office.desk.clock.advance(245 * 86_400)
    again = await renewed(identity, client=office.stranger, true=HandTime(), chance=random.Random(2))
    assert again.certificate != identity.certificate
    assert again.broker.ca_pem is not None
    assert again.model_copy(update={"certificate": identity.certificate, "broker": identity.broker}) == identity


async def test_whoever_guesses_is_answered_alike(office: Office):
    used, awaited, unknown = a_box(1), a_box(2), a_box(3)
    await office.expect(used)
    await office.enrol(used)
    await office.expect(awaited)
    answers = set()
    for box, code in ((awaited, "0" * 10), (used, used.code), (used, "0" * 10), (unknown, unknown.code)):
        with pytest.raises(EnrolmentRefused) as refused:
            await office.enrol(box, code)
        answers.add(str(refused.value))

    (answer,) = answers
    assert answer.startswith("403 ")
    assert (await office.enrol(awaited)).state == "probation"


async def test_the_check_and_the_approval_over_http(office: Office):
    box = a_box()
    await office.expect(box)
    node_id = (await office.enrol(box)).node_id
    asked = await office.tech.post(f"{V1}/nodes/{node_id}/binding")
    assert (asked.status_code, asked.json()["tries_left"]) == (202, 3)
    assert "code" not in asked.json()
    orders = (await office.tech.get(f"{V1}/nodes/{node_id}/orders")).json()
    assert [sorted(order) for order in orders if "code" in order] == []
    wrong = await office.tech.post(f"{V1}/nodes/{node_id}/binding/answer", json={"code": "000"})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "code")
    early = await office.head.post(f"{V1}/nodes/{node_id}/approval")
    assert (early.status_code, early.json()["code"]) == (409, "binding_missing")
    silenced = await office.tech.post(f"{V1}/nodes/{node_id}/quarantine", json={"reason": "Hộp bị cạy"})
    assert (silenced.json()["state"], silenced.json()["state_reason"]) == ("quarantined", "Hộp bị cạy")
    glance = (await office.tech.get(f"{V1}/system")).json()
    assert (glance["nodes"], glance["nodes_on_probation"], glance["nodes_quarantined"]) == (1, 0, 1)
    listed = (await office.tech.get(f"{V1}/nodes", params={"state": "quarantined"})).json()["items"]
    assert [node["id"] for node in listed] == [node_id]
    not_hers = await office.tech.post(f"{V1}/nodes/{node_id}/release", json={"reason": "thôi"})
    assert not_hers.status_code == 403


async def test_an_expected_box_is_listed_opened_and_forgotten(office: Office):
    box = a_box()
    claim_id = await office.expect(box)
    (shown,) = (await office.tech.get(f"{V1}/devices", params={"within": YEN_THANH})).json()["items"]
    assert (shown["id"], shown["serial"], shown["wrong_tries"]) == (claim_id, box.serial, 0)
    assert box.code not in str(shown)
    assert (await office.tech.post(f"{V1}/devices/{claim_id}/window")).json()["closed_at"] is None
    assert (await office.tech.delete(f"{V1}/devices/{claim_id}")).status_code == 204
    again = await office.tech.post(f"{V1}/devices/{claim_id}/window")
    assert (again.status_code, again.json()["code"]) == (409, "claim_over")
    made = await office.tech.post(f"{V1}/devices", json={"serial": "LOA-9", "unit_id": YEN_THANH})
    assert len(made.json()["claim_code"]) == 11
    odd = await office.stranger.post(f"{V1}/nodes/enrol", json={"serial": "LOA-9"})
    assert (odd.status_code, odd.json()["field"]) == (422, "csr")
