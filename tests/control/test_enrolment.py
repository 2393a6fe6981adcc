"""A box comes with the code printed on it: expected, let in once, in nobody else's name."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from sqlalchemy import select

from broadcast_server.control import certificates, enrolment, fleet
from broadcast_server.control.access import OPERATOR, Actor
from broadcast_server.control.certificates import Renewal
from broadcast_server.control.desk import Desk
from broadcast_server.control.enrolment import ClaimQuery, Enrol, NewDevice, NewEnrolmentToken
from broadcast_server.control.fleet import NodeQuery
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused, Unavailable
from broadcast_server.signer.certificates import DeviceCertifier, LocalAuthority
from broadcast_server.store import fleet as rows
from broadcast_server.store.session import Session
from broadcast_server.store.tables import AuditRow
from broadcast_server.store.tables_devices import DeviceClaimRow, NodeCertificateRow
from broadcast_server.store.words import NodeState, Role
from broadcast_server.supervise import InlineExecutor
from speaker_protocol import claims
from tests.support.boxes import a_box, approve, expect, install
from tests.support.clock import FakeClock
from tests.support.desk import a_bare_desk
from tests.support.places import QUYNH_LUU, YEN_THANH, a_country, somebody


@pytest_asyncio.fixture
async def desk() -> AsyncIterator[Desk]:
    async with a_bare_desk() as opened:
        await a_country(opened)
        yield opened


@pytest_asyncio.fixture
async def certified(desk: Desk, tmp_path: Path) -> Desk:
    authority = LocalAuthority(tmp_path / "authority", clock=desk.clock, chance=desk.chance)
    return replace(desk, certifier=DeviceCertifier(authority, InlineExecutor()))


def clock_of(desk: Desk) -> FakeClock:
    assert isinstance(desk.clock, FakeClock)
    return desk.clock


async def later(desk: Desk, time: timedelta) -> None:
    await clock_of(desk).advance(time.total_seconds())


async def a_technician(desk: Desk) -> Actor:
    return await somebody(desk, Role.TECHNICIAN, YEN_THANH)


async def verbs(desk: Desk) -> list[str]:
    return list(await desk.store.read(lambda session: session.scalars(select(AuditRow.verb)).all()))


# -- the claim code ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["0123456789", "o123-456789", "O1234 56789", "oi23-456789", "0l23-456789"])
def test_a_claim_code_is_read_as_people_write_it(typed: str):
    assert claims.normal_code(typed) == "0123456789"


@pytest.mark.parametrize("typed", ["", "012345678", "01234567890", "U123456789", "0123456789!", "đ123456789"])
def test_what_is_no_claim_code(typed: str):
    assert claims.normal_code(typed) is None


def test_the_code_is_not_what_is_stored_and_the_serial_belongs_to_it():
    key = claims.claim_key("LOA-00001", "0123456789")

    assert b"0123456789" not in key
    assert key != claims.claim_key("LOA-00002", "0123456789")


# -- the door ---------------------------------------------------------------------------------------------------------


async def test_an_expected_box_enrols_once_with_the_code_printed_on_it(desk: Desk):
    tech, box = await a_technician(desk), a_box()
    await expect(desk, tech, box, YEN_THANH)
    told = await enrolment.enrol_by_claim(desk, box.claim())

    assert told.state is NodeState.PROBATION
    node = (await fleet.get_node(desk, tech, told.node_id)).node
    assert (node.serial, node.public_key, node.state) == (box.serial, box.public_hex, NodeState.PROBATION)
    assert await enrolment.list_claims(desk, tech, ClaimQuery()) == []
    assert {"device.expect", "node.enrol"} <= set(await verbs(desk))


async def test_the_server_makes_the_code_where_the_box_has_none(desk: Desk):
    made = await enrolment.register_device(desk, OPERATOR, NewDevice("loa-00001", YEN_THANH))

    assert made.claim.serial == "LOA-00001"
    assert made.code is not None
    assert claims.normal_code(made.code) == made.code
    stored = await desk.store.read(lambda session: session.get(DeviceClaimRow, made.claim.id))
    assert stored is not None
    assert stored.claim_key == claims.claim_key("LOA-00001", made.code)


async def test_whatever_is_wrong_is_answered_in_the_same_words(desk: Desk):
    """A wrong code, a late box, a used code, a serial nobody knows, another box's request under the code's proof."""
    used, late, awaited, voided, stranger = (a_box(number) for number in range(1, 6))
    await install(desk, OPERATOR, used, YEN_THANH)
    await expect(desk, OPERATOR, late, YEN_THANH)
    await later(desk, enrolment.OPEN_FOR)
    await expect(desk, OPERATOR, awaited, YEN_THANH)
    await enrolment.void_claim(desk, OPERATOR, await expect(desk, OPERATOR, voided, YEN_THANH))
    swapped = replace(awaited.claim(), csr=stranger.csr)
    told: set[str] = set()
    for claim in (
        awaited.claim("0" * 10),
        late.claim(),
        used.claim(),
        voided.claim(),
        stranger.claim(),
        swapped,
        replace(awaited.claim(), nonce="1" * 32),
        replace(awaited.claim(), serial="!"),
    ):
        with pytest.raises(Refused) as refused:
            await enrolment.enrol_by_claim(desk, claim)
        told.add(str(refused.value))

    assert told == {"claim_refused(fix='ask_officer_to_open')"}
    assert (await enrolment.enrol_by_claim(desk, awaited.claim())).state is NodeState.PROBATION


async def test_five_wrong_codes_close_the_door_until_an_officer_opens_it(desk: Desk):
    tech, box = await a_technician(desk), a_box()
    claim_id = await expect(desk, tech, box, YEN_THANH)
    for number in range(5):
        with pytest.raises(Refused, match="claim_refused"):
            await enrolment.enrol_by_claim(desk, box.claim(f"{number:010}"))
    with pytest.raises(Refused, match="claim_refused"):
        await enrolment.enrol_by_claim(desk, box.claim())
    (shown,) = await enrolment.list_claims(desk, tech, ClaimQuery(YEN_THANH))
    assert (shown.wrong_tries, shown.closed_at) == (5, desk.clock.now())

    await enrolment.open_window(desk, tech, claim_id)
    assert await enrolment.enrol_by_claim(desk, box.claim())
    assert {"device.close", "device.open"} <= set(await verbs(desk))


async def test_wrong_tries_of_an_hour_ago_count_no_more(desk: Desk):
    box = a_box()
    claim_id = await expect(desk, OPERATOR, box, YEN_THANH)
    for number in range(4):
        with pytest.raises(Refused):
            await enrolment.enrol_by_claim(desk, box.claim(f"{number:010}"))
    await later(desk, timedelta(hours=1))
    await desk.store.begin(lambda session: _open_without_forgiving(session, claim_id, desk))
    for number in range(4):
        with pytest.raises(Refused):
            await enrolment.enrol_by_claim(desk, box.claim(f"{number:010}"))

    assert await enrolment.enrol_by_claim(desk, box.claim())


def _open_without_forgiving(session: Session, claim_id: str, desk: Desk) -> None:
    row = session.get(DeviceClaimRow, claim_id)
    assert row is not None
    row.open_until = desk.clock.now() + enrolment.OPEN_FOR


async def test_a_box_is_expected_once_and_not_while_it_serves(desk: Desk):
    box = a_box()
    await expect(desk, OPERATOR, box, YEN_THANH)
    with pytest.raises(Conflict, match="serial_awaited"):
        await expect(desk, OPERATOR, box, QUYNH_LUU)
    told = await enrolment.enrol_by_claim(desk, box.claim())
    with pytest.raises(Conflict, match="serial_in_service"):
        await expect(desk, OPERATOR, box, YEN_THANH)
    await fleet.retire_node(desk, OPERATOR, told.node_id)
    again = await install(desk, OPERATOR, box, YEN_THANH)
    assert again.node_id != told.node_id


async def test_a_registration_names_what_is_wrong_with_it(desk: Desk):
    for request, code in (
        (NewDevice("x", YEN_THANH), "serial_invalid"),
        (NewDevice("LOA-1234", YEN_THANH, claim_code="UUUUUUUUUU"), "claim_code_invalid"),
    ):
        with pytest.raises(Invalid, match=code):
            await enrolment.register_device(desk, OPERATOR, request)
    tech = await a_technician(desk)
    with pytest.raises(NotFound, match="unknown_unit"):
        await enrolment.register_device(desk, tech, NewDevice("LOA-1234", QUYNH_LUU))


async def test_a_request_that_is_none_is_named_before_anything_is_looked_up(desk: Desk):
    box, other = a_box(1), a_box(2)
    await expect(desk, OPERATOR, box, YEN_THANH)
    broken = box.csr.replace(box.csr.splitlines()[1][:8], "AAAAAAAA")
    for csr in ("", "nonsense", "x" * 10_000, broken):
        with pytest.raises(Invalid, match="csr_invalid"):
            await enrolment.enrol_by_claim(desk, replace(box.claim(), csr=csr))
    token = (await enrolment.create_enrolment_token(desk, OPERATOR, NewEnrolmentToken(YEN_THANH))).secret
    with pytest.raises(Invalid, match="csr_invalid"):
        await enrolment.enrol(desk, Enrol(token, box.public_hex, "sim", "1", csr=other.csr))
    assert await enrolment.enrol(desk, Enrol(token, box.public_hex, "sim", "1", csr=box.csr))


# -- a second box with the same code ----------------------------------------------------------------------------------


async def test_a_second_box_with_a_used_code_puts_the_first_into_quarantine_while_it_is_on_probation(desk: Desk):
    box = a_box()
    told = await install(desk, OPERATOR, box, YEN_THANH)
    with pytest.raises(Refused, match="claim_refused"):
        await enrolment.enrol_by_claim(desk, replace(box, number=99).claim())

    node = (await fleet.get_node(desk, OPERATOR, told.node_id)).node
    assert (node.state, node.state_reason) == (NodeState.QUARANTINED, "claimed_twice")


async def test_one_that_was_heard_on_its_pole_stays_on_the_air_and_the_alarm_is_raised(desk: Desk):
    tech, head = await a_technician(desk), await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH)
    box = a_box()
    told = await install(desk, tech, box, YEN_THANH)
    await approve(desk, tech, head, told.node_id)
    for _ in range(2):
        with pytest.raises(Refused, match="claim_refused"):
            await enrolment.enrol_by_claim(desk, replace(box, number=99).claim())

    node = (await fleet.get_node(desk, head, told.node_id)).node
    assert (node.state, node.state_reason) == (NodeState.ACTIVE, "claimed_twice")
    assert (await verbs(desk)).count("node.claimed_twice") == 1


async def test_the_same_box_asking_again_is_no_second_box(desk: Desk):
    box = a_box()
    told = await install(desk, OPERATOR, box, YEN_THANH)
    for nonce in ("0" * 32, "1" * 32):
        with pytest.raises(Refused, match="claim_refused"):
            await enrolment.enrol_by_claim(desk, box.claim(nonce=nonce))

    assert (await fleet.get_node(desk, OPERATOR, told.node_id)).node.state is NodeState.PROBATION


# -- tokens -----------------------------------------------------------------------------------------------------------


async def test_a_token_lets_a_node_begin_on_probation_unless_it_says_otherwise(desk: Desk):
    tech = await a_technician(desk)
    head = await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH)
    plain = await enrolment.create_enrolment_token(desk, tech, NewEnrolmentToken(YEN_THANH))
    with pytest.raises(Refused, match="not_permitted"):
        await enrolment.create_enrolment_token(desk, tech, NewEnrolmentToken(YEN_THANH, activates=True))
    loud = await enrolment.create_enrolment_token(desk, head, NewEnrolmentToken(YEN_THANH, activates=True))

    assert (await enrolment.enrol(desk, Enrol(plain.secret, "01" * 32, "sim", "1"))).state is NodeState.PROBATION
    assert (await enrolment.enrol(desk, Enrol(loud.secret, "02" * 32, "sim", "1"))).state is NodeState.ACTIVE


# -- certificates -----------------------------------------------------------------------------------------------------


async def test_a_box_gets_a_certificate_of_its_own_key_in_the_name_it_was_given(certified: Desk):
    told = await install(certified, OPERATOR, a_box(), YEN_THANH)

    assert told.certificate is not None
    leaf = x509.load_pem_x509_certificate(told.certificate.encode())
    assert leaf.subject.rfc4514_string() == f"CN={told.node_id}"
    view = await fleet.get_node(certified, OPERATOR, told.node_id)
    assert view.certificate_until == leaf.not_valid_after_utc
    await fleet.retire_node(certified, OPERATOR, told.node_id)
    (row,) = await certified.store.read(lambda session: list(session.scalars(select(NodeCertificateRow))))
    assert row.revoked_at == certified.clock.now()


async def test_a_certificate_is_renewed_on_the_word_of_the_device_key_alone(certified: Desk):
    box, thief = a_box(1), a_box(2)
    told = await install(certified, OPERATOR, box, YEN_THANH)
    assert told.certificate is not None
    await later(certified, timedelta(days=245))

    def asked(nonce: str, signer: object = None, csr: str = box.csr, node_id: str = told.node_id) -> Renewal:
        who = thief if signer is thief else box
        signature = who.key.sign(claims.renewal(node_id, csr, nonce)).hex()
        return Renewal(node_id, csr, nonce, signature)

    for wrong in (
        asked("0" * 32, thief),
        asked("0" * 32, thief, thief.csr),
        asked("0" * 32, node_id="nobody"),
        replace(asked("0" * 32), nonce="1" * 32),
    ):
        with pytest.raises(Refused, match="device_refused"):
            await certificates.renew(certified, wrong)
    fresh = await certificates.renew(certified, asked("2" * 32))
    leaf = x509.load_pem_x509_certificate(fresh.chain.encode())
    assert leaf.not_valid_after_utc > certified.clock.now() + timedelta(364)
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificates(fresh.authority.encode())[0])
    with pytest.raises(Refused, match="device_refused"):  # too soon
        await certificates.renew(certified, asked("3" * 32))
    await later(certified, timedelta(days=245))
    with pytest.raises(Refused, match="device_refused"):  # heard before
        await certificates.renew(certified, asked("2" * 32))
    await fleet.retire_node(certified, OPERATOR, told.node_id)
    with pytest.raises(Refused, match="device_refused"):
        await certificates.renew(certified, asked("4" * 32))


async def test_without_an_authority_a_node_enrols_all_the_same(desk: Desk):
    class Away:
        async def issue_device(self, csr_pem: bytes, node_id: str) -> bytes:  # noqa: ARG002
            raise Unavailable("signer_away")

        def authority_pem(self) -> bytes:
            return b""

    told = await install(replace(desk, certifier=Away()), OPERATOR, a_box(), YEN_THANH)
    assert (told.certificate, told.state) == (None, NodeState.PROBATION)


# -- who goes, leaves nothing -----------------------------------------------------------------------------------------


async def test_the_asset_token_opens_nothing_but_for_an_active_node(desk: Desk):
    tech, head = await a_technician(desk), await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH)
    told = await install(desk, tech, a_box(), YEN_THANH)

    async def opens() -> bool:
        return await desk.store.read(lambda session: rows.node_of_asset_token(session, told.asset_token) is not None)

    assert not await opens()
    await approve(desk, tech, head, told.node_id)
    assert await opens()
    await fleet.retire_node(desk, tech, told.node_id)
    assert not await opens()
    assert told.node_id not in await desk.store.read(rows.password_lines)


async def test_a_swap_keeps_the_old_node_sounding_until_the_new_one_is_approved(desk: Desk):
    tech, head = await a_technician(desk), await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH)
    old = await install(desk, tech, a_box(1), YEN_THANH)
    await approve(desk, tech, head, old.node_id)
    dropped = await install(desk, tech, a_box(2), YEN_THANH, "C01")
    new = await install(desk, tech, a_box(3), YEN_THANH, "C01")

    seen = {view.node.id: view.node.state for view in await fleet.list_nodes(desk, tech, NodeQuery(retired=True))}
    assert seen == {
        old.node_id: NodeState.ACTIVE,
        dropped.node_id: NodeState.RETIRED,
        new.node_id: NodeState.PROBATION,
    }
    assert (await fleet.get_cluster(desk, tech, old.cluster_id)).node_id == old.node_id
    await approve(desk, tech, head, new.node_id)
    seen = {view.node.id: view.node.state for view in await fleet.list_nodes(desk, tech, NodeQuery(retired=True))}
    assert (seen[old.node_id], seen[new.node_id]) == (NodeState.RETIRED, NodeState.ACTIVE)
    assert new.cluster_id == old.cluster_id


async def test_the_audit_log_holds_no_secret_of_an_enrolment(desk: Desk):
    box = a_box()
    await expect(desk, OPERATOR, box, YEN_THANH)
    told = await enrolment.enrol_by_claim(desk, box.claim())
    texts = await desk.store.read(
        lambda session: [f"{row.subject}{row.detail}" for row in session.scalars(select(AuditRow))]
    )
    secrets = {box.code, claims.claim_key(box.serial, box.code).hex(), told.password, told.asset_token}

    assert not [secret for secret in secrets for text in texts if secret in text]
